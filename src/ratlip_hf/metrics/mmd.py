"""The squared maximum mean discrepancy of two sets of vectors for any kernel, computed in blocks of rows.
Owns both estimators and the jackknife; kernels are in `kernel_distance` and `cmmd`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

Kernel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_BLOCK = 1024


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
    """Sums of `kernel(x, y)` for vectors [N, d] and [M, d]; memory grows with N + M, not with N * M.

    Args:
        first: [N, d].
        second: [M, d].
        kernel: takes vectors [a, d] and [b, d], returns [a, b].
    """
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


def jackknife_error(sums: KernelSums) -> float:
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
