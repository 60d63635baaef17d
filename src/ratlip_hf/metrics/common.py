"""What all metrics share: checks of features, which become float64, and how certain a value is, for means by the
bootstrap. Other metrics have a jackknife of their own."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

Vectors = torch.Tensor | np.ndarray | Sequence


def as_tensor(values: Vectors) -> torch.Tensor:
    """A tensor, an array or nested lists as a tensor; lists of floats become float64, where torch would round them."""
    return values if isinstance(values, torch.Tensor) else torch.as_tensor(np.asarray(values))


def as_features(features: Vectors, name: str = "features") -> torch.Tensor:
    """Feature vectors [N, d], at least one, as float64 on the device they are on; ValueError for anything else."""
    features = as_tensor(features)
    if features.ndim != 2 or not features.numel():
        raise ValueError(f"{name} must be [N, d] with N at least 1, not {list(features.shape)}")
    return as_finite(features, name)


def as_feature_pair(
    first: Vectors, second: Vectors, least: int = 1, paired: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Feature vectors [N, d] and [M, d], each at least `least`, as float64; with `paired` M is N, and rows belong
    together. ValueError for anything else."""
    first, second = as_tensor(first), as_tensor(second)
    fits = first.ndim == second.ndim == 2 and first.shape[1] == second.shape[1] > 0
    if not fits or min(len(first), len(second)) < least or (paired and len(first) != len(second)):
        shapes = f"[N, d] and {'[N, d], row by row' if paired else '[M, d]'}, with at least {least} of each"
        raise ValueError(f"features must be {shapes}, not {list(first.shape)} and {list(second.shape)}")
    return as_finite(first, "features"), as_finite(second, "features")


def as_finite(values: torch.Tensor, name: str) -> torch.Tensor:
    """Real numbers as float64; raises ValueError for complex, NaN and infinite ones."""
    if values.is_complex() or not values.isfinite().all():
        raise ValueError(f"{name} must be real numbers without NaN and infinite values")
    return values.double()


def unit_length(vectors: torch.Tensor, name: str = "embeddings") -> torch.Tensor:
    """Vectors [..., d] divided by their lengths; raises ValueError for one of length 0, which has no direction."""
    # Divided by the largest entry first: squares of huge or tiny entries would leave the range of float64.
    largest = vectors.abs().amax(dim=-1, keepdim=True)
    if not (largest > 0).all():
        raise ValueError(f"{name} hold a vector of zeros, which has no direction")
    vectors = vectors / largest
    return vectors / vectors.norm(dim=-1, keepdim=True)


class Interval(NamedTuple):
    """A mean with the ends of its interval."""

    mean: float
    low: float
    high: float


class Spread(NamedTuple):
    """A distance and how far it is from certain; which of several measures `spread` is, the function says."""

    distance: float
    spread: float


_SAMPLES_AT_ONCE = 4_000_000


def bootstrap_interval(values: Vectors, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of a mean (Efron and Tibshirani 1993, section 13.3), in float64.

    `values` are independent samples [N], N at least 2; images of one prompt are not independent: take one mean each.
    `level`, in (0, 1), is the share of resampled means within the interval. The same values and seed give the same
    interval everywhere. Raises ValueError for another shape, NaN or infinite values, and options out of range.
    """
    values = as_tensor(values)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"values must be [N] with N at least 2, not {list(values.shape)}")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level must lie between 0 and 1 and resamples be positive, not {level} and {resamples}")
    values, generator = as_finite(values, "values").cpu(), torch.Generator().manual_seed(seed)
    rows, means = max(1, _SAMPLES_AT_ONCE // len(values)), []
    for start in range(0, resamples, rows):
        shape = (min(rows, resamples - start), len(values))
        means.append(values[torch.randint(len(values), shape, generator=generator)].mean(dim=1))
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(torch.cat(means), ends).tolist()
    return Interval(float(values.mean()), low, high)
