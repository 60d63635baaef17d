"""Converted networks on disk: a pipeline folder with its discriminator inside, and from there back to a `.pth`.

Both are written as a whole or not at all, and never over something else.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import CLIPVisionModelWithProjection

from ..models import RATLIPDiscriminator, RATLIPGenerator
from ..models.base import RATLIPModel
from ..pipeline import RATLIPPipeline
from ..utils.files import atomic_directory, is_free, staged_files
from . import layout
from .original import Conversion, StateDict, original_tower

RECORD = "conversion.json"
_NOT_SHOWN_BY_SHAPES = {
    "prompt_layers": (1, 2, 3, 4, 5, 6, 7, 8),
    "attention_groups": 8,
    "sample_size": 224,
    "feature_layers": (1, 4, 8),
    "clip_input": "released",
    "unused_shortcuts": True,
}


def save_conversion(conversion: Conversion, folder: str | os.PathLike) -> None:
    """Write a pipeline folder with `discriminator/` and `conversion.json` inside, which
    `RATLIPPipeline.from_pretrained` loads and training can go on from (`--pretrained_model_name_or_path`).

    Raises ValueError when `folder` exists and is not empty, OSError when it cannot be written.
    """
    refuse_existing(folder)
    clip = conversion.clip
    pipeline = RATLIPPipeline(clip.tokenizer, clip.text_encoder, clip.image_encoder, conversion.generator)
    with atomic_directory(folder) as staged:
        refuse_existing(folder)  # again: another process may have been faster
        pipeline.save_pretrained(staged)
        if conversion.discriminator is not None:
            conversion.discriminator.save_pretrained(staged / "discriminator")
        (staged / RECORD).write_text(json.dumps(conversion.describe(), indent=2) + "\n")


def save_original(source: str | os.PathLike, path: str | os.PathLike, with_tower: bool = True) -> list[str]:
    """Write a pipeline (folder or repository), with the discriminator that comes with it, as an original checkpoint:
    a `.pth` of `{"model": {"netG", "netD", "netC"}}` in float32, without optimizers. `with_tower` repeats the frozen
    CLIP tower inside `netG`: the originals load strictly and need it.

    Returns what the original programs must be told, line by line. Raises ValueError when `path` exists or the networks
    have no original form, OSError when there is no pipeline or `path` cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the .pth to write")
    refuse_existing(path)
    pipeline = RATLIPPipeline.from_pretrained(source, text_encoder=None, tokenizer=None)
    discriminator = RATLIPDiscriminator.of_pipeline(source)
    tower = pipeline.image_encoder if with_tower else None
    networks = original_networks(pipeline.generator, discriminator, tower)
    with staged_files(path.parent) as staged:
        torch.save({"model": networks}, staged / path.name)
    return _remarks(pipeline.generator, discriminator)


def original_networks(
    generator: RATLIPGenerator,
    discriminator: RATLIPDiscriminator | None = None,
    image_encoder: CLIPVisionModelWithProjection | None = None,
) -> dict[str, StateDict]:
    """{"netG", "netD", "netC"} as the original programs save them; the first alone without a discriminator.

    `image_encoder` is repeated inside `netG`, which the originals' own loading needs. ValueError names an option that
    the original programs cannot express.
    """
    _check_expressible(generator, layout.FIXED_GENERATOR)
    tensors = layout.to_original(layout.generator_key_map(generator), generator.state_dict())
    if image_encoder is not None:
        tensors |= original_tower(image_encoder)
    networks = {"netG": tensors}
    if discriminator is not None:
        _check_expressible(discriminator, layout.FIXED_DISCRIMINATOR)
        networks |= {"netD": {}, "netC": {}}
        tensors = layout.to_original(layout.discriminator_key_map(discriminator), discriminator.state_dict())
        for name, value in tensors.items():
            network, name = name.split(".", 1)
            networks[network][name] = value
    return {
        network: {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
        for network, tensors in networks.items()
    }


def refuse_existing(path: str | os.PathLike) -> None:
    """Raise ValueError if there is something at `path` other than an empty folder."""
    if not is_free(path):
        raise ValueError(f"{path} exists already; choose a new name")


def _check_expressible(network: RATLIPModel, fixed: Mapping[str, object]) -> None:
    for name, value in fixed.items():
        if network.config[name] != value:
            raise ValueError(
                f"the original programs cannot express {name} {network.config[name]} of this "
                f"{type(network).__name__}; they have {value}"
            )


def _remarks(generator: RATLIPGenerator, discriminator: RATLIPDiscriminator | None) -> list[str]:
    lines = [] if discriminator is not None else ["no discriminator came with the pipeline: netG alone was written"]
    for network in filter(None, (generator, discriminator)):
        for name, usual in _NOT_SHOWN_BY_SHAPES.items():
            value = network.config.get(name, usual)
            value = tuple(value) if isinstance(value, list) else value
            if value != usual:
                lines.append(f"{name} is {value}, the original programs have {usual}: change it there")
    return lines
