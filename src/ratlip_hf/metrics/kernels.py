"""Distances of two sets of features: KID with a polynomial kernel, CMMD with a Gaussian one on CLIP's embeddings.
Both are squared maximum mean discrepancies, computed in blocks of rows."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

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
    return discrepancy(real, fake, _polynomial(real.shape[1], degree), unbiased=True)


def kernel_distance_with_error(
    real: Vectors, fake: Vectors, origins: "tuple[Origins, Origins] | None" = None, degree: int = 3
) -> Spread:
    """[`kernel_distance`] over pairs of different prompts, with its standard error by the jackknife over groups.

    Real and generated images of one prompt resemble each other, and in both sets the images of one prompt do: with
    their pairs in it, the distance of two samples of one distribution would not be about 0. `origins` say of both sets
    which images those are; without, every vector is a prompt and a group of its own. At least 3 groups.
    """
    real, fake = as_feature_pair(real, fake, least=2)
    return _distance_with_error(real, fake, origins, _polynomial(real.shape[1], degree))


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
        [discrepancy(sample(real), sample(fake), kernel, unbiased=True) for _ in range(subsets)], dtype=torch.float64
    )
    return Spread(float(distances.mean()), float(distances.std()))


def _polynomial(dim: int, degree: int) -> Kernel:
    return lambda x, y: (x @ y.T / dim + 1) ** degree


SIGMA = 10.0
SCALE = 1000.0
ESTIMATORS = ("biased", "unbiased")


def cmmd(real: Vectors, fake: Vectors, *, estimator: str) -> float:
    """1000 * squared MMD with the kernel exp(-|x - y|^2 / (2 * 10^2)) (Jayasumana et al. 2024), in float64.

    Takes CLIP image embeddings [N, d] and [M, d], which it brings to unit length. `estimator` "biased" is the
    V-statistic, as in the paper's released code and in published values: in [0, 2000], and positive even for two
    samples of one distribution, by about 1000 (2 - 2 E[k]) / N. "unbiased" is the U-statistic of the paper's text, of
    at least 2 vectors in each set. The two differ by much at small N, so that the name has to be given. Lower is
    better. Raises ValueError for other shapes, NaN or infinite values, vectors of zeros, or another estimator.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {ESTIMATORS}, not {estimator!r}")
    unbiased = estimator == "unbiased"
    real, fake = map(unit_length, as_feature_pair(real, fake, least=2 if unbiased else 1))
    value = SCALE * discrepancy(real, fake, _gaussian_less_one, unbiased)
    return value if unbiased else max(0.0, value)


def cmmd_with_error(real: Vectors, fake: Vectors, origins: "tuple[Origins, Origins] | None" = None) -> Spread:
    """The unbiased [`cmmd`] over pairs of different prompts with its standard error, as for
    [`kernel_distance_with_error`]."""
    real, fake = map(unit_length, as_feature_pair(real, fake, least=2))
    found = _distance_with_error(real, fake, origins, _gaussian_less_one)
    return Spread(SCALE * found.distance, SCALE * found.spread, found.freedom)


def _gaussian_less_one(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    # The constant 1 cancels in every estimator; without it the small differences keep all their digits.
    squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return torch.expm1(-squared.clamp(min=0) / (2 * SIGMA**2))


# The squared maximum mean discrepancy of any kernel

_BLOCK = 1024  # rows of the matrix of kernel values that are computed together


def discrepancy(first: torch.Tensor, second: torch.Tensor, kernel: Kernel, unbiased: bool) -> float:
    """The U-statistic, which leaves out pairs of a vector with itself (Gretton et al. 2012, Eq. 3; at least 2 each),
    or the V-statistic (Eq. 5), which is never negative. Memory grows with N + M, not with N * M."""
    value = -2 * _sum(first, second, kernel) / (len(first) * len(second))
    for vectors in (first, second):
        itself = sum(kernel(row, row).sum() for row in vectors.split(1)) if unbiased else 0
        count = len(vectors) * (len(vectors) - 1 if unbiased else len(vectors))
        value = value + (_sum(vectors, vectors, kernel) - itself) / count
    return float(value)


def _sum(first: torch.Tensor, second: torch.Tensor, kernel: Kernel) -> torch.Tensor:
    return _total(kernel(part, second).sum() for part in first.split(_BLOCK))


def _total(values: Iterable[torch.Tensor]) -> torch.Tensor:
    return functools.reduce(torch.add, values)


# The same over pairs of different prompts


class Origins(NamedTuple):
    """Of each vector of a set the number of its prompt and that of its group, [N] each, counted through both sets.

    Pairs of one prompt are left out of a distance; a group, one or several prompts, is sampled as a whole.
    """

    prompts: torch.Tensor
    groups: torch.Tensor


_MOST_GROUPS = 500  # more are put together, so that sums of pairs of groups fit into memory


@dataclass(frozen=True)
class _PairSums:
    """Of pairs of different prompts, the first of a pair in group g and the second in group h: the sums of the kernel
    and the `numbers` of pairs, [G, G] each."""

    kernel: torch.Tensor
    numbers: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        return self.kernel.sum() / self.numbers.sum()

    def means_without(self) -> torch.Tensor:
        """The means [G] that remain when one group is left out on both sides."""
        sums, numbers = (x.sum() - x.sum(0) - x.sum(1) + x.diagonal() for x in (self.kernel, self.numbers))
        return sums / numbers

    def centred(self, first: torch.Tensor, second: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """The sums as shares of all pairs, for the kernel less the means of the first and the second groups [G]."""
        values = self.kernel - self.numbers * (first[:, None] + second - mean)
        return values / self.numbers.sum()


def _distance_with_error(
    real: torch.Tensor, fake: torch.Tensor, origins: tuple[Origins, Origins] | None, kernel: Kernel
) -> Spread:
    """The U-statistic over pairs of different prompts, and its delete-one jackknife over the groups of both sets
    (Arvesen 1969). Of two samples of one distribution the statistic is degenerate: its variance is that of pairs,
    which the jackknife counts twice, so that it is taken off once (Efron and Stein 1981, section 4)."""
    if origins is None:
        own = torch.arange(len(real)), torch.arange(len(real), len(real) + len(fake))
        origins = Origins(own[0], own[0]), Origins(own[1], own[1])
    groups, places = torch.cat([origins[0].groups, origins[1].groups]).unique(return_inverse=True)
    count, places = min(len(groups), _MOST_GROUPS), (places % _MOST_GROUPS).split([len(real), len(fake)])
    if count < 3:
        raise ValueError(f"a jackknife needs at least three groups, not {count}")
    x, y = ((side, of.prompts, place) for side, of, place in zip((real, fake), origins, places, strict=True))
    xx, yy, xy = (_pair_sums(*pair, count, kernel) for pair in ((x, x), (y, y), (x, y)))
    without = xx.means_without() + yy.means_without() - 2 * xy.means_without()
    if not without.isfinite().all():
        raise ValueError("each set needs pairs of different prompts in at least three groups")
    jackknife = (count - 1) / count * (without - without.mean()).square().sum()
    error = (jackknife - _variance_of_pairs(xx, yy, xy)).clamp(min=jackknife / 2).sqrt()
    return Spread(float(xx.mean + yy.mean - 2 * xy.mean), float(error), count - 1)


def _variance_of_pairs(xx: _PairSums, yy: _PairSums, xy: _PairSums) -> torch.Tensor:
    """What pairs of groups add to the variance beyond the groups by themselves, for a kernel centred on both sets."""

    def means(one: _PairSums, other: _PairSums, axis: int) -> torch.Tensor:
        numbers = one.numbers.sum(1) + other.numbers.sum(axis)
        return (one.kernel.sum(1) + other.kernel.sum(axis)) / numbers.clamp(min=1)

    x_means, y_means = means(xx, xy, 1), means(yy, xy, 0)
    parts = (xx, yy, xy, xy)
    everything = _total(part.kernel.sum() for part in parts) / _total(part.numbers.sum() for part in parts)
    across = xy.centred(x_means, y_means, everything)
    both = xx.centred(x_means, x_means, everything) + yy.centred(y_means, y_means, everything) - across - across.T
    return 2 * both.fill_diagonal_(0).square().sum()


def _pair_sums(one: tuple, other: tuple, count: int, kernel: Kernel) -> _PairSums:
    """From (vectors, prompts, places of groups) of two sets, in blocks of rows."""
    (x, x_prompts, x_groups), (y, y_prompts, y_groups) = one, other
    found = torch.zeros(2, count, count, dtype=x.dtype, device=x.device)
    for rows in torch.arange(len(x)).split(_BLOCK):
        different = (x_prompts[rows, None] != y_prompts).to(x)
        for sums, values in zip(found, (kernel(x[rows], y) * different, different), strict=True):
            by_group = torch.zeros(len(rows), count, dtype=x.dtype, device=x.device).index_add_(1, y_groups, values)
            sums.index_add_(0, x_groups[rows], by_group)
    return _PairSums(*found)
