"""Scores of images and their prompts: CLIP score, R-precision, diversity per prompt, and attribute accuracy."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from .common import Vectors, as_feature_pair, as_features, as_tensor, unit_length


@dataclass(frozen=True, eq=False)
class CLIPScore:
    """`cosine` in [-1, 1], `score` = 100 * cosine, `encoder`, and `per_sample` cosines [N] in float64."""

    cosine: float
    score: float
    encoder: str
    per_sample: torch.Tensor


def clip_score(image_embeds: Vectors, text_embeds: Vectors, *, encoder: str) -> CLIPScore:
    """Mean over pairs of cos(CLIP(image), CLIP(caption)), in float64, of projected embeddings [N, d] row by row.

    No value is clamped at 0 and there is no factor 2.5 (Hessel et al. 2021 have both); published values near 0.3 are
    `cosine`, those near 30 `score`. `encoder` says which CLIP it was, and is recorded with the score: scores of
    different encoders do not compare, and that of the CLIP a generator was trained with is the training signal, not a
    test. Raises ValueError for other shapes, NaN or infinite values, vectors of zeros, or no name of an encoder.
    """
    if not isinstance(encoder, str) or not encoder.strip():
        raise ValueError("a CLIP score needs the name of its encoder: pass encoder=")
    images, texts = as_feature_pair(image_embeds, text_embeds, paired=True)
    cosines = (unit_length(images) * unit_length(texts)).sum(dim=1)
    return CLIPScore(float(cosines.mean()), 100 * float(cosines.mean()), encoder, cosines)


@dataclass(frozen=True, eq=False)
class RPrecision:
    """`value` in [0, 1], and `per_sample` hits [N]: 1, 0, or the share of a tie."""

    value: float
    per_sample: torch.Tensor


def sample_mismatched(groups: Sequence[Hashable], count: int = 99, seed: int = 0) -> torch.Tensor:
    """For each of N captions sample `count` captions of other groups, without replacement: indices [N, count].

    The protocol of AttnGAN (Xu et al. 2018, section 4): 99 mismatched descriptions next to the true one. `groups` [N]
    are what each caption belongs to; whether that is an image or a class, as in that paper, is the caller's choice and
    part of the protocol. Raises ValueError where a group leaves fewer than `count`, which must be positive.
    """
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    labels = torch.tensor([numbers[group] for group in groups], dtype=torch.long)
    if count < 1 or not len(labels):
        raise ValueError(f"cannot sample {count} mismatched captions among {len(labels)}")
    most = int(labels.bincount().max())
    if len(labels) - most < count:
        raise ValueError(f"{count} mismatched captions are needed, but a group has only {len(labels) - most} others")
    generator, rows = torch.Generator().manual_seed(seed), []
    for label in labels:
        order = torch.randperm(len(labels), generator=generator)
        rows.append(order[labels[order] != label][:count])
    return torch.stack(rows)


def r_precision(
    image_embeds: Vectors, text_embeds: Vectors, candidate_embeds: Vectors, candidates: torch.Tensor
) -> RPrecision:
    """Share of images whose own caption has the largest cosine among it and K mismatched ones (R = 1), in float64.

    Takes embeddings [N, d] of images and of their own captions, embeddings [P, d] of a pool of captions, for example
    `text_embeds` again, and indices [N, K] of each image's mismatched captions in it, as from [`sample_mismatched`].
    In a tie of the own caption with t others the image counts 1 / (1 + t), the mean over fair ways to break it: an
    encoder that tells nothing apart gets the chance level 1 / (1 + K), not 1. Raises ValueError for other shapes,
    indices outside the pool, NaN or infinite values, or vectors of zeros.
    """
    images, texts = map(unit_length, as_feature_pair(image_embeds, text_embeds, paired=True))
    own = (images * texts).sum(dim=1)
    pool, candidates = _check_pool(candidate_embeds, candidates, images)
    # Row by row: the embeddings of all candidates at once would be K times the pool.
    rivals = torch.stack([pool[row] @ image for row, image in zip(candidates, images, strict=True)])
    # The same caption twice must tie exactly, however its two cosines were summed up.
    ties = (rivals - own[:, None]).abs() <= 1e-12
    beaten = ((rivals > own[:, None]) & ~ties).any(dim=1)
    hits = (~beaten).double() / (1 + ties.sum(dim=1))
    return RPrecision(float(hits.mean()), hits)


def _check_pool(pool: Vectors, candidates: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    pool, candidates = as_features(pool, name="candidate embeddings"), as_tensor(candidates)
    if pool.shape[1] != images.shape[1] or candidates.ndim != 2 or len(candidates) != len(images):
        shapes = f"{list(pool.shape)} and {list(candidates.shape)}"
        raise ValueError(f"the pool must be [P, {images.shape[1]}] and candidates [{len(images)}, K], not {shapes}")
    if (
        candidates.is_floating_point()
        or not candidates.numel()
        or not 0 <= candidates.min() <= candidates.max() < len(pool)
    ):
        raise ValueError(f"candidates must be indices of the {len(pool)} embeddings in the pool, at least one per row")
    return unit_length(pool), candidates.to(pool.device)


DISTANCES = ("euclidean", "cosine")


@dataclass(frozen=True)
class PromptDiversity:
    """`value`, at least 0, and `per_prompt`: the mean distance for each prompt, in the order of first appearance."""

    value: float
    per_prompt: dict[Hashable, float]


def prompt_diversity(features: Vectors, prompts: Sequence[Hashable], distance: str = "euclidean") -> PromptDiversity:
    """Mean distance over all pairs of different images of one prompt, averaged over prompts, in float64.

    Takes features [N, d] and what each image was generated for [N], every prompt at least twice; `distance` is
    "euclidean", or "cosine" for 1 - cos, which lies in [0, 2]. Every prompt weighs the same, however many images it
    has. The value has no scale of its own: divide by that of real images in the same features. Raises ValueError for
    other shapes or distances, a prompt with a single image, NaN or infinite values, or for "cosine" a vector of zeros.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {DISTANCES}, not {distance!r}")
    features = as_features(features)
    prompts = prompts.tolist() if isinstance(prompts, torch.Tensor) else list(prompts)
    if len(prompts) != len(features):
        raise ValueError(f"{len(features)} feature vectors need as many prompts, not {len(prompts)}")
    features = unit_length(features, "features") if distance == "cosine" else features
    rows: dict[Hashable, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    if lonely := [prompt for prompt, own in rows.items() if len(own) < 2]:
        raise ValueError(f"{len(lonely)} prompt(s) have a single image, for example {lonely[0]!r}; two are needed")
    values = {prompt: _mean_distance(features[own], distance) for prompt, own in rows.items()}
    return PromptDiversity(sum(values.values()) / len(values), values)


def _mean_distance(vectors: torch.Tensor, distance: str) -> float:
    lengths = torch.nn.functional.pdist(vectors)
    # Between unit vectors |x - y|^2 = 2 (1 - cos), without the cancellation of 1 - cos for neighbours.
    return float((lengths.square() / 2 if distance == "cosine" else lengths).mean())


UNNAMED = -1  # in place of a target that a prompt leaves open


def attribute_hits(predictions: Vectors, targets: Vectors) -> torch.Tensor:
    """Where labels agree: 1 or 0 in float64, shaped like `predictions`. All attribute accuracies are means of these.

    Predictions are integers, P attributes [N, P] of each of N images, or [N, J, P] of J judges; targets [N, P] are
    what prompts ask for, and where they are `UNNAMED` belong into no mean. ValueError for other shapes and numbers.
    """
    predictions, targets = as_tensor(predictions), as_tensor(targets)
    shape = predictions.shape[:1] + predictions.shape[-1:]
    if targets.ndim != 2 or predictions.ndim not in (2, 3) or shape != targets.shape or not predictions.numel():
        shapes = f"{list(predictions.shape)} and {list(targets.shape)}"
        raise ValueError(f"labels must be [N, P] both, or [N, J, P] and [N, P], not {shapes}")
    if any(labels.is_floating_point() or labels.is_complex() for labels in (predictions, targets)):
        raise ValueError("labels must be integers")
    targets = targets.to(predictions.device)
    return (predictions == (targets if predictions.ndim == 2 else targets[:, None])).double()


def words_right(readings: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The share of readings of each image [N] that find every named word right, in float64.

    A reading is one judge of each group. `readings` are, for each group, its predictions [N, J, P] and the targets
    [N, P] of its fields, as in [`attribute_hits`]; words that a prompt does not name (`UNNAMED`) cannot be wrong.
    """
    shares = []
    for predictions, targets in readings:
        hits = attribute_hits(predictions, targets)
        shares.append(torch.where(targets[:, None] == UNNAMED, 1.0, hits).prod(dim=2).mean(dim=1))
    return torch.stack(shares).prod(dim=0)


@dataclass(frozen=True)
class AttributeAccuracy:
    """Shares in [0, 1]: the `mean` over all attributes, for each of the `parts`, and of images with `all` right."""

    mean: float
    parts: dict[str, float]
    all: float


def attribute_accuracy(
    predictions: Vectors, targets: Vectors, parts: Sequence[str] | None = None
) -> AttributeAccuracy:
    """Share of attributes that agree. `parts` are names of the P attributes, "0", "1", ... unless given; labels and
    errors are as in [`attribute_hits`]."""
    hits = attribute_hits(predictions, targets)
    names = [str(index) for index in range(hits.shape[-1])] if parts is None else list(parts)
    if len(names) != hits.shape[-1]:
        raise ValueError(f"{hits.shape[-1]} attributes need as many names, not {len(names)}")
    hits = hits.reshape(-1, len(names))
    by_part = dict(zip(names, hits.mean(dim=0).tolist(), strict=True))
    return AttributeAccuracy(float(hits.mean()), by_part, float(hits.prod(dim=1).mean()))
