"""CMMD: the maximum mean discrepancy of CLIP embeddings with a Gaussian kernel.
Owns its kernel, its scale and the names of its two estimators."""

import torch

from .bootstrap import Spread
from .checks import Vectors, as_feature_pair, unit_length
from .mmd import Kernel, biased, jackknife_error, kernel_sums, unbiased

SIGMA = 10.0
SCALE = 1000.0
ESTIMATORS = {"biased": biased, "unbiased": unbiased}


def cmmd(real: Vectors, fake: Vectors, *, estimator: str, sigma: float = SIGMA, normalize: bool = True) -> float:
    """1000 * squared MMD with the kernel exp(-|x - y|^2 / (2 sigma^2)) (Jayasumana et al. 2024), in float64.

    "biased" is the V-statistic, as in the paper's released code and in published figures; it is positive even for two
    samples of one distribution, by about 1000 (2 - 2 E[k]) / N. "unbiased" is the U-statistic of the paper's text.
    The two differ by much at small N, so that the name has to be given.

    Args:
        real: CLIP image embeddings [N, d]; N at least 1, for "unbiased" 2.
        fake: CLIP image embeddings [M, d], likewise; M need not be N.
        estimator: "biased" or "unbiased".
        sigma: width of the kernel.
        normalize: bring embeddings to unit length first, as the metric is defined; False takes them as they are.

    Returns:
        Lower is better; "biased" is at least 0 and at most 2000.

    Raises:
        ValueError: for other shapes, NaN or infinite values, vectors of zeros, an unknown estimator, or a sigma that
            is not positive.
    """
    real, fake, kernel = _prepared(real, fake, estimator, sigma, normalize)
    # The constant 1 cancels in every estimator; without it the small differences keep all their digits.
    value = SCALE * ESTIMATORS[estimator](kernel_sums(real, fake, kernel))
    return max(0.0, value) if estimator == "biased" else value


def cmmd_with_error(real: Vectors, fake: Vectors, *, sigma: float = SIGMA, normalize: bool = True) -> Spread:
    """The unbiased [`cmmd`] with its standard error, by the jackknife over both sets; at least 3 vectors in each."""
    if min(len(real), len(fake)) < 3:
        raise ValueError(f"an error needs at least 3 vectors in each set, not {len(real)} and {len(fake)}")
    sums = kernel_sums(*_prepared(real, fake, "unbiased", sigma, normalize))
    return Spread(SCALE * unbiased(sums), SCALE * jackknife_error(sums))


def _prepared(
    real: Vectors, fake: Vectors, estimator: str, sigma: float, normalize: bool
) -> tuple[torch.Tensor, torch.Tensor, Kernel]:
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {tuple(ESTIMATORS)}, not {estimator!r}")
    if not 0 < sigma < float("inf"):
        raise ValueError(f"sigma must be a positive number, not {sigma}")
    real, fake = as_feature_pair(real, fake, least=2 if estimator == "unbiased" else 1)
    if normalize:
        real, fake = unit_length(real), unit_length(fake)

    def gaussian_less_one(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
        return torch.expm1(-squared.clamp(min=0) / (2 * sigma**2))

    return real, fake, gaussian_less_one
