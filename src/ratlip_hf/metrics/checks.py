"""What every metric asks of its features: two axes, one width, finite numbers, raised to float64.
Owns these checks and their messages."""

from collections.abc import Sequence

import numpy as np
import torch

Vectors = torch.Tensor | np.ndarray | Sequence


def as_tensor(values: Vectors) -> torch.Tensor:
    """A tensor, an array or nested lists as a tensor; lists of floats become float64, where torch would round them."""
    return values if isinstance(values, torch.Tensor) else torch.as_tensor(np.asarray(values))


def as_features(features: Vectors, least: int = 1, name: str = "features") -> torch.Tensor:
    """Feature vectors [N, d] as float64, on the device they are on; a tensor, an array or nested lists.

    Raises:
        ValueError: for another shape, fewer than `least` vectors, complex numbers, NaN or infinite values.
    """
    features = as_tensor(features)
    if features.ndim != 2 or len(features) < least or not features.shape[1]:
        raise ValueError(f"{name} must be [N, d] with N at least {least}, not {list(features.shape)}")
    return as_finite(features, name)


def as_feature_pair(first: Vectors, second: Vectors, least: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of feature vectors [N, d] and [M, d] as float64.

    Raises:
        ValueError: as [`as_features`], and for sets of different widths.
    """
    first, second = as_tensor(first), as_tensor(second)
    fits = first.ndim == second.ndim == 2 and first.shape[1] == second.shape[1] > 0
    if not fits or min(len(first), len(second)) < least:
        shapes = f"{list(first.shape)} and {list(second.shape)}"
        raise ValueError(f"features must be [N, d] and [M, d] with N and M at least {least}, not {shapes}")
    return as_finite(first, "features"), as_finite(second, "features")


def as_paired_features(first: Vectors, second: Vectors, names: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of feature vectors [N, d] that belong together row by row, as float64.

    Raises:
        ValueError: as [`as_feature_pair`], and for sets of different sizes.
    """
    first, second = as_tensor(first), as_tensor(second)
    if first.shape != second.shape:
        shapes = f"{list(first.shape)} and {list(second.shape)}"
        raise ValueError(f"{names} belong together row by row and must be [N, d] both, not {shapes}")
    return as_features(first, name=names), as_features(second, name=names)


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
