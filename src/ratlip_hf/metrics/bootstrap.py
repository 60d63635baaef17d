"""How certain a figure is: the percentile bootstrap of a mean, the jackknife of anything else.
Owns the intervals; the values are per-sample scores, or a metric without one part of its samples at a time."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .checks import Vectors, as_finite, as_tensor

_DRAWS_AT_ONCE = 4_000_000


class Interval(NamedTuple):
    """A mean with the ends of its interval."""

    mean: float
    low: float
    high: float


class Spread(NamedTuple):
    """A distance and how far it is from certain; which of several measures `spread` is, the function says."""

    distance: float
    spread: float


def jackknife_error(without: Sequence[float]) -> float:
    """Standard error of a figure from its values without one of G parts each, G at least 2 (Efron 1979, section 3)."""
    values = torch.tensor(without, dtype=torch.float64)
    return float(((len(values) - 1) / len(values) * (values - values.mean()).square().sum()).sqrt())


def bootstrap_interval(values: Vectors, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of a mean (Efron and Tibshirani 1993, section 13.3), in float64.

    Args:
        values: independent samples [N], N at least 2. Pictures of one prompt are not independent: take one mean each.
        level: share of resampled means within the interval, in (0, 1).
        resamples: how often N values are drawn with replacement.
        seed: of the draws; the same values and seed give the same interval everywhere.

    Raises:
        ValueError: for another shape, fewer than two values, NaN or infinite ones, or options out of range.
    """
    values = as_tensor(values)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"values must be [N] with N at least 2, not {list(values.shape)}")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level must lie between 0 and 1 and resamples be positive, not {level} and {resamples}")
    values, generator = as_finite(values, "values").cpu(), torch.Generator().manual_seed(seed)
    rows, means = max(1, _DRAWS_AT_ONCE // len(values)), []
    for start in range(0, resamples, rows):
        shape = (min(rows, resamples - start), len(values))
        means.append(values[torch.randint(len(values), shape, generator=generator)].mean(dim=1))
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(torch.cat(means), ends).tolist()
    return Interval(float(values.mean()), low, high)
