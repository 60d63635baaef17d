"""What is kept of images that pass by once: statistics of features, fit to sentences, words that judges read.
From what the observers kept to named scores with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from ..clip import FrozenCLIP, image_features_and_embeds
from ..features import FeatureExtractor
from ..metrics import (
    FeatureStatistics,
    bootstrap_interval,
    cmmd_with_error,
    draw_mismatched,
    frechet_distance_with_error,
    kernel_distance_with_error,
    precision_recall_hits,
    prompt_diversity,
    r_precision,
)
from ..synthetic_birds.judge import BirdJudge
from .inputs import FIELDS, UNNAMED
from .protocols import CANDIDATES

GROUPS = 10  # parts that are left out in turn to tell how certain a distance is
_FLUSH = 1024  # feature vectors that are gathered before they enter a covariance


@dataclass
class Batch:
    """Images [n, 3, H, W] in [-1, 1] with their numbers, the clusters they belong to, and prompts, if known."""

    images: torch.Tensor
    first: int
    clusters: Sequence[int]
    prompts: Sequence[str] | None = None


@dataclass
class FeatureSet:
    """Features of one network: statistics of all images, in `GROUPS` groups by cluster, and the first vectors.

    Args:
        extractor: the network; not sent between processes.
        keep: number of images from the start whose vectors are kept.
        kept: those vectors, [n, d] float32, in the order of the images.
        groups: the statistics.
    """

    extractor: FeatureExtractor
    keep: int
    kept: list[torch.Tensor] = field(default_factory=list)
    groups: list[FeatureStatistics] = field(default_factory=list)
    waiting: list[list[torch.Tensor]] = field(default_factory=lambda: [[] for _ in range(GROUPS)])

    def __post_init__(self):
        self.groups = self.groups or [FeatureStatistics.empty(self.extractor.dim) for _ in range(GROUPS)]

    def observe(self, batch: Batch) -> None:
        features = self.extractor(batch.images).cpu()
        if (wanted := self.keep - batch.first) > 0:
            self.kept.append(features[:wanted])
        for vector, cluster in zip(features, batch.clusters, strict=True):
            self.waiting[cluster % GROUPS].append(vector)
        self._flush(_FLUSH)

    def _flush(self, least: int) -> None:
        for statistics, vectors in zip(self.groups, self.waiting, strict=True):
            if vectors and len(vectors) >= least:
                statistics.update(torch.stack(vectors))
                vectors.clear()

    def state(self) -> tuple:
        """What other processes need."""
        self._flush(1)
        return self.groups, self.vectors

    def merge(self, states: Sequence[tuple]) -> None:
        """Put the states of all processes together, in the order of ranks."""
        groups = zip(*(state[0] for state in states), strict=True)
        self.groups = [_merged(parts) for parts in groups]
        self.kept = [torch.cat([state[1] for state in states])[: self.keep]]

    @property
    def vectors(self) -> torch.Tensor:
        """The first vectors [n, d]."""
        return torch.cat(self.kept) if self.kept else torch.zeros(0, self.extractor.dim)

    @property
    def statistics(self) -> FeatureStatistics:
        """Of all images."""
        return _merged(self.groups)


def _merged(parts: Sequence[FeatureStatistics]) -> FeatureStatistics:
    merged = FeatureStatistics.empty(len(parts[0].mean))
    for part in parts:
        merged.merge(part)
    return merged


@dataclass
class CLIPView:
    """What a CLIP sees: the first embeddings of images, and, where there are sentences, those and all cosines."""

    clip: FrozenCLIP
    keep: int
    clip_input: str = "clip"
    images: list[torch.Tensor] = field(default_factory=list)
    texts: list[torch.Tensor] = field(default_factory=list)
    cosines: list[torch.Tensor] = field(default_factory=list)

    @torch.no_grad()
    def observe(self, batch: Batch) -> None:
        tower = self.clip.image_encoder
        images = batch.images.to(tower.device)
        images = image_features_and_embeds(tower, images, layers=(0,), clip_input=self.clip_input)[1].float().cpu()
        # An empty slice would keep the memory of the whole batch.
        wanted = self.keep - batch.first
        self.images += [images[:wanted]] if wanted > 0 else []
        if batch.prompts is not None:
            texts = self.clip.encode(list(batch.prompts)).float().cpu()
            self.texts += [texts[:wanted]] if wanted > 0 else []
            self.cosines.append(F.cosine_similarity(images.double(), texts.double()))

    def state(self) -> tuple:
        return self.images, self.texts, self.cosines

    def merge(self, states: Sequence[tuple]) -> None:
        self.images, self.texts, self.cosines = (
            [x for part in parts for x in part] for parts in zip(*states, strict=True)
        )


@dataclass
class Readings:
    """What judges read off the images: words [N, judges, fields]."""

    judges: Sequence[BirdJudge]
    words: list[torch.Tensor] = field(default_factory=list)

    def observe(self, batch: Batch) -> None:
        device = next(self.judges[0].parameters()).device
        images = batch.images.to(device)
        self.words.append(torch.stack([judge.read(images) for judge in self.judges], dim=1).cpu())

    def state(self) -> list[torch.Tensor]:
        return self.words

    def merge(self, states: Sequence[list[torch.Tensor]]) -> None:
        self.words = [words for state in states for words in state]


Scores = dict[str, dict[str, float]]
# Of the normal distribution, for an interval of 95 %.
_TWO_SIDED = 1.96


def set_scores(real: FeatureSet, fake: FeatureSet, suffix: str = "") -> Scores:
    """Distances between two sets of images, and precision and recall, in one network's features."""
    fid = frechet_distance_with_error(real.statistics, [group for group in fake.groups if group.count])
    kid = kernel_distance_with_error(real.vectors, fake.vectors)
    looks_real, is_generated = precision_recall_hits(real.vectors, fake.vectors)
    scores = {
        "fid": _with_error(*fid),
        "kid": _with_error(*kid),
        "precision": _mean(looks_real),
        "recall": _mean(is_generated),
    }
    return {name + suffix: score for name, score in scores.items()}


def clip_distance(real: CLIPView, fake: CLIPView) -> Scores:
    """The unbiased CMMD in the space of a CLIP."""
    return {"cmmd": _with_error(*cmmd_with_error(torch.cat(real.images), torch.cat(fake.images)))}


def prompt_scores(fake: CLIPView, clusters: Sequence[int], seed: int, suffix: str = "") -> Scores:
    """The mean cosine of images and sentences, times 100, and R-precision among `CANDIDATES` others."""
    scores = {"clip_score": _mean(100 * torch.cat(fake.cosines), clusters)}
    images, texts = torch.cat(fake.images), torch.cat(fake.texts)
    known = clusters[: len(texts)]
    if len(set(known)) > CANDIDATES:
        hits = r_precision(images, texts, texts, draw_mismatched(known, CANDIDATES, seed)).per_sample
        scores["r_precision"] = _mean(hits, known)
    return {name + suffix: score for name, score in scores.items()}


def diversity_scores(
    fake: FeatureSet, clusters: Sequence[int], real: FeatureSet, real_clusters: Sequence[int]
) -> Scores:
    """Mean distance between images of one prompt, as a share of that of real images of one prompt."""
    drawn, found = (
        prompt_diversity(seen.vectors, list(which[: len(seen.vectors)]))
        for seen, which in ((fake, clusters), (real, real_clusters))
    )
    share = torch.tensor(list(drawn.per_prompt.values()), dtype=torch.float64) / found.value
    return {"diversity": _mean(share)}


def reading_scores(
    words: torch.Tensor, wanted: torch.Tensor, fields: Sequence[str], clusters: Sequence[int]
) -> Scores:
    """How often judges read the word that the prompt asks for, per field, of the prompts that name it.

    Args:
        words: [N, judges, fields] as read.
        wanted: [N, fields] as asked for, or `UNNAMED`.
        fields: their names.
        clusters: number of the prompt of each image.
    """
    scores = {}
    for column, name in enumerate(fields):
        named = wanted[:, column] != UNNAMED
        if named.any():
            hits = (words[named, :, column] == wanted[named, column, None]).double().mean(dim=1)
            scores[f"accuracy_{name}"] = _mean(hits, torch.tensor(clusters)[named].tolist())
    return scores


def colour_scores(words: torch.Tensor, wanted: torch.Tensor, parts: Sequence[str], clusters: Sequence[int]) -> Scores:
    """[`reading_scores`] of parts that every prompt names, their mean, and images with all of them right."""
    hits = (words == wanted[:, None]).double()
    return {
        "attribute_accuracy": _mean(hits.mean(dim=(1, 2)), clusters),
        **reading_scores(words, wanted, parts, clusters),
        "all_parts_right": _mean(hits.prod(dim=2).mean(dim=1), clusters),
    }


def columns(fields: Sequence[str]) -> list[int]:
    """Where fields stand in `Material.wanted`."""
    return [FIELDS.index(name) for name in fields]


def _with_error(value: float, error: float) -> dict[str, float]:
    return {"value": value, "low": value - _TWO_SIDED * error, "high": value + _TWO_SIDED * error}


def _mean(values: torch.Tensor, clusters: Sequence[int] | None = None) -> dict[str, float]:
    """Mean over images with its bootstrap interval, for which whole clusters are drawn where there are any."""
    value = float(values.double().mean())
    if clusters is not None:
        values = _cluster_means(values.double(), clusters)
    if len(values) < 2:
        return {"value": value}
    centre, low, high = bootstrap_interval(values)
    # Clusters of different sizes weigh the same in the interval only.
    return {"value": value, "low": low - centre + value, "high": high - centre + value}


def _cluster_means(values: torch.Tensor, clusters: Sequence[int]) -> torch.Tensor:
    _, places = torch.tensor(list(clusters)).unique(return_inverse=True)
    sums = torch.zeros(int(places.max()) + 1, dtype=values.dtype).index_add(0, places, values)
    return sums / places.bincount()
