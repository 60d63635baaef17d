"""Maps against masks: the pointing game and the energy inside (arXiv 1608.00507, 1910.01279)."""

import torch


def pointing_hits(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Whether a map [..., S, S] is largest at a place that is mostly the part's; masks [..., S, S] hold shares of
    pixels. A map that is the same everywhere points nowhere. Returns floats [...]."""
    flat = maps.flatten(-2)
    inside = masks.flatten(-2).gather(-1, flat.argmax(-1, keepdim=True))[..., 0] >= 0.5
    return (inside & (flat.amax(-1) > flat.amin(-1))).float()


def energy_inside(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The share of a map's positive values that lies within the mask; 0 for a map without any. Floats [...]."""
    positive = maps.clamp(min=0)
    return (positive * masks).sum(dim=(-2, -1)) / positive.sum(dim=(-2, -1)).clamp(min=1e-12)
