"""Distances of two sets of features: KID with a polynomial kernel, CMMD with a Gaussian one on CLIP's embeddings.
Both are squared maximum mean discrepancies, computed in blocks of rows."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .common import Spread, Vectors, as_feature_pair, unit_length

Kernel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def kernel_distance(real: Vectors, fake: Vectors, degree: int = 3) -> float:
    """Squared MMD with the kernel (x.y / d + 1)^degree, unbiased (Binkowski et al. 2018, Eq. 4), in float64.

    Takes features [N, d] and [M, d], at least 2 of each. About 0 for two samples of one distribution, and then as
    often below 0 as above; lower is better. Raises ValueError for other shapes, NaN or infinite values.

    Protocol: all pairs of all vectors at once, so that the same features give the same number everywhere. The average
    over random subsets ([`kernel_distance_of_subsets`]), which is customary, estimates the same with more variance.
    """
    real, fake = as_feature_pair(real, fake, least=2)
    return unbiased(kernel_sums(real, fake, _polynomial(real.shape[1], degree)))


def kernel_distance_with_error(real: Vectors, fake: Vectors, degree: int = 3) -> Spread:
    """[`kernel_distance`] with its standard error by the jackknife over both sets, at least 3 vectors in each."""
    real, fake = as_feature_pair(real, fake, least=3)
    sums = kernel_sums(real, fake, _polynomial(real.shape[1], degree))
    return Spread(unbiased(sums), two_sample_error(sums))


def kernel_distance_of_subsets(
    real: Vectors, fake: Vectors, subsets: int = 100, size: int = 1000, seed: int = 0, degree: int = 3
) -> Spread:
    """The customary protocol: mean and standard deviation of [`kernel_distance`] over random subsets, at least 2.

    The deviation describes a subset of `size`, not the mean; published values "KID ± std" are of this kind. Each
    subset has `size` vectors of either set, 2 to min(N, M), sampled without replacement (Binkowski et al. 2018,
    section 5, there with 100 subsets of 1000). Raises ValueError as [`kernel_distance`], and for other subsets.
    """
    real, fake = as_feature_pair(real, fake, least=2)
    if subsets < 2 or not 2 <= size <= min(len(real), len(fake)):
        raise ValueError(
            f"{subsets} subsets of {size} cannot be sampled: at least 2 subsets of 2 to {min(len(real), len(fake))}"
        )
    generator, kernel = torch.Generator().manual_seed(seed), _polynomial(real.shape[1], degree)

    def sample(features: torch.Tensor) -> torch.Tensor:
        return features[torch.randperm(len(features), generator=generator)[:size].to(features.device)]

    distances = torch.tensor(
        [unbiased(kernel_sums(sample(real), sample(fake), kernel)) for _ in range(subsets)], dtype=torch.float64
    )
    return Spread(float(distances.mean()), float(distances.std()))


def _polynomial(dim: int, degree: int) -> Kernel:
    return lambda x, y: (x @ y.T / dim + 1) ** degree


SIGMA = 10.0
SCALE = 1000.0


def cmmd(real: Vectors, fake: Vectors, *, estimator: str) -> float:
    """1000 * squared MMD with the kernel exp(-|x - y|^2 / (2 * 10^2)) (Jayasumana et al. 2024), in float64.

    Takes CLIP image embeddings [N, d] and [M, d], which it brings to unit length. `estimator` "biased" is the
    V-statistic, as in the paper's released code and in published values: in [0, 2000], and positive even for two
    samples of one distribution, by about 1000 (2 - 2 E[k]) / N. "unbiased" is the U-statistic of the paper's text, of
    at least 2 vectors in each set. The two differ by much at small N, so that the name has to be given. Lower is
    better. Raises ValueError for other shapes, NaN or infinite values, vectors of zeros, or another estimator.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {tuple(ESTIMATORS)}, not {estimator!r}")
    value = SCALE * ESTIMATORS[estimator](_gaussian_sums(real, fake, least=2 if estimator == "unbiased" else 1))
    return max(0.0, value) if estimator == "biased" else value


def cmmd_with_error(real: Vectors, fake: Vectors) -> Spread:
    """The unbiased [`cmmd`] with its standard error, by the jackknife over both sets; at least 3 vectors in each."""
    sums = _gaussian_sums(real, fake, least=3)
    return Spread(SCALE * unbiased(sums), SCALE * two_sample_error(sums))


def _gaussian_sums(real: Vectors, fake: Vectors, least: int) -> "KernelSums":
    real, fake = map(unit_length, as_feature_pair(real, fake, least))

    def gaussian_less_one(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # The constant 1 cancels in every estimator; without it the small differences keep all their digits.
        squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
        return torch.expm1(-squared.clamp(min=0) / (2 * SIGMA**2))

    return kernel_sums(real, fake, gaussian_less_one)


# The squared maximum mean discrepancy of any kernel

_BLOCK = 1024  # rows of the matrix of kernel values that are computed together


@dataclass(frozen=True)
class KernelSums:
    """Sums of kernel values for each of N and M vectors, from which every estimator follows.

    `within` are sums over the other vectors of the same set ([N] and [M]), `itself` the values of a vector with
    itself, `across` the sums over the other set.
    """

    within: tuple[torch.Tensor, torch.Tensor]
    itself: tuple[torch.Tensor, torch.Tensor]
    across: tuple[torch.Tensor, torch.Tensor]


def kernel_sums(first: torch.Tensor, second: torch.Tensor, kernel: Kernel) -> KernelSums:
    """Sums for vectors [N, d] and [M, d] of a kernel that makes [a, b] of [a, d] and [b, d]; memory grows with N + M,
    not with N * M."""
    across = _sums_of_both_axes(first, second, kernel)
    totals = [_sums_of_both_axes(x, x, kernel)[0] for x in (first, second)]
    itself = [torch.cat([kernel(row, row)[0] for row in x.split(1)]) for x in (first, second)]
    within = [total - own for total, own in zip(totals, itself, strict=True)]
    return KernelSums(tuple(within), tuple(itself), across)


def _sums_of_both_axes(first: torch.Tensor, second: torch.Tensor, kernel: Kernel) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over the second set for each of the first, and the other way round."""
    rows, columns = [], torch.zeros_like(second[:, 0])
    for part in first.split(_BLOCK):
        values = kernel(part, second)
        rows.append(values.sum(dim=1))
        columns += values.sum(dim=0)
    return torch.cat(rows), columns


def unbiased(sums: KernelSums) -> float:
    """The U-statistic (Gretton et al. 2012, Eq. 3): pairs of a vector with itself are left out. At least 2 of each."""
    (n, m), cross = map(len, sums.within), _mean_across(sums)
    return float(sums.within[0].sum() / (n * (n - 1)) + sums.within[1].sum() / (m * (m - 1)) - 2 * cross)


def biased(sums: KernelSums) -> float:
    """The V-statistic (Gretton et al. 2012, Eq. 5): pairs of a vector with itself included; never negative."""
    within = [(other.sum() + own.sum()) / len(other) ** 2 for other, own in zip(sums.within, sums.itself, strict=True)]
    return float(within[0] + within[1] - 2 * _mean_across(sums))


def _mean_across(sums: KernelSums) -> torch.Tensor:
    return sums.across[0].sum() / (len(sums.across[0]) * len(sums.across[1]))


def two_sample_error(sums: KernelSums) -> float:
    """Standard error of [`unbiased`]: the two-sample delete-one jackknife (Arvesen 1969). At least 3 of each.

    Leaving vector i out changes the sums by its own entries only, so that no kernel value is computed twice.
    """
    variance = 0.0
    for own, across, other in zip(sums.within, sums.across, reversed(sums.within), strict=True):
        n, m = len(own), len(other)
        within = (own.sum() - 2 * own) / ((n - 1) * (n - 2))
        without = within - 2 * (across.sum() - across) / ((n - 1) * m)
        variance += (n - 1) / n * float((without - without.mean()).square().sum())
    return variance**0.5


ESTIMATORS = {"biased": biased, "unbiased": unbiased}
