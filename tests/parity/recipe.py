"""Seeded weights for parity checks: a tensor's value follows from its name, its shape and a salt.
The original programs were run with these very weights; numpy's PCG64 gives the same numbers everywhere."""

import copy
import functools
import zlib

import numpy as np
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from ratlip_hf import RATLIPDiscriminator, RATLIPGenerator
from ratlip_hf.convert.layout import discriminator_key_map, generator_key_map, to_original

PRESETS = {"ratlip": "ratlip-released", "galip": "galip"}


def seeded_tensor(name: str, shape: tuple[int, ...], salt: str = "public") -> torch.Tensor:
    """Normal numbers: matrices scaled by fan-in, embeddings by 0.3, vectors by 0.1, norm scales around 1."""
    leaf = name.rpartition(".")[2]
    stream = np.random.Generator(np.random.PCG64(zlib.crc32(f"{salt}/{name}".encode())))
    values = stream.standard_normal(shape, dtype=np.float64)
    if leaf == "running_var":
        values = np.abs(values) + 0.5
    elif len(shape) < 2:
        values = values * 0.1 + (1.0 if leaf == "weight" else 0.0)
    else:
        values = values * 0.3 if "embedding" in name else values / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values, dtype=np.float32).reshape(shape))


def seeded_towers() -> tuple[CLIPTextModelWithProjection, CLIPVisionModelWithProjection]:
    """Both towers of a CLIP ViT-B/32 with seeded weights, frozen."""
    with torch.device("meta"):
        names = {name: tuple(value.shape) for name, value in CLIPModel(CLIPConfig()).state_dict().items()}
    towers = []
    for kind, config in (
        (CLIPTextModelWithProjection, CLIPConfig().text_config),
        (CLIPVisionModelWithProjection, CLIPConfig().vision_config),
    ):
        tower = kind(config)
        wanted = tower.state_dict().keys() & names.keys()
        tower.load_state_dict({name: seeded_tensor(f"clip/{name}", names[name]) for name in wanted})
        towers.append(tower.eval().requires_grad_(False))
    return tuple(towers)


def seeded_generator(family: str) -> RATLIPGenerator:
    """A generator holding the weights of the original `netG` of that family, a copy for each caller."""
    return copy.deepcopy(_generator(family))


@functools.cache
def _generator(family: str) -> RATLIPGenerator:
    generator = RATLIPGenerator.from_preset(PRESETS[family])
    key_map = generator_key_map(generator)
    originals = {ours: f"{family}/netG/{theirs}" for ours, theirs in key_map.items()}
    shapes = {theirs: tuple(value.shape) for theirs, value in to_original(key_map, generator.state_dict()).items()}
    _fill(generator, originals, {ours: shapes[theirs] for ours, theirs in key_map.items()})
    return generator.eval()


def seeded_discriminator(family: str) -> RATLIPDiscriminator:
    """A discriminator holding the weights of the original `netD` and `netC` of that family, a copy for each caller."""
    return copy.deepcopy(_discriminator(family))


@functools.cache
def _discriminator(family: str) -> RATLIPDiscriminator:
    discriminator = RATLIPDiscriminator.from_preset(PRESETS[family])
    key_map = discriminator_key_map(discriminator)
    originals = {ours: f"{family}/{theirs.replace('.', '/', 1)}" for ours, theirs in key_map.items()}
    _fill(discriminator, originals, {name: tuple(value.shape) for name, value in discriminator.state_dict().items()})
    return discriminator


def _fill(module: nn.Module, originals: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> None:
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(seeded_tensor(originals[name], shapes[name]).reshape(value.shape))


def excerpt(tensor: torch.Tensor, count: int = 96) -> torch.Tensor:
    """Evenly spread values of a tensor: what is recorded of the large ones."""
    flat = tensor.detach().flatten()
    return flat[:: max(1, len(flat) // count)][:count].clone()
