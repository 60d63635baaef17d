"""Accumulators keep what is needed of images that pass by once: statistics of features, embeddings of CLIP,
predictions of judges. Scores are made from accumulators by the functions of `metrics`, each with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from .. import metrics
from ..clip import FrozenCLIP, image_features_and_embeds
from ..metrics import FeatureStatistics
from .features import FeatureExtractor
from .protocols import CANDIDATES

GROUPS = 10  # parts that are left out in turn to tell how certain a distance is
_FLUSH = 1024  # feature vectors that are gathered before they enter a covariance


@dataclass
class Batch:
    """Images [n, 3, H, W] in [-1, 1], the number of the first, the clusters they belong to, and prompts, if known."""

    images: torch.Tensor
    first: int
    clusters: Sequence[int]
    prompts: Sequence[str] | None = None


# Each has `update(batch)`, `state()`, which is sent to other processes, and `merge(states)` of all of them by rank.


class FeatureAccumulator:
    """Features of one network: statistics of all images, in `GROUPS` groups by cluster, and the vectors [n, d] of the
    first `keep` images, in their order."""

    def __init__(self, extractor: FeatureExtractor, keep: int):
        self.extractor, self.keep = extractor, keep
        self.kept: list[torch.Tensor] = []
        self.waiting: list[list[torch.Tensor]] = [[] for _ in range(GROUPS)]
        self.groups = [self._merged() for _ in range(GROUPS)]

    def _merged(self, *parts: FeatureStatistics) -> FeatureStatistics:
        return FeatureStatistics.empty(self.extractor.dim).merge(*parts)

    def update(self, batch: Batch) -> None:
        features = self.extractor(batch.images).cpu()
        if (left := self.keep - batch.first) > 0:
            self.kept.append(features[:left])
        for vector, cluster in zip(features, batch.clusters, strict=True):
            self.waiting[cluster % GROUPS].append(vector)
        self._flush(_FLUSH)

    def _flush(self, least: int) -> None:
        for statistics, vectors in zip(self.groups, self.waiting, strict=True):
            if len(vectors) >= least:
                statistics.update(torch.stack(vectors))
                vectors.clear()

    def state(self) -> tuple:
        self._flush(1)
        return self.groups, self.vectors

    def merge(self, states: Sequence[tuple]) -> None:
        groups, vectors = zip(*states, strict=True)
        self.groups = [self._merged(*parts) for parts in zip(*groups, strict=True)]
        self.kept = [torch.cat(vectors)[: self.keep]]

    @property
    def vectors(self) -> torch.Tensor:
        """The first vectors [n, d]."""
        return torch.cat(self.kept) if self.kept else torch.zeros(0, self.extractor.dim)

    @property
    def statistics(self) -> FeatureStatistics:
        """Of all images."""
        return self._merged(*self.groups)


@dataclass
class CLIPAccumulator:
    """Of one CLIP: the first embeddings of images, and, where there are prompts, theirs and all cosines."""

    clip: FrozenCLIP
    keep: int
    clip_input: str = "clip"
    images: list[torch.Tensor] = field(default_factory=list)
    texts: list[torch.Tensor] = field(default_factory=list)
    cosines: list[torch.Tensor] = field(default_factory=list)

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        tower = self.clip.image_encoder
        images = batch.images.to(tower.device)
        images = image_features_and_embeds(tower, images, layers=(0,), clip_input=self.clip_input)[1].float().cpu()
        # An empty slice would keep the memory of the whole batch.
        left = self.keep - batch.first
        self.images += [images[:left]] if left > 0 else []
        if batch.prompts is not None:
            texts = self.clip.encode(list(batch.prompts)).float().cpu()
            self.texts += [texts[:left]] if left > 0 else []
            self.cosines.append(metrics.clip_score(images, texts, encoder=self.clip.source).per_sample)

    def state(self) -> tuple:
        return self.images, self.texts, self.cosines

    def merge(self, states: Sequence[tuple]) -> None:
        self.images, self.texts, self.cosines = (
            [x for part in parts for x in part] for parts in zip(*states, strict=True)
        )


@dataclass
class PredictionAccumulator:
    """What a group of judges, all of the same fields, predicts for all images."""

    judges: Sequence[nn.Module]
    parts: list[torch.Tensor] = field(default_factory=list)

    def update(self, batch: Batch) -> None:
        images = batch.images.to(next(self.judges[0].parameters()).device)
        self.parts.append(torch.stack([judge.predict(images) for judge in self.judges], dim=1).cpu())

    def state(self) -> list[torch.Tensor]:
        return self.parts

    def merge(self, states: Sequence[list[torch.Tensor]]) -> None:
        self.parts = [part for state in states for part in state]

    @property
    def predictions(self) -> torch.Tensor:
        """Labels [N, judges, fields]."""
        return torch.cat(self.parts)


Accumulator = FeatureAccumulator | CLIPAccumulator | PredictionAccumulator
Scores = dict[str, dict[str, float]]


def set_scores(real: FeatureAccumulator, fake: FeatureAccumulator, suffix: str = "") -> Scores:
    """Distances between two sets of images, and precision and recall, in one network's features."""
    looks_real, is_generated = metrics.precision_recall_hits(real.vectors, fake.vectors)
    groups = [group for group in fake.groups if group.count]
    scores = {
        "fid": _with_error(metrics.frechet_distance_with_error(real.statistics, groups)),
        "kid": _with_error(metrics.kernel_distance_with_error(real.vectors, fake.vectors)),
        "precision": _mean(looks_real),
        "recall": _mean(is_generated),
    }
    return {name + suffix: score for name, score in scores.items()}


def clip_distance(real: CLIPAccumulator, fake: CLIPAccumulator) -> Scores:
    """The unbiased CMMD in the space of a CLIP."""
    return {"cmmd": _with_error(metrics.cmmd_with_error(torch.cat(real.images), torch.cat(fake.images)))}


def prompt_scores(fake: CLIPAccumulator, clusters: Sequence[int], seed: int, suffix: str = "") -> Scores:
    """The mean cosine of images and prompts, times 100, and R-precision among `CANDIDATES` others."""
    scores = {"clip_score": _mean(100 * torch.cat(fake.cosines), clusters)}
    images, texts = torch.cat(fake.images), torch.cat(fake.texts)
    known = clusters[: len(texts)]
    if len(set(known)) > CANDIDATES:
        mismatched = metrics.sample_mismatched(known, CANDIDATES, seed)
        scores["r_precision"] = _mean(metrics.r_precision(images, texts, texts, mismatched).per_sample, known)
    return {name + suffix: score for name, score in scores.items()}


def diversity_scores(
    fake: FeatureAccumulator, clusters: Sequence[int], real: FeatureAccumulator, real_clusters: Sequence[int]
) -> Scores:
    """Mean distance between images of one prompt, as a share of that of real images of one prompt."""
    generated = metrics.prompt_diversity(fake.vectors, list(clusters[: len(fake.vectors)]))
    found = metrics.prompt_diversity(real.vectors, list(real_clusters[: len(real.vectors)]))
    share = torch.tensor(list(generated.per_prompt.values()), dtype=torch.float64) / found.value
    return {"diversity": _mean(share)}


def attribute_scores(
    predictions: torch.Tensor, targets: torch.Tensor, fields: Sequence[str], clusters: Sequence[int]
) -> Scores:
    """How often judges' predictions [N, judges, fields] are the targets [N, fields], per field over the prompts that
    name it. Where all name all fields, also the mean over fields and the share of images with all of them right."""
    hits, named, scores = metrics.attribute_hits(predictions, targets), targets != metrics.UNNAMED, {}
    if named.all():
        scores["attribute_accuracy"] = _mean(hits.mean(dim=(1, 2)), clusters)
    for column, name in enumerate(fields):
        if (rows := named[:, column]).any():
            own = torch.tensor(clusters)[rows].tolist()
            scores[f"accuracy_{name}"] = _mean(hits[rows, :, column].mean(dim=1), own)
    if named.all():
        scores["all_parts_right"] = _mean(hits.prod(dim=2).mean(dim=1), clusters)
    return scores


_TWO_SIDED = 1.96  # of the normal distribution, for an interval of 95 %


def _with_error(value: metrics.Spread) -> dict[str, float]:
    distance, error = value
    return {"value": distance, "low": distance - _TWO_SIDED * error, "high": distance + _TWO_SIDED * error}


def _mean(values: torch.Tensor, clusters: Sequence[int] | None = None) -> dict[str, float]:
    """Mean over images with its bootstrap interval, for which whole clusters are sampled where there are any."""
    value = float(values.double().mean())
    if clusters is not None:
        values = _cluster_means(values.double(), clusters)
    if len(values) < 2:
        return {"value": value}
    centre, low, high = metrics.bootstrap_interval(values)
    # Clusters of different sizes weigh the same in the interval only.
    return {"value": value, "low": low - centre + value, "high": high - centre + value}


def _cluster_means(values: torch.Tensor, clusters: Sequence[int]) -> torch.Tensor:
    _, places = torch.tensor(list(clusters)).unique(return_inverse=True)
    sums = torch.zeros(int(places.max()) + 1, dtype=values.dtype).index_add(0, places, values)
    return sums / places.bincount()
