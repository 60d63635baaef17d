"""Configurations of both networks that fit a CLIP: its grid, widths and depth decide them, its weights do not."""

from collections.abc import Iterable

import torch
from transformers import CLIPTextConfig, CLIPVisionConfig

from ..clip import grid_size
from .discriminator import RATLIPDiscriminator
from .generator import RATLIPGenerator

_PAPER_DEPTH, _PROMPT_LAYERS, _FEATURE_LAYERS = 12, range(1, 9), (1, 4, 8)  # in ViT-B
_LARGEST_USUAL_SIZE, _FEWER_CHANNELS = 256, 32  # above: half the usual channels, for four times the pixels


def fit_to_clip(vision: CLIPVisionConfig, text: CLIPTextConfig, sample_size: int) -> dict[str, dict]:
    """What both networks of the `ratlip` preset need for a CLIP and for images of `sample_size` pixels.

    Layers lie at the share of the depth where the paper has them in ViT-B: of 24 layers prompts enter the layers 2, 4,
    ... 16, and features come from 2, 8 and 16. Returns {"generator": ..., "discriminator": ...}, values of their
    configurations. Raises ValueError, in one line, for a CLIP or a size that does not fit.
    """
    if vision.image_size % vision.patch_size:
        raise ValueError(
            f"this CLIP's images of {vision.image_size} px are no whole patches of {vision.patch_size} px"
        )
    if vision.projection_dim != text.projection_dim:
        widths = f"images to {vision.projection_dim}, texts to {text.projection_dim}"
        raise ValueError(f"the towers of this CLIP project to different widths: {widths}")
    shared = {"clip_width": vision.hidden_size, "clip_grid": grid_size(vision), "text_dim": vision.projection_dim}
    generator = {"sample_size": sample_size, **shared}
    generator["prompt_layers"] = _at_depth(_PROMPT_LAYERS, vision.num_hidden_layers)
    if sample_size > _LARGEST_USUAL_SIZE:
        generator["base_channels"] = _FEWER_CHANNELS
    discriminator = {**shared, "feature_layers": _at_depth(_FEATURE_LAYERS, vision.num_hidden_layers)}
    with torch.device("meta"):  # whatever else does not fit says so here, before anything is allocated
        RATLIPGenerator.from_preset("ratlip", **generator)
        RATLIPDiscriminator.from_preset("ratlip", **discriminator)
    return {"generator": generator, "discriminator": discriminator}


def _at_depth(layers: Iterable[int], depth: int) -> list[int]:
    return sorted({layer * depth // _PAPER_DEPTH for layer in layers})
