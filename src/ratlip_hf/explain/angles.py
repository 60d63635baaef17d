"""The paper's Fig. 5 as a measurement: which way features move when a word is edited, beside random word swaps."""

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F


def degrees_between(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Angles of vectors [..., d] in degrees, 0 to 180."""
    cosine = (F.normalize(first, dim=-1) * F.normalize(second, dim=-1)).sum(dim=-1)
    return torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))


def edit_angles(
    before: torch.Tensor,
    after: torch.Tensor,
    swapped: Sequence[torch.Tensor],
    centre: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> dict[str, float]:
    """Angles, in degrees, of features [N, d] of images made with the same noise before and after an edit.

    Args:
        before, after: row by row of the same noise.
        swapped: the same for random swaps of a word, each [N, d].
        centre, scale: [d], subtracted from features and then divided by. Angles of raw features mostly measure what
            all images share; centring takes it away. Differences of features, the last two lines, only feel `scale`.

    Returns:
        edit: mean angle between an image before and after. swap: the same over random swaps.
        seeds: mean angle between images of different noise and the same words, the yardstick for both.
        direction: mean angle between an edit's way with one noise and with another: 0 if a word always does the same,
            90 if the ways have nothing in common. direction_swap: between an edit's way and that of random swaps.
    """
    ready = [_prepared(value, centre, scale) for value in (before, after, *swapped)]
    start, ends = ready[0], ready[1:]
    ways = [end - start for end in ends]
    roll = [torch.roll(value, 1, dims=0) for value in (start, ways[0])]
    found = {
        "edit": degrees_between(start, ends[0]),
        "swap": torch.cat([degrees_between(start, end) for end in ends[1:]]),
        "seeds": degrees_between(start, roll[0]),
        "direction": degrees_between(ways[0], roll[1]),
        "direction_swap": torch.cat([degrees_between(ways[0], way) for way in ways[1:]]),
    }
    return {name: float(values.mean()) for name, values in found.items()}


def _prepared(features: torch.Tensor, centre: torch.Tensor | None, scale: torch.Tensor | None) -> torch.Tensor:
    features = features.double() if centre is None else features.double() - centre.double()
    return features if scale is None else features / scale.double().clamp(min=1e-12)


def random_swaps(prompt: str, words: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """The prompt with a random word replaced by another of `words`, `count` times."""
    rng, parts = random.Random(seed), prompt.split()
    swaps = []
    for _ in range(count):
        place = rng.randrange(len(parts))
        others = [word for word in words if word != parts[place]]
        swaps.append(" ".join([*parts[:place], rng.choice(others), *parts[place + 1 :]]))
    return swaps
