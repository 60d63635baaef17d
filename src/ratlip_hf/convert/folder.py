"""Converted networks on disk: a pipeline folder with its discriminator inside, and from there back to a `.pth`.

Both are written as a whole or not at all, and never over something else.
"""

import json
import os
from pathlib import Path

import torch
from transformers import CLIPVisionModelWithProjection

from ..models import RATLIPDiscriminator, RATLIPGenerator
from ..models.base import RATLIPModel
from ..pipeline import RATLIPPipeline
from ..utils.files import atomic_directory, staged_files
from .layout import FIXED_DISCRIMINATOR, FIXED_GENERATOR, discriminator_key_map, generator_key_map, to_original
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
    """Write a pipeline folder with `discriminator/` and `conversion.json` inside.

    `RATLIPPipeline.from_pretrained` loads it, and training can go on from it
    (`--pretrained_model_name_or_path`).

    Raises:
        ValueError: when `folder` exists and is not empty.
        OSError: when it cannot be written.
    """
    refuse_existing(folder)
    clip = conversion.clip
    pipeline = RATLIPPipeline(clip.tokenizer, clip.text_encoder, clip.image_encoder, conversion.generator)
    with atomic_directory(folder) as staged:
        pipeline.save_pretrained(staged)
        if conversion.discriminator is not None:
            conversion.discriminator.save_pretrained(staged / "discriminator")
        (staged / RECORD).write_text(json.dumps(conversion.describe(), indent=2) + "\n")


def save_original(source: str | os.PathLike, path: str | os.PathLike, with_tower: bool = True) -> list[str]:
    """Write a pipeline (folder or repository), with the discriminator that comes with it, as an original checkpoint.

    The file is `{"model": {"netG", "netD", "netC"}}` in float32, without optimizers.

    Args:
        source: the pipeline.
        path: the `.pth` to write.
        with_tower: repeat the frozen CLIP tower inside `netG`. The originals load strictly and need it.

    Returns:
        What the original programs must be told, line by line.

    Raises:
        ValueError: when `path` exists or the networks have no original form.
        OSError: when there is no pipeline, or `path` cannot be written.
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

    `image_encoder` is repeated inside `netG`, which the originals' own loading needs.

    Raises:
        ValueError: for a network that the original programs cannot express; the option is named.
    """
    _check_expressible(generator, FIXED_GENERATOR)
    networks = {"netG": to_original(generator_key_map(generator), generator.state_dict())}
    if image_encoder is not None:
        networks["netG"] |= original_tower(image_encoder)
    if discriminator is not None:
        _check_expressible(discriminator, FIXED_DISCRIMINATOR)
        state_dict = discriminator.state_dict()
        networks |= {"netD": {}, "netC": {}}
        for ours, (network, name) in discriminator_key_map(discriminator).items():
            networks[network][name] = state_dict[ours]
    return {network: _in_float32(tensors) for network, tensors in networks.items()}


def refuse_existing(path: str | os.PathLike) -> None:
    """Raise ValueError if there is something at `path` other than an empty folder."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists already; choose a new name")


def _in_float32(tensors: StateDict) -> StateDict:
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def _check_expressible(network: RATLIPModel, fixed: dict[str, object]) -> None:
    for name, value in fixed.items():
        if network.config[name] != value:
            raise ValueError(
                f"the original programs cannot express {name} {network.config[name]} of this "
                f"{type(network).__name__}; they have {value}"
            )


def _remarks(generator: RATLIPGenerator, discriminator: RATLIPDiscriminator | None) -> list[str]:
    lines = [] if discriminator is not None else ["no discriminator came with the pipeline: netG alone was written"]
    configs = [network.config for network in (generator, discriminator) if network is not None]
    for config in configs:
        for name, usual in _NOT_SHOWN_BY_SHAPES.items():
            value = config.get(name, usual)
            value = tuple(value) if isinstance(value, list) else value
            if value != usual:
                lines.append(f"{name} is {value}, the original programs have {usual}: change it there")
    return lines
