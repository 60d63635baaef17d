"""Per-prompt diversity: how far apart the pictures of one prompt lie, for models that follow a prompt too closely.
Owns the figure; in which features distances are taken is the caller's protocol."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from .checks import Vectors, as_features, unit_length

DISTANCES = ("euclidean", "cosine")


@dataclass(frozen=True)
class PromptDiversity:
    """`value`, at least 0, and `per_prompt`: the mean distance for each prompt, in the order of first appearance."""

    value: float
    per_prompt: dict[Hashable, float]


def prompt_diversity(features: Vectors, prompts: Sequence[Hashable], distance: str = "euclidean") -> PromptDiversity:
    """Mean distance over all pairs of different pictures of one prompt, averaged over prompts, in float64.

    Every prompt weighs the same, however many pictures it has. The figure has no scale of its own: divide by that of
    real pictures in the same features.

    Args:
        features: [N, d].
        prompts: what picture n was drawn for, [N]; each prompt at least twice.
        distance: "euclidean", or "cosine" for 1 - cos, which lies in [0, 2].

    Raises:
        ValueError: for other shapes, a prompt with a single picture, an unknown distance, NaN or infinite values, or
            for "cosine" a vector of zeros.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {DISTANCES}, not {distance!r}")
    features = as_features(features, least=2)
    prompts = prompts.tolist() if isinstance(prompts, torch.Tensor) else list(prompts)
    if len(prompts) != len(features):
        raise ValueError(f"{len(features)} feature vectors need as many prompts, not {len(prompts)}")
    features = unit_length(features, "features") if distance == "cosine" else features
    rows: dict[Hashable, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    if lonely := [prompt for prompt, own in rows.items() if len(own) < 2]:
        raise ValueError(f"{len(lonely)} prompt(s) have a single picture, for example {lonely[0]!r}; two are needed")
    values = {prompt: _mean_distance(features[own], distance) for prompt, own in rows.items()}
    return PromptDiversity(sum(values.values()) / len(values), values)


def _mean_distance(vectors: torch.Tensor, distance: str) -> float:
    lengths = torch.nn.functional.pdist(vectors)
    # Between unit vectors |x - y|^2 = 2 (1 - cos), without the cancellation of 1 - cos for neighbours.
    return float((lengths.square() / 2 if distance == "cosine" else lengths).mean())
