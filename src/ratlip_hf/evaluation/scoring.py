"""Accumulators keep what is needed of images that pass by once: statistics of features, embeddings of CLIP,
predictions of judges. Scores are made from accumulators by the functions of `metrics`, each with its interval."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from typing import Protocol as Interface

import torch

from .. import metrics
from ..metrics import FeatureStatistics, Origins
from .features import FeatureExtractor
from .protocols import CANDIDATES

GROUPS = 10  # parts that are left out in turn to tell how certain a distance is
_FLUSH = 1024  # feature vectors that are gathered before they enter a covariance


@dataclass
class Batch:
    """Images [n, 3, H, W] in [-1, 1], the number of the first, the groups they belong to, and prompts, if known."""

    images: torch.Tensor
    first: int
    groups: Sequence[int]
    prompts: Sequence[str] | None = None


class Accumulator(Interface):
    """What all of them have in common."""

    def update(self, batch: Batch) -> None: ...

    def state(self) -> Any:
        """What is sent to other processes."""

    def merge(self, states: Sequence) -> None:
        """Take the states of all processes, by rank, in place of the own one."""


class FeatureAccumulator:
    """Features of one network: statistics of all images, in `GROUPS` parts by group, and the vectors [n, d] of the
    first `keep` images, in their order."""

    def __init__(self, extractor: FeatureExtractor, keep: int):
        self.extractor, self.keep = extractor, keep
        self.kept: list[torch.Tensor] = []
        self.waiting: list[list[torch.Tensor]] = [[] for _ in range(GROUPS)]
        self.parts = [self._merged() for _ in range(GROUPS)]

    def _merged(self, *parts: FeatureStatistics) -> FeatureStatistics:
        return FeatureStatistics.empty(self.extractor.dim).merge(*parts)

    def update(self, batch: Batch) -> None:
        features = self.extractor(batch.images).cpu()
        if (left := self.keep - batch.first) > 0:
            self.kept.append(features[:left])
        for vector, group in zip(features, batch.groups, strict=True):
            self.waiting[group % GROUPS].append(vector)
        self._flush(_FLUSH)

    def _flush(self, least: int) -> None:
        for statistics, vectors in zip(self.parts, self.waiting, strict=True):
            if len(vectors) >= least:
                statistics.update(torch.stack(vectors))
                vectors.clear()

    def state(self) -> tuple:
        self._flush(1)
        return self.parts, self.vectors

    def merge(self, states: Sequence[tuple]) -> None:
        groups, vectors = zip(*states, strict=True)
        self.parts = [self._merged(*parts) for parts in zip(*groups, strict=True)]
        self.kept = [torch.cat(vectors)[: self.keep]]

    @property
    def vectors(self) -> torch.Tensor:
        """The first vectors [n, d]."""
        return torch.cat(self.kept) if self.kept else torch.zeros(0, self.extractor.dim)

    @property
    def statistics(self) -> FeatureStatistics:
        """Of all images."""
        return self._merged(*self.parts)


class Embedder(Interface):
    """A [`~ratlip_hf.clip.FrozenCLIP`], or what scores images and prompts as one does."""

    source: str

    def encode(self, captions: list[str]) -> torch.Tensor: ...

    def embed_images(self, images: torch.Tensor) -> torch.Tensor: ...

    def describe(self) -> dict: ...


@dataclass
class CLIPAccumulator:
    """Of one CLIP: the first embeddings of images, and, where there are prompts, theirs and all cosines. `embed` takes
    the place of the CLIP's own `embed_images`, if given."""

    clip: Embedder
    keep: int
    embed: Callable[[torch.Tensor], torch.Tensor] | None = None
    images: list[torch.Tensor] = field(default_factory=list)
    texts: list[torch.Tensor] = field(default_factory=list)
    cosines: list[torch.Tensor] = field(default_factory=list)

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        images = (self.embed or self.clip.embed_images)(batch.images).float().cpu()
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


Judge = Any  # a network with `predict(images)`, labels [B, fields], and the fields' names in `config.reads`


@dataclass
class PredictionAccumulator:
    """What a group of judges, all of the same fields, predicts for all images."""

    judges: Sequence[Judge]
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


class PixelAccumulator:
    """Of the first `keep` images, if they are square: power by band and steps by place (`metrics.pixels`)."""

    def __init__(self, keep: int):
        self.keep = keep
        self.parts: list[tuple[torch.Tensor, torch.Tensor]] = []

    def update(self, batch: Batch) -> None:
        images = batch.images[: max(0, self.keep - batch.first)]
        if len(images) and images.shape[2] == images.shape[3]:
            self.parts.append((metrics.power_by_band(images).cpu(), metrics.steps_by_place(images).cpu()))

    def state(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return self.parts

    def merge(self, states: Sequence[list]) -> None:
        self.parts = [part for state in states for part in state]

    @property
    def side(self) -> int:
        """Of the images; 0 if there are none."""
        return self.parts[0][1].shape[1] + 1 if self.parts else 0

    @property
    def power(self) -> torch.Tensor:
        """[n, `metrics.BANDS`]."""
        return torch.cat([power for power, _ in self.parts])

    @property
    def steps(self) -> torch.Tensor:
        """[n, S - 1]."""
        return torch.cat([steps for _, steps in self.parts])


Scores = dict[str, dict[str, float]]


def set_scores(
    real: FeatureAccumulator, fake: FeatureAccumulator, origins: tuple[Origins, Origins], suffix: str = ""
) -> Scores:
    """Distances between two sets of images, and precision and recall, in one network's features; `origins` are those
    of the kept real and generated vectors."""
    looks_real, is_generated = metrics.precision_recall_hits(real.vectors, fake.vectors)
    scores = {
        "fid": _score(metrics.frechet_distance_with_error(real.parts, fake.parts)),
        "kid": _score(metrics.kernel_distance_with_error(real.vectors, fake.vectors, origins)),
        "precision": _mean(looks_real, origins[1]),
        "recall": _mean(is_generated, origins[0]),
    }
    return {name + suffix: score for name, score in scores.items()}


def pixel_scores(real: PixelAccumulator, fake: PixelAccumulator, origins: Origins, patch: int | None) -> Scores:
    """Power in each band, and steps at the joints of the generator's patches against inside, as shares of those of
    real images, which are taken as they are; `origins` are those of the kept generated images."""
    expected, shares = real.power.mean(dim=0), {}
    for band in range(metrics.BANDS):
        shares[f"power_{band + 1}_of_{metrics.BANDS}"] = fake.power[:, band] / expected[band]
    if patch:
        expected = metrics.steps_at_joints(real.steps, patch).mean()
        shares["steps_at_joints"] = metrics.steps_at_joints(fake.steps, patch) / expected
    return {name: _mean(values, origins) for name, values in shares.items()}


def clip_distance(real: CLIPAccumulator, fake: CLIPAccumulator, origins: tuple[Origins, Origins]) -> Scores:
    """The unbiased CMMD in the space of a CLIP."""
    return {"cmmd": _score(metrics.cmmd_with_error(torch.cat(real.images), torch.cat(fake.images), origins))}


def prompt_scores(fake: CLIPAccumulator, origins: Origins, seed: int, suffix: str = "") -> Scores:
    """The mean cosine of images and prompts, times 100, and R-precision among `CANDIDATES` others."""
    scores = {"clip_score": _mean(100 * torch.cat(fake.cosines), origins)}
    images, texts = torch.cat(fake.images), torch.cat(fake.texts)
    known = origins.prompts[: len(texts)].tolist()
    if len(set(known)) > CANDIDATES:
        mismatched = metrics.sample_mismatched(known, CANDIDATES, seed)
        scores["r_precision"] = _mean(metrics.r_precision(images, texts, texts, mismatched).per_sample, origins)
    return {name + suffix: score for name, score in scores.items()}


def diversity_scores(fake: FeatureAccumulator, real: FeatureAccumulator, origins: tuple[Origins, Origins]) -> Scores:
    """Mean distance between images of one prompt, as a share of that of real images of one prompt."""
    found, generated = (
        metrics.prompt_diversity(side.vectors, of.prompts[: len(side.vectors)].tolist())
        for side, of in zip((real, fake), origins, strict=True)
    )
    share = torch.tensor(list(generated.per_prompt.values()), dtype=torch.float64) / found.value
    groups = dict(zip(origins[1].prompts.tolist(), origins[1].groups.tolist(), strict=True))
    return {"diversity": _score(metrics.clustered_mean(share, [groups[prompt] for prompt in generated.per_prompt]))}


Reading = tuple[torch.Tensor, torch.Tensor, Sequence[str]]


def attribute_scores(readings: Sequence[Reading], origins: Origins) -> tuple[Scores, dict[str, list[float | None]]]:
    """How often judges find what prompts say, and the same for each prompt, for other tests than ours.

    A reading is of one group of judges: predictions [N, judges, fields], targets [N, fields] and the fields' names.
    Per field, over the prompts that name it; where all prompts name all fields of a group, also the mean over them
    and the share of images with all of them right; and the share of images with every named word of all groups right.
    """
    values: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for predictions, targets, fields in readings:
        hits, named = metrics.attribute_hits(predictions, targets), targets != metrics.UNNAMED
        everywhere = torch.ones(len(hits), dtype=torch.bool)
        if named.all():
            values["attribute_accuracy"] = hits.mean(dim=(1, 2)), everywhere
        for column, name in enumerate(fields):
            values[f"accuracy_{name}"] = hits[:, :, column].mean(dim=1), named[:, column]
        if named.all():
            values["all_parts_right"] = hits.prod(dim=2).mean(dim=1), everywhere
    right = metrics.words_right([(predictions, targets) for predictions, targets, _ in readings])
    values["all_words_right"] = right, torch.ones(len(right), dtype=torch.bool)
    scores, prompts = {}, {}
    for name, (hits, rows) in values.items():
        if rows.any():
            scores[name] = _mean(hits[rows], Origins(origins.prompts[rows], origins.groups[rows]))
            prompts[name] = _per_prompt(hits, rows, origins.prompts)
    return scores, prompts


def _per_prompt(values: torch.Tensor, rows: torch.Tensor, prompts: torch.Tensor) -> list[float | None]:
    """Means over the images of each prompt, in the order of their numbers; None where no row counts."""
    means = []
    for prompt in prompts.unique():
        own = values[rows & (prompts == prompt)]
        means.append(round(own.mean().item(), 4) if len(own) else None)
    return means


def _score(estimate: metrics.Spread) -> dict[str, float]:
    return metrics.interval(estimate)._asdict()


def _mean(values: torch.Tensor, origins: Origins) -> dict[str, float]:
    """Mean over images with its t interval, for which whole groups are sampled; alone where there is one group."""
    groups = origins.groups[: len(values)]
    if len(groups.unique()) < 2:
        return {"value": float(values.double().mean())}
    return _score(metrics.clustered_mean(values, groups))
