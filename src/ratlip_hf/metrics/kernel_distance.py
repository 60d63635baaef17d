"""The kernel distance (KID) between two sets of feature vectors: the unbiased squared maximum mean discrepancy.
Owns the kernel and the estimator; which features are compared is up to the caller."""

import torch


def kernel_distance(real: torch.Tensor, fake: torch.Tensor, degree: int = 3) -> float:
    """Squared MMD with the kernel (x.y / d + 1)^degree, unbiased (Binkowski et al. 2018, Eq. 4), in float64.

    Protocol: all pairs of all vectors at once. The customary average over random subsets estimates the same number,
    with more variance and with random draws; taken over all pairs the same features give the same number everywhere.

    Args:
        real: features [N, d], N at least 2.
        fake: features [M, d], M at least 2; M need not be N.
        degree: of the polynomial.

    Returns:
        About 0 for two samples of one distribution, and then as often below 0 as above; lower is better.

    Raises:
        ValueError: for other shapes.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1] or min(len(real), len(fake)) < 2:
        shapes = f"{list(real.shape)} and {list(fake.shape)}"
        raise ValueError(f"features must be [N, d] and [M, d] with N and M at least 2, not {shapes}")
    real, fake = real.double(), fake.double()

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x @ y.T / x.shape[1] + 1) ** degree

    within = _mean_off_diagonal(kernel(real, real)) + _mean_off_diagonal(kernel(fake, fake))
    return float(within - 2 * kernel(real, fake).mean())


def _mean_off_diagonal(values: torch.Tensor) -> torch.Tensor:
    """A vector paired with itself says nothing of the distribution: leaving it out makes the estimator unbiased."""
    count = len(values)
    return (values.sum() - values.trace()) / (count * (count - 1))
