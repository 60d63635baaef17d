"""Where half precision ends: sums, norms and resizing are never done in it.
Owns the one rule of how far a tensor is raised."""

import torch


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Half precision raised to float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
