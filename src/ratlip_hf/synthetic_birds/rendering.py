"""Batches of renders as tensors, and which seeds belong to which purpose so that no two purposes share a picture.
Owns the seed ranges; used by the data set, both scorers' training and the measurements."""

import random

import numpy as np
import torch

from .attributes import BirdAttributes, sample_attributes
from .renderer import render_bird

_PURPOSES = ("train", "test", "clip", "clip_check", "judge", "judge_check", "prompts")
_PICTURES_PER_SEED = 10**7
_SEEDS_PER_PURPOSE = 10**4
_WORDING_OFFSET = 2**60


def first_render_seed(purpose: str, seed: int) -> int:
    """The first of ten million render seeds reserved for a purpose and a user's seed (0 to 9999)."""
    if not 0 <= seed < _SEEDS_PER_PURPOSE:
        raise ValueError(f"seed must lie in 0..{_SEEDS_PER_PURPOSE - 1}; got {seed}")
    return (_PURPOSES.index(purpose) * _SEEDS_PER_PURPOSE + seed) * _PICTURES_PER_SEED


def sample_birds(purpose: str, seed: int, count: int, split: str | None) -> tuple[list[BirdAttributes], list[int]]:
    """Attributes of `count` birds of a split (None: any colours) and the seeds to render them with."""
    first = first_render_seed(purpose, seed)
    rng = random.Random(first)
    return [sample_attributes(rng, split) for _ in range(count)], list(range(first, first + count))


def wording_rng(render_seed: int) -> random.Random:
    """The generator for the captions of one render; not the render's own, or wording and pose would go together."""
    return random.Random(_WORDING_OFFSET + render_seed)


def render_pixels(birds: list[BirdAttributes], seeds: list[int], image_size: int = 64) -> torch.Tensor:
    """Render birds into a uint8 tensor [N, 3, image_size, image_size]."""
    pictures = [np.asarray(render_bird(bird, seed, image_size)) for bird, seed in zip(birds, seeds, strict=True)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
