"""Precision and recall of generated pictures: the overlap of two sets of features as unions of balls.
Owns the balls; distances are computed exactly, not from inner products, so that equal vectors are at distance 0."""

from typing import NamedTuple

import torch

from .checks import Vectors, as_feature_pair

_BLOCK = 512


class PrecisionRecall(NamedTuple):
    """Both in [0, 1]: how much of the generated set looks real, and how much of the real one is generated."""

    precision: float
    recall: float


def precision_recall(real: Vectors, fake: Vectors, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, Eqs. 1-3), in float64.

    Each vector of a set gets a ball that reaches to its k-th nearest neighbour in the set, the surface included.
    Precision is the share of generated vectors within a ball of the real set, recall the share of real ones within a
    ball of the generated set. Both depend on N and M: compare equal numbers only.

    Args:
        real: features [N, d], N above k.
        fake: features [M, d], M above k.
        k: the neighbour that sets the radius; a vector is no neighbour of itself.

    Raises:
        ValueError: for other shapes, too few vectors, NaN or infinite values, or a k that is not positive.
    """
    looks_real, is_generated = precision_recall_hits(real, fake, k)
    return PrecisionRecall(float(looks_real.mean()), float(is_generated.mean()))


def precision_recall_hits(real: Vectors, fake: Vectors, k: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """What [`precision_recall`] takes the means of: 1 or 0 for each generated vector [M] and each real one [N]."""
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    real, fake = as_feature_pair(real, fake, least=k + 1)
    return _within(fake, real, _radii(real, k)), _within(real, fake, _radii(fake, k))


def _distances(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(vectors: torch.Tensor, k: int) -> torch.Tensor:
    # The smallest distance of all, 0, is that of the vector to itself: the k-th neighbour comes k places later.
    return torch.cat([_distances(part, vectors).kthvalue(k + 1, dim=1).values for part in vectors.split(_BLOCK)])


def _within(points: torch.Tensor, centres: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
    within = [(_distances(part, centres) <= radii).any(dim=1) for part in points.split(_BLOCK)]
    return torch.cat(within).double()
