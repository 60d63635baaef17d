"""What is kept of pictures that pass by once: statistics of features, fit to sentences, words that judges read.
Owns the accumulation, batch by batch and process by process; no picture is kept, and scores are made in `scores`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from ..features import FeatureExtractor
from ..frozen_clip import FrozenCLIP
from ..metrics import FeatureStatistics
from ..models.clip import image_features_and_embeds
from ..synthetic_birds.judge import BirdJudge

GROUPS = 10  # parts that are left out in turn to tell how certain a distance is
_FLUSH = 1024  # feature vectors that are gathered before they enter a covariance


@dataclass
class Batch:
    """Pictures [n, 3, H, W] in [-1, 1] with their numbers, the clusters they belong to, and prompts, if known."""

    images: torch.Tensor
    first: int
    clusters: Sequence[int]
    prompts: Sequence[str] | None = None


@dataclass
class FeatureSet:
    """Features of one network: statistics of all pictures, in `GROUPS` groups by cluster, and the first vectors.

    Args:
        extractor: the network; not sent between processes.
        keep: number of pictures from the start whose vectors are kept.
        kept: those vectors, [n, d] float32, in the order of the pictures.
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
        """Of all pictures."""
        return _merged(self.groups)


def _merged(parts: Sequence[FeatureStatistics]) -> FeatureStatistics:
    merged = FeatureStatistics.empty(len(parts[0].mean))
    for part in parts:
        merged.merge(part)
    return merged


@dataclass
class CLIPView:
    """What a CLIP sees: the first embeddings of pictures, and, where there are sentences, those and all cosines."""

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
    """What judges read off the pictures: words [N, judges, fields]."""

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
