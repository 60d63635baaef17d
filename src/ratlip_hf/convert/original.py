"""From an original RATLIP or GALIP checkpoint to this package's networks.

`convert_original` reads the file, tells sizes and options from the shapes, compares the CLIP image tower inside the
file with the CLIP at hand, and fills the networks once everything fits.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CLIPModel, CLIPTokenizer, CLIPVisionModelWithProjection

from ..clip import DEFAULT_CLIP, FrozenCLIP, load_clip
from ..models import RATLIPDiscriminator, RATLIPGenerator
from ..models.base import RATLIPModel
from ..utils.files import file_sha256
from ..utils.tensors import check_weights, load_tensors
from . import layout

NETWORKS = ("netG", "netD", "netC")
TOWER_PREFIX = "mapping.CLIP_ViT."
_EVERY_GENERATOR = "fc_code.weight"  # by which a generator's bare tensors are known
_DEPTH = 4  # levels of wrapping; a file may even hold cycles
_WRAPPER = "module."  # what DataParallel and its distributed sibling put before every name
_COUPLED_BATCH = (
    "the program that trained this checkpoint takes the batch as the time axis of its LSTMs, so that every image "
    "depends on all prompts of its batch"
)
_RECURRENCES = {
    "per_layer": "per_layer: every image by itself, as the original does for a batch of one",
    "batch_as_time": "batch_as_time: the images of a batch influence each other, as in the original",
}

StateDict = dict[str, torch.Tensor]


@dataclass
class OriginalCheckpoint:
    """The networks of an original checkpoint, under the names that they have without wrappers."""

    path: Path
    networks: dict[str, StateDict]  # by "netG", "netD" and "netC"; the last two may be absent
    ignored: list[str]  # entries of the file that are no networks, such as "optimizers" and "epoch"


@dataclass
class Conversion:
    """The networks of an original checkpoint, and what was decided on the way."""

    source: OriginalCheckpoint
    family: str
    generator: RATLIPGenerator
    discriminator: RATLIPDiscriminator | None  # where the file has none
    clip: FrozenCLIP  # that they belong to
    tower_compared: bool
    assumed: dict[str, object]  # values taken for options that shapes cannot tell
    warnings: list[str]  # lines for the user

    def describe(self) -> dict:
        """What is written next to the converted networks: where they come from and how to use them."""
        config = self.generator.config
        return {
            "family": self.family,
            "file": self.source.path.name,
            "file_sha256": file_sha256(self.source.path),
            "recurrence": config.recurrence if config.fusion == "rat" else None,
            "clip_input": "released",
            "clip": self.clip.describe(),
            "clip_compared_with_the_tower_in_the_file": self.tower_compared,
            "assumed": self.assumed,
            "not_converted": self.source.ignored,
        }

    def summary(self) -> list[str]:
        """Lines for a person: family, sizes, recurrence, preprocessing, what was assumed and what was left out."""
        config = self.generator.config
        sizes = f"{config.sample_size} px, noise {config.noise_dim}, text {config.text_dim}, "
        sizes += f"{config.bridge_blocks} bridge and {len(self.generator.blocks)} image blocks"
        forms = f"bridge {config.bridge_conv}, image {config.image_conv}"
        recurrent = config.fusion == "rat"
        rat = _RECURRENCES[config.recurrence] if recurrent else "none: the condition itself drives all layers"
        equal, absent = "equal to the tower in the file", "the file holds no tower to compare with"
        return [
            f"family         {self.family} ({config.fusion.upper()} fusion; convolutions: {forms})",
            f"generator      {sizes}",
            f"discriminator  {'converted' if self.discriminator is not None else 'none in the file'}",
            f"recurrence     {rat}",
            f"CLIP           {self.clip.source}; {equal if self.tower_compared else absent}",
            "CLIP input     released: pixels normalised twice, resized by nearest neighbour, as these weights need it",
            f"assumed        {', '.join(f'{name} {value}' for name, value in self.assumed.items())}",
            f"left out       {', '.join(self.source.ignored) or 'nothing'}",
        ]


def convert_original(
    path: str | os.PathLike,
    clip: str | os.PathLike | CLIPModel | FrozenCLIP = DEFAULT_CLIP,
    *,
    family: str = "auto",
    coupled: bool = False,
    with_discriminator: bool = True,
    sample_size: int | None = None,
    prompt_layers: Sequence[int] | None = None,
    feature_layers: Sequence[int] | None = None,
    tokenizer: CLIPTokenizer | None = None,
    **clip_options,
) -> Conversion:
    """Read an original RATLIP or GALIP checkpoint as networks of this package, in float32.

    Args:
        path: the `.pth`; generator alone or with discriminator, with or without `module.` and the CLIP tower.
        clip: the frozen CLIP it was trained with, as for [`~clip.load_clip`].
        family: "ratlip" or "galip" to insist on one; "auto" takes what is there.
        coupled: keep the released RATLIP's recurrence, in which the images of a batch influence each other; by
            default the equal form for a batch of one is taken, for every image.
        with_discriminator: convert the discriminator, if there is one.
        sample_size: side of the images where shapes leave a choice; 224 by default, as in the originals.
        prompt_layers: layers of the CLIP tower that get a prompt token; 1, 2, ... by default.
        feature_layers: layers that the discriminator reads; (1, 4, 8) by default.
        tokenizer: for `clip` as a `CLIPModel`, or instead of the tokenizer next to its weights.
        clip_options: for transformers, for example `revision=`.

    Raises:
        OSError, ValueError: see [`read_original`] and [`~layout.generator_options`]; also for missing or unexpected
            tensors (all are listed) and for a CLIP that is not the one in the file.
    """
    source = read_original(path)
    tensors, tower = split_tower(source.networks["netG"])
    options = layout.generator_options(layout.shapes_of(tensors), sample_size, prompt_layers)
    family = layout.family_of(options.told, family)
    recurrent = options.told["fusion"] == "rat"
    if recurrent:
        options.told["recurrence"] = "batch_as_time" if coupled else "per_layer"
    generator = _built(RATLIPGenerator, options, layout.generator_key_map, tensors, "generator")
    discriminator, assumed = None, options.assumed
    if with_discriminator and "netD" in source.networks:
        parts = {name: source.networks[name] for name in ("netD", "netC")}
        extractor, head = (layout.shapes_of(part) for part in parts.values())
        options = layout.discriminator_options(extractor, head, feature_layers)
        tensors = {f"{part}.{name}": value for part in parts for name, value in parts[part].items()}
        discriminator = _built(RATLIPDiscriminator, options, layout.discriminator_key_map, tensors, "discriminator")
        assumed = {**assumed, **options.assumed}

    clip = _frozen(clip, tokenizer, clip_options)
    for network in filter(None, (generator, discriminator)):
        _check_clip(clip, network)
    if tower:
        compare_tower(tower, clip.image_encoder, source.path, clip.source)
    warnings = _warnings(source, recurrent, coupled)
    return Conversion(source, family, generator, discriminator, clip, bool(tower), assumed, warnings)


# Reading the file


def read_original(path: str | os.PathLike) -> OriginalCheckpoint:
    """Read a `.pth` of the RATLIP or GALIP programs; no code in it can run.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when it is no PyTorch file, needs more than tensors and plain values (which is named), or holds no
            generator or several.
    """
    path = Path(path)
    content = _load(path)
    found = list(_find_networks(content, ()))
    if not found:
        top = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path} holds no generator of RATLIP or GALIP (no {_EVERY_GENERATOR}); it holds: {top}")
    if len(found) > 1:
        places = ", ".join(".".join(map(str, place)) for place, _ in found)
        raise ValueError(f"{path} holds several generators ({places}); save the one that is meant by itself")
    ((place, wrapped),) = found
    networks = {name: _unwrapped(path, name, tensors) for name, tensors in wrapped.items()}
    if ("netD" in networks) != ("netC" in networks):
        alone, absent = ("netD", "netC") if "netD" in networks else ("netC", "netD")
        raise ValueError(f"{path} holds {alone} without {absent}; a discriminator needs both")
    return OriginalCheckpoint(path, networks, _other_entries(content, place))


def _load(path: Path):
    try:
        # Mapped where the format allows it: optimizer states, twice as large as the weights, stay on the disk.
        return load_tensors(path, mmap=True)
    except OSError as error:
        raise OSError(f"cannot read {path}: {error.strerror}") from error


def _find_networks(content, place: tuple) -> Iterator[tuple[tuple, dict[str, Mapping]]]:
    """(keys from the top, networks) of every generator, with its discriminator where that lies next to it."""
    if not isinstance(content, Mapping) or len(place) > _DEPTH:
        return
    if isinstance(content.get("netG"), Mapping):
        yield place, {name: content[name] for name in NETWORKS if isinstance(content.get(name), Mapping)}
    elif _EVERY_GENERATOR in content or _WRAPPER + _EVERY_GENERATOR in content:
        yield place, {"netG": content}
    else:
        for key, value in content.items():
            yield from _find_networks(value, (*place, key))


def _unwrapped(path: Path, network: str, tensors: Mapping) -> StateDict:
    strays = [str(name) for name, value in tensors.items() if not isinstance(value, torch.Tensor)]
    strays += [repr(name) for name in tensors if not isinstance(name, str)]
    if strays:
        raise ValueError(f"{path}: {network} holds entries that are no tensors: {', '.join(strays[:8])}")
    for name, value in tensors.items():
        if what := _not_plain(value):
            raise ValueError(f"{path}: {name} of {network} is {what}; weights are plain tensors of numbers")
    while tensors and all(name.startswith(_WRAPPER) for name in tensors):
        tensors = {name.removeprefix(_WRAPPER): value for name, value in tensors.items()}
    return dict(tensors)


def _not_plain(value: torch.Tensor) -> str | None:
    """What a tensor is that cannot be converted as it stands."""
    if value.is_meta:
        return "a tensor without values"
    if value.layout != torch.strided or value.is_quantized:
        return "sparse or quantized"
    if not value.is_floating_point() and value.dtype != torch.int64:  # the latter counts batches
        return f"of the type {str(value.dtype).removeprefix('torch.')}"
    # A file of a kilobyte may claim any size by repeating one number.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "larger than what is stored of it"
    return None


def _other_entries(content: Mapping, place: tuple) -> list[str]:
    """Names of what lies around the networks, from the top of the file to them; none around bare tensors."""
    others = []
    for key in place:
        others += [str(name) for name in content if name != key]
        content = content[key]
    if "netG" in content:
        others += [str(name) for name in content if name not in NETWORKS]
    return others


# Filling the networks


def _built(
    kind: type[RATLIPModel], options: layout.Options, key_map_of: Callable, tensors: StateDict, what: str
) -> RATLIPModel:
    """A network with these tensors. It takes memory for weights only when they fit."""
    try:
        with torch.device("meta"):
            network = kind(**options.all())
    except ValueError as error:
        raise ValueError(f"the file's sizes make no {kind.__name__}: {error}") from error
    key_map, like = key_map_of(network), network.state_dict()
    layout.check_layout(layout.shapes_of(layout.to_original(key_map, like)), tensors, what)
    weights = layout.from_original(key_map, tensors, like)
    # Copies, because the file's tensors may be windows into the file itself.
    weights = {name: value.to(like[name].dtype, copy=True) for name, value in weights.items()}
    network.load_state_dict(weights, assign=True)
    check_weights(network, f"the file's {what}")
    return network.eval()


def _warnings(source: OriginalCheckpoint, recurrent: bool, coupled: bool) -> list[str]:
    lines = []
    if recurrent and coupled:
        lines.append(f"{_COUPLED_BATCH}; this is kept, and happens for every batch of more than one image")
    elif recurrent:
        lines.append(
            f"{_COUPLED_BATCH}; here every image is generated by itself, as the original does for a batch of one"
        )
    types = {value.dtype for net in source.networks.values() for value in net.values() if value.is_floating_point()}
    if others := types - {torch.float32}:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in others))
        lines.append(f"some tensors of the file are {names}; the converted weights are float32")
    return lines


# The frozen CLIP, whose image tower original generators repeat


_AROUND = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
}
_INSIDE = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def split_tower(tensors: StateDict) -> tuple[StateDict, StateDict]:
    """The tensors of an original generator without its CLIP tower, and those of the tower; names stay."""
    tower = {name: value for name, value in tensors.items() if name.startswith(TOWER_PREFIX)}
    return {name: value for name, value in tensors.items() if name not in tower}, tower


def original_tower(image_encoder: CLIPVisionModelWithProjection) -> StateDict:
    """The part of a CLIP image tower that original generators repeat, under its names there: all but the last
    LayerNorm and the projection."""
    tower = {name.removeprefix("vision_model."): value for name, value in image_encoder.state_dict().items()}
    named = {theirs: tower[ours] for theirs, ours in _AROUND.items()}
    for index in range(image_encoder.config.num_hidden_layers):
        layer, block = f"encoder.layers.{index}", f"transformer.resblocks.{index}"
        for leaf in ("weight", "bias"):
            parts = [tower[f"{layer}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            named[f"{block}.attn.in_proj_{leaf}"] = torch.cat(parts)
            named |= {f"{block}.{theirs}.{leaf}": tower[f"{layer}.{ours}.{leaf}"] for theirs, ours in _INSIDE.items()}
    return {TOWER_PREFIX + name: value for name, value in named.items()}


def compare_tower(stored: StateDict, image_encoder: CLIPVisionModelWithProjection, path: Path, source: str) -> None:
    """Raise ValueError unless the tower stored in the file at `path` equals that of the CLIP from `source`, up to
    rounding to half precision, in which OpenAI's weights are published. The message counts and names tensors."""
    given = original_tower(image_encoder)
    try:
        layout.check_layout(layout.shapes_of(given), stored, "CLIP tower")
    except ValueError as error:
        raise ValueError(f"the CLIP tower inside {path} is built otherwise than that of {source}: {error}") from error
    pairs = {name: (stored[name].float(), value.float().cpu()) for name, value in given.items()}
    different = [name for name, pair in pairs.items() if not torch.allclose(*pair, rtol=2**-11, atol=2**-24)]
    if different:
        raise ValueError(
            f"the CLIP tower inside {path} is not that of {source}: {len(different)} of {len(given)} tensors differ, "
            f"for example {different[0]}; give the CLIP that the checkpoint was trained with"
        )


def _frozen(clip, tokenizer: CLIPTokenizer | None, options: dict) -> FrozenCLIP:
    if not isinstance(clip, FrozenCLIP):
        return load_clip(clip, tokenizer, **options)
    if ignored := [*options, *(["tokenizer"] if tokenizer is not None else [])]:
        raise ValueError(f"{', '.join(ignored)} mean nothing for a CLIP that is already loaded")
    return clip


def _check_clip(clip: FrozenCLIP, network: RATLIPModel) -> None:
    """Raise ValueError for a CLIP of another activation than OpenAI's or of other sizes than the network's."""
    vision, width = clip.image_encoder.config, clip.text_encoder.config.projection_dim
    if vision.hidden_act != "quick_gelu":  # equal weights would mean something else
        raise ValueError(
            f"original checkpoints need a CLIP with quick_gelu, as OpenAI's are; that of {clip.source} has "
            f"{vision.hidden_act}"
        )
    network.check_tower(vision)
    if network.config.text_dim != width:
        raise ValueError(
            f"the checkpoint reads text embeddings of width {network.config.text_dim}, but {clip.source} makes them "
            f"{width} wide"
        )
