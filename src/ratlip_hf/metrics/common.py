"""What all metrics share: checks of features, which become float64, and how certain a value is."""

import math
from collections.abc import Sequence
from functools import lru_cache
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


class Spread(NamedTuple):
    """A distance and how far it is from certain; which of several measures `spread` is, the function says. For a
    standard error `freedom` are its degrees of freedom."""

    distance: float
    spread: float
    freedom: int | None = None


class Interval(NamedTuple):
    """A value with the ends of its interval."""

    value: float
    low: float
    high: float


def interval(estimate: Spread, level: float = 0.95) -> Interval:
    """The t interval of an estimate with a standard error; `level` is the share of intervals that hold the truth."""
    half = student_t(level, estimate.freedom) * estimate.spread
    return Interval(estimate.distance, estimate.distance - half, estimate.distance + half)


def clustered_mean(values: Vectors, clusters: Sequence[int] | torch.Tensor) -> Spread:
    """The mean of values [N] with its standard error when whole clusters [N] are sampled, not single values.

    The mean is a ratio of two sums over clusters, linearised (Cochran 1977, section 6.4): clusters of any sizes weigh
    by their sizes. At least two clusters. Raises ValueError for other shapes, NaN or infinite values.
    """
    values, places = as_tensor(values), torch.as_tensor(clusters).unique(return_inverse=True)[1]
    count = int(places.max()) + 1 if len(places) else 0
    if values.ndim != 1 or len(values) != len(places) or count < 2:
        raise ValueError(f"values must be [N] of at least 2 clusters [N], not {list(values.shape)} of {count}")
    values = as_finite(values, "values").cpu()
    mean = values.mean()
    residuals = values.new_zeros(count).index_add(0, places, values - mean)
    error = (count / (count - 1) * residuals.square().sum()).sqrt() / len(values)
    return Spread(float(mean), float(error), count - 1)


_STEPS = 40_000


@lru_cache
def student_t(level: float, freedom: int) -> float:
    """How many standard errors a two-sided interval of Student's t has on either side, to six digits.

    With x = sqrt(n) tan(a) the density becomes cos(a)^(n-1), which is summed up to `level` of its whole.
    Raises ValueError for a level outside (0, 1) or no degree of freedom.
    """
    if not 0 < level < 1 or freedom < 1:
        raise ValueError(f"level must lie between 0 and 1 and freedom be positive, not {level} and {freedom}")
    # Beyond twelve standard deviations of a wide distribution nothing is left to sum.
    angles = np.linspace(0, min(math.pi / 2, 12 / math.sqrt(freedom)), _STEPS + 1)
    density = np.cos(angles) ** (freedom - 1)
    whole = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(np.interp(level * whole[-1], whole, angles))
