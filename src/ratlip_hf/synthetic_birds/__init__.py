"""Synthetic birds: a small procedural text-to-image world that needs no download, with a CLIP and judges of its own.
`world.py` plugs it into training and evaluation; the modules that use torch are imported from their own files."""

from .attributes import BirdAttributes, is_held_out, sample_attributes, swap_two_parts
from .captions import full_caption, make_captions
from .dataset import load_heldout_prompts, make_dataset
from .renderer import render_bird

__all__ = [
    "BirdAttributes",
    "full_caption",
    "is_held_out",
    "load_heldout_prompts",
    "make_captions",
    "make_dataset",
    "render_bird",
    "sample_attributes",
    "swap_two_parts",
]
