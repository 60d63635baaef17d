"""From an original checkpoint to this package's networks: `convert_original` checks everything before it builds them.
Owns what a conversion says about itself; reading is in `original`, writing in `folder`."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers import CLIPModel, CLIPTokenizer

from ..frozen_clip import FrozenCLIP, load_clip
from ..models import RATLIPDiscriminator, RATLIPGenerator
from ..models.base import RATLIPModel
from .clip_tower import check_activation, compare_tower, split_tower
from .key_maps import discriminator_key_map, from_original, generator_key_map, to_original
from .layout import Options, check_layout, discriminator_options, family_of, generator_options, shapes_of
from .original import OriginalCheckpoint, StateDict, read_original

DEFAULT_CLIP = "openai/clip-vit-base-patch32"
COUPLED_BATCH = (
    "the program that trained this checkpoint takes the batch as the time axis of its LSTMs, so that every picture "
    "depends on all prompts of its batch"
)
_RECURRENCES = {
    "per_layer": "per_layer: every picture by itself, as the original draws a batch of one",
    "batch_as_time": "batch_as_time: the pictures of a batch influence each other, as in the original",
}


@dataclass
class Conversion:
    """The networks of an original checkpoint, and what was decided on the way.

    `discriminator` is None where the file has none; `clip` is the frozen CLIP that they belong to; `assumed` maps
    options that shapes cannot tell to the values taken; `warnings` are lines for the user.
    """

    source: OriginalCheckpoint
    family: str
    generator: RATLIPGenerator
    discriminator: RATLIPDiscriminator | None
    clip: FrozenCLIP
    tower_compared: bool
    assumed: dict[str, object] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def describe(self) -> dict:
        """What is written beside the converted networks: where they come from and how to use them."""
        fusion, recurrence = self.generator.config.fusion, self.generator.config.recurrence
        return {
            "family": self.family,
            "file": self.source.path.name,
            "file_sha256": self.source.sha256(),
            "recurrence": recurrence if fusion == "rat" else None,
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
        compared = (
            "equal to the tower in the file" if self.tower_compared else "the file holds no tower to compare with"
        )
        rat = (
            _RECURRENCES[config.recurrence]
            if config.fusion == "rat"
            else "none: the condition itself drives all layers"
        )
        return [
            f"family         {self.family} ({config.fusion.upper()} fusion; convolutions: {forms})",
            f"generator      {sizes}",
            f"discriminator  {'converted' if self.discriminator is not None else 'none in the file'}",
            f"recurrence     {rat}",
            f"CLIP           {self.clip.source}; {compared}",
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
        clip: the frozen CLIP it was trained with, as for [`~frozen_clip.load_clip`].
        family: "ratlip" or "galip" to insist on one; "auto" takes what is there.
        coupled: keep the released RATLIP's recurrence, in which the pictures of a batch influence each other; by
            default the equal form for a batch of one is taken, for every picture.
        with_discriminator: convert the discriminator, if there is one.
        sample_size: side of the pictures where shapes leave a choice; 224 by default, as in the originals.
        prompt_layers: layers of the CLIP tower that get a prompt token; 1, 2, ... by default.
        feature_layers: layers that the discriminator reads; (1, 4, 8) by default.
        tokenizer: for `clip` as a `CLIPModel`, or instead of the tokenizer beside its weights.
        clip_options: for transformers, for example `revision=`.

    Raises:
        OSError, ValueError: see [`~original.read_original`] and [`~layout.generator_options`]; also for missing or
            unexpected tensors (all are listed) and for a CLIP that is not the one in the file.
    """
    source = read_original(path)
    tensors, tower = split_tower(source.networks["netG"])
    options = generator_options(shapes_of(tensors), sample_size, prompt_layers)
    family = family_of(options.told, family)
    recurrent = options.told["fusion"] == "rat"
    if recurrent:
        options.told["recurrence"] = "batch_as_time" if coupled else "per_layer"
    generator = _generator(options, tensors)
    discriminator, assumed = None, options.assumed
    if with_discriminator and "netD" in source.networks:
        judging = discriminator_options(
            shapes_of(source.networks["netD"]), shapes_of(source.networks["netC"]), feature_layers
        )
        discriminator = _discriminator(judging, source.networks)
        assumed = {**assumed, **judging.assumed}

    clip = _frozen(clip, tokenizer, clip_options)
    check_activation(clip.image_encoder, clip.source)
    for network in (generator, discriminator):
        if network is not None:
            _check_clip(network, clip)
    if tower:
        compare_tower(tower, clip.image_encoder, source.path, clip.source)
    warnings = _warnings(source, recurrent, coupled)
    return Conversion(source, family, generator, discriminator, clip, bool(tower), assumed, warnings)


def _frozen(clip, tokenizer: CLIPTokenizer | None, options: dict) -> FrozenCLIP:
    if not isinstance(clip, FrozenCLIP):
        return load_clip(clip, tokenizer, **options)
    if ignored := [*options, *(["tokenizer"] if tokenizer is not None else [])]:
        raise ValueError(f"{', '.join(ignored)} mean nothing for a CLIP that is already loaded")
    return clip


def _generator(options: Options, tensors: StateDict) -> RATLIPGenerator:
    generator = _unfilled(RATLIPGenerator, options)
    key_map = generator_key_map(generator)
    expected = shapes_of(to_original(key_map, generator.state_dict()))
    check_layout(expected, tensors, "generator")
    return _filled(generator, from_original(key_map, tensors, generator.state_dict()))


def _discriminator(options: Options, networks: Mapping[str, StateDict]) -> RATLIPDiscriminator:
    discriminator = _unfilled(RATLIPDiscriminator, options)
    key_map = {ours: f"{net}.{name}" for ours, (net, name) in discriminator_key_map(discriminator).items()}
    tensors = {f"{net}.{name}": value for net in ("netD", "netC") for name, value in networks[net].items()}
    expected = shapes_of(to_original(key_map, discriminator.state_dict()))
    check_layout(expected, tensors, "discriminator")
    return _filled(discriminator, from_original(key_map, tensors, discriminator.state_dict()))


def _unfilled(kind: Callable[..., RATLIPModel], options: Options) -> RATLIPModel:
    """A network without memory for its weights: a file that does not fit is refused before any is taken."""
    try:
        with torch.device("meta"):
            return kind(**options.all())
    except ValueError as error:
        raise ValueError(f"the file's sizes make no {kind.__name__}: {error}") from error


def _filled(network: RATLIPModel, state_dict: StateDict) -> RATLIPModel:
    # Copies, because the file's tensors may be windows into the file itself.
    wanted = network.state_dict()
    weights = {name: value.to(wanted[name].dtype, copy=True) for name, value in state_dict.items()}
    network.load_state_dict(weights, assign=True)
    return network.eval()


def _check_clip(network: RATLIPModel, clip: FrozenCLIP) -> None:
    network.check_tower(clip.image_encoder.config)
    width = clip.text_encoder.config.projection_dim
    if network.config.text_dim != width:
        raise ValueError(
            f"the checkpoint reads sentence embeddings of width {network.config.text_dim}, but {clip.source} makes "
            f"them {width} wide"
        )


def _warnings(source: OriginalCheckpoint, recurrent: bool, coupled: bool) -> list[str]:
    lines = []
    if recurrent and coupled:
        lines.append(f"{COUPLED_BATCH}; this is kept, and happens for every batch of more than one picture")
    elif recurrent:
        lines.append(f"{COUPLED_BATCH}; here every picture is drawn by itself, as the original draws a batch of one")
    types = {value.dtype for net in source.networks.values() for value in net.values() if value.is_floating_point()}
    if others := types - {torch.float32}:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in others))
        lines.append(f"some tensors of the file are {names}; the converted weights are float32")
    return lines
