"""Scores of two sets of features: the Fréchet distance (FID) between them, seen as two Gaussians, and precision and
recall, the overlap of the two as unions of balls."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .common import Spread, Vectors, as_feature_pair, as_features, as_finite, as_tensor

# Beyond this share of the largest entry a matrix is no covariance that merely suffered from rounding to float32.
_ROUNDING = 1e-4
# Ratios of eigenvalues above which the fast decompositions lose no digit that counts.
_WELL_CONDITIONED = 1e-8
_BLOCK = 512  # vectors whose distances to all others are computed together


@dataclass(eq=False)
class FeatureStatistics:
    """Number, mean and scatter of feature vectors of width d; memory does not grow with their number.

    `scatter` is the sum of (x - mean)(x - mean)^T in float64. Batches are merged by the pairwise update of Chan,
    Golub and LeVeque (1983), which unlike sums of squares loses nothing when the mean is far from 0. Statistics of
    shards can be sent between processes and merged in any order; a fresh object of `empty` is neutral.
    """

    count: int
    mean: torch.Tensor
    scatter: torch.Tensor

    @classmethod
    def empty(cls, dim: int, device: torch.device | str | None = None) -> "FeatureStatistics":
        """Statistics of no vectors of width `dim`."""
        mean, scatter = (torch.zeros(size, dtype=torch.float64, device=device) for size in ((dim,), (dim, dim)))
        return cls(0, mean, scatter)

    @classmethod
    def of(cls, features: Vectors) -> "FeatureStatistics":
        """Statistics of vectors [N, d], N at least 1. Raises ValueError as [`as_features`]."""
        features = as_features(features)
        mean = features.mean(dim=0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def update(self, features: Vectors) -> "FeatureStatistics":
        """Add a batch [B, d]; one of no vectors changes nothing. Returns this object."""
        features = as_tensor(features)
        if features.ndim == 2 and not len(features) and features.shape[1] == len(self.mean):
            return self
        return self.merge(FeatureStatistics.of(features))

    def merge(self, *others: "FeatureStatistics") -> "FeatureStatistics":
        """Add the vectors of all `others`. Returns this object; raises ValueError for another width."""
        for other in others:
            if len(self.mean) != len(other.mean):
                raise ValueError(f"statistics of features [N, {len(self.mean)}] and [N, {len(other.mean)}] do not mix")
            if not other.count:
                continue
            total = self.count + other.count
            step = other.mean.to(self.mean.device) - self.mean
            weight = self.count * other.count / total
            self.scatter = self.scatter + other.scatter.to(self.mean.device) + weight * torch.outer(step, step)
            self.mean = self.mean + step * (other.count / total)
            self.count = total
        return self

    @property
    def covariance(self) -> torch.Tensor:
        """[d, d], divided by N - 1. Raises ValueError for fewer than two vectors."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two feature vectors, not {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(real: Vectors | FeatureStatistics, fake: Vectors | FeatureStatistics) -> float:
    """|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017, Eq. 6), in float64, covariances over N - 1.

    Takes features [N, d] and [M, d], or their [`FeatureStatistics`]; N and M, at least 2, may differ and be smaller
    than d. 0 for equal means and covariances, else positive; symmetric in its arguments; lower is better. The estimate
    is biased: it falls as N grows (Chong and Forsyth 2020), so that only values of equal N compare. Raises ValueError
    for other shapes, fewer than two vectors, NaN or infinite values.
    """
    if isinstance(real, FeatureStatistics) or isinstance(fake, FeatureStatistics):
        real, fake = (x if isinstance(x, FeatureStatistics) else FeatureStatistics.of(x) for x in (real, fake))
        return frechet_from_statistics(real.mean, real.covariance, fake.mean, fake.covariance)
    real, fake = as_feature_pair(real, fake, least=2)
    if max(len(real), len(fake)) > real.shape[1]:
        return frechet_distance(FeatureStatistics.of(real), FeatureStatistics.of(fake))
    # With few vectors their centred matrix is itself a root of the covariance, smaller and without rounding.
    roots = [(x - x.mean(dim=0)) / (len(x) - 1) ** 0.5 for x in (real, fake)]
    return _distance(real.mean(dim=0) - fake.mean(dim=0), *roots)


def frechet_distance_with_error(real: Sequence[FeatureStatistics], fake: Sequence[FeatureStatistics]) -> Spread:
    """[`frechet_distance`] of all parts together, with the standard error of a delete-a-group jackknife (Kott 2001).

    `real` and `fake` are the features in equally many parts, at least two, of about equal size; what belongs together
    must be in parts of one number, such as real and generated images of one prompt. Those are left out together: the
    error is that of taking other prompts, with their images. Raises ValueError for fewer than two parts or different
    numbers of them, and as [`frechet_distance`].
    """
    if len(real) != len(fake):
        raise ValueError(f"{len(real)} parts of real features do not go with {len(fake)} parts of generated ones")
    pairs = [pair for pair in zip(real, fake, strict=True) if any(side.count for side in pair)]
    if len(pairs) < 2:
        raise ValueError(f"a jackknife needs at least two parts, not {len(pairs)}")

    def distance(parts: Sequence[tuple[FeatureStatistics, FeatureStatistics]]) -> float:
        empty = FeatureStatistics.empty(len(real[0].mean), real[0].mean.device)
        return frechet_distance(*(copy.copy(empty).merge(*side) for side in zip(*parts, strict=True)))

    count = len(pairs)
    without = torch.tensor([distance([*pairs[:i], *pairs[i + 1 :]]) for i in range(count)], dtype=torch.float64)
    error = ((count - 1) / count * (without - without.mean()).square().sum()).sqrt()
    return Spread(distance(pairs), float(error), count - 1)


def frechet_from_statistics(mean1: Vectors, cov1: Vectors, mean2: Vectors, cov2: Vectors) -> float:
    """[`frechet_distance`] from means [d] and covariances [d, d], of any rank.

    Raises ValueError for other shapes, NaN or infinite values, and matrices that are no covariances: not symmetric, or
    with a negative eigenvalue that rounding does not explain.
    """
    mean1, mean2 = (as_finite(as_tensor(mean), "means") for mean in (mean1, mean2))
    cov1, cov2 = (as_finite(as_tensor(cov), "covariances") for cov in (cov1, cov2))
    dim = len(mean1) if mean1.ndim == 1 else 0
    if not dim or mean2.shape != (dim,) or cov1.shape != (dim, dim) or cov2.shape != (dim, dim):
        shapes = ", ".join(str(list(x.shape)) for x in (mean1, cov1, mean2, cov2))
        raise ValueError(f"statistics must be mean [d], covariance [d, d], mean [d], covariance [d, d], not {shapes}")
    root1 = _root(cov1)
    return _distance(mean1 - mean2, root1, root1 if torch.equal(cov1, cov2) else _root(cov2))


def _distance(step: torch.Tensor, root1: torch.Tensor, root2: torch.Tensor) -> float:
    """The distance from roots R with R^T R = C, [r, d] each, of any heights."""
    spread1, spread2 = root1.square().sum(), root2.square().sum()
    if torch.equal(root1, root2):
        return float(step.square().sum())
    # (C1 C2)^(1/2) has the eigenvalues of (S1 C2 S1)^(1/2), S1 = C1^(1/2): the singular values of R1 R2^T. Taken from
    # them, no eigenvalue that should be 0 has to pass through a square root, which would make 1e-8 of 1e-16.
    overlap = _singular_values(root1 @ root2.T).sum()
    return max(0.0, float(step.square().sum() + spread1 + spread2 - 2 * overlap))


def _singular_values(matrix: torch.Tensor) -> torch.Tensor:
    # From the eigenvalues of its square where none is small: several times as fast, and then as exact.
    if matrix.shape[0] == matrix.shape[1] > 0:
        squares = torch.linalg.eigvalsh(matrix @ matrix.T)
        if squares[0] > _WELL_CONDITIONED * squares[-1]:
            return squares.sqrt()
    return torch.linalg.svdvals(matrix)


def _root(covariance: torch.Tensor) -> torch.Tensor:
    """R [r, d] with R^T R = covariance [d, d] of rank r, by its symmetric eigendecomposition.

    Where no eigenvalue is near 0 any root does, and Cholesky's is many times as fast.
    """
    scale = float(covariance.abs().max())
    if float((covariance - covariance.T).abs().max()) > _ROUNDING * scale:
        raise ValueError("a covariance must be symmetric")
    covariance = (covariance + covariance.T) / 2
    triangle, failed = torch.linalg.cholesky_ex(covariance)
    if not failed and float(triangle.diagonal().square().min()) > _WELL_CONDITIONED * scale:
        return triangle.T
    values, vectors = torch.linalg.eigh(covariance)
    if float(values[0]) < -_ROUNDING * scale:
        raise ValueError(f"a covariance has no negative eigenvalues; this matrix has {float(values[0]):.3g}")
    # Smaller ones are rounding of the decomposition.
    kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1].clamp(min=0)
    return values[kept].sqrt()[:, None] * vectors[:, kept].T


class PrecisionRecall(NamedTuple):
    """Both in [0, 1]: how much of the generated set looks real, and how much of the real one is generated."""

    precision: float
    recall: float


def precision_recall(real: Vectors, fake: Vectors, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, Eqs. 1-3), in float64.

    Each vector of a set gets a ball that reaches to its k-th nearest neighbour in the set, the surface included.
    Precision is the share of generated vectors within a ball of the real set, recall the share of real ones within a
    ball of the generated set. Both depend on the numbers of features, N [N, d] and M [M, d], which must be above k:
    compare equal ones only. Raises ValueError for other shapes, NaN or infinite values, or a k that is not positive.
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
