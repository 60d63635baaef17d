"""The kernel distance (KID) between two sets of feature vectors: the unbiased squared maximum mean discrepancy.
Owns the kernel and the estimator; which features are compared is up to the caller."""

import torch

from .bootstrap import Spread
from .checks import Vectors, as_feature_pair
from .mmd import Kernel, jackknife_error, kernel_sums, unbiased


def kernel_distance(real: Vectors, fake: Vectors, degree: int = 3) -> float:
    """Squared MMD with the kernel (x.y / d + 1)^degree, unbiased (Binkowski et al. 2018, Eq. 4), in float64.

    Protocol: all pairs of all vectors at once. The customary average over random subsets estimates the same number,
    with more variance and with random draws ([`kernel_distance_of_subsets`]); taken over all pairs the same features
    give the same number everywhere.

    Args:
        real: features [N, d], N at least 2.
        fake: features [M, d], M at least 2; M need not be N.
        degree: of the polynomial.

    Returns:
        About 0 for two samples of one distribution, and then as often below 0 as above; lower is better.

    Raises:
        ValueError: for other shapes, NaN or infinite values.
    """
    real, fake = as_feature_pair(real, fake, least=2)
    return unbiased(kernel_sums(real, fake, _polynomial(real.shape[1], degree)))


def kernel_distance_with_error(real: Vectors, fake: Vectors, degree: int = 3) -> Spread:
    """[`kernel_distance`] over all pairs with its standard error by the jackknife over both sets (Arvesen 1969).

    Args:
        real: features [N, d], N at least 3.
        fake: features [M, d], M at least 3.
        degree: of the polynomial.

    Raises:
        ValueError: as [`kernel_distance`].
    """
    real, fake = as_feature_pair(real, fake, least=3)
    sums = kernel_sums(real, fake, _polynomial(real.shape[1], degree))
    return Spread(unbiased(sums), jackknife_error(sums))


def kernel_distance_of_subsets(
    real: Vectors, fake: Vectors, subsets: int = 100, size: int = 1000, seed: int = 0, degree: int = 3
) -> Spread:
    """The customary protocol: mean and standard deviation of [`kernel_distance`] over random subsets.

    The deviation describes a subset of `size`, not the mean; published figures "KID ± std" are of this kind. Each
    subset is drawn without replacement (Binkowski et al. 2018, section 5, there with 100 subsets of 1000).

    Args:
        real: features [N, d].
        fake: features [M, d].
        subsets: how many are drawn, at least 2.
        size: vectors of either set in each, 2 to min(N, M).
        seed: of the draws.
        degree: of the polynomial.

    Raises:
        ValueError: as [`kernel_distance`], and for subsets that are too few, too small or larger than a set.
    """
    real, fake = as_feature_pair(real, fake, least=2)
    if subsets < 2 or not 2 <= size <= min(len(real), len(fake)):
        raise ValueError(
            f"{subsets} subsets of {size} cannot be drawn: at least 2 subsets of 2 to {min(len(real), len(fake))}"
        )
    generator, kernel = torch.Generator().manual_seed(seed), _polynomial(real.shape[1], degree)

    def draw(features: torch.Tensor) -> torch.Tensor:
        return features[torch.randperm(len(features), generator=generator)[:size].to(features.device)]

    distances = torch.tensor(
        [unbiased(kernel_sums(draw(real), draw(fake), kernel)) for _ in range(subsets)], dtype=torch.float64
    )
    return Spread(float(distances.mean()), float(distances.std()))


def _polynomial(dim: int, degree: int) -> Kernel:
    return lambda x, y: (x @ y.T / dim + 1) ** degree
