"""From what the observers kept to named scores with intervals.
Owns the names of scores and which interval goes with which; the formulas are in `metrics`."""

from collections.abc import Sequence

import torch

from ..metrics import (
    bootstrap_interval,
    cmmd_with_error,
    draw_mismatched,
    frechet_distance_with_error,
    kernel_distance_with_error,
    precision_recall_hits,
    prompt_diversity,
    r_precision,
)
from .material import FIELDS, UNNAMED
from .observers import CLIPView, FeatureSet
from .protocols import CANDIDATES

Scores = dict[str, dict[str, float]]
# Of the normal distribution, for an interval of 95 %.
_TWO_SIDED = 1.96


def set_scores(real: FeatureSet, fake: FeatureSet, suffix: str = "") -> Scores:
    """Distances between two sets of pictures, and precision and recall, in one network's features."""
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
    """The mean cosine of pictures and sentences, times 100, and R-precision among `CANDIDATES` others."""
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
    """Mean distance between pictures of one prompt, as a share of that of real pictures of one prompt."""
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
        clusters: number of the prompt of each picture.
    """
    scores = {}
    for column, name in enumerate(fields):
        named = wanted[:, column] != UNNAMED
        if named.any():
            hits = (words[named, :, column] == wanted[named, column, None]).double().mean(dim=1)
            scores[f"accuracy_{name}"] = _mean(hits, torch.tensor(clusters)[named].tolist())
    return scores


def colour_scores(words: torch.Tensor, wanted: torch.Tensor, parts: Sequence[str], clusters: Sequence[int]) -> Scores:
    """[`reading_scores`] of parts that every prompt names, their mean, and pictures with all of them right."""
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
    """Mean over pictures with its bootstrap interval, for which whole clusters are drawn where there are any."""
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
