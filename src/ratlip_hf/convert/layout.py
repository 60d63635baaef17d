"""The layout of original checkpoints: what the shapes in a file say, and which of its tensors is which of ours.

First come sizes, options and family, told by shapes; then the check that no tensor is missing or left over; then the
names of every tensor in the original programs.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..models import RATLIPDiscriminator, RATLIPGenerator
from ..models.base import MOST_BLOCKS
from ..models.generator import SAMPLE_SIZES, image_sizes

FAMILIES = ("ratlip", "galip")
# What the original programs write into their code and no tensor shows.
_UNSEEN_GENERATOR = {"residual_scale": 0.1, "upsampling": "nearest"}
_UNSEEN_DISCRIMINATOR = {"clip_input": "released"}
# What they cannot do otherwise.
FIXED_GENERATOR = {**_UNSEEN_GENERATOR, "text_center": False, "text_norm": None}
FIXED_DISCRIMINATOR = {"scale_features": False, "text_center": False, "text_norm": None}
_USUAL_SIZE = 224  # the original programs build for 256 and then make the last block 224
_USUAL_FEATURE_LAYERS = (1, 4, 8)
_LISTED = 40  # names per kind of difference in a message

Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class Options:
    """Configuration of a network: `told` by shapes or by the caller, and `assumed`, which shapes cannot tell."""

    told: dict[str, Any]
    assumed: dict[str, Any] = field(default_factory=dict)

    def all(self) -> dict[str, Any]:
        return {**self.told, **self.assumed}


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def generator_options(
    shapes: Shapes, sample_size: int | None = None, prompt_layers: Sequence[int] | None = None
) -> Options:
    """Configuration of the generator with tensors of these shapes (without the CLIP tower), but for `recurrence`.
    ValueError when tensors are missing that tell the sizes, or the sizes fit nothing that can be built."""
    options = Options(_told_by_generator(shapes), dict(_UNSEEN_GENERATOR))
    told = options.told

    sizes = _possible_sizes(told["clip_grid"], _count(shapes, r"GBlocks\.(\d+)\."))
    if sample_size not in (None, *sizes):
        raise ValueError(f"sample_size {sample_size} does not fit the number of image blocks; possible: {sizes}")
    if sample_size is not None or len(sizes) == 1:
        told["sample_size"] = sample_size or sizes[0]
    else:
        options.assumed["sample_size"] = _USUAL_SIZE if _USUAL_SIZE in sizes else sizes[0]

    count = shapes["mapping.fc_prompt.weight"][0] // told["clip_width"]
    if prompt_layers is None:
        options.assumed["prompt_layers"] = tuple(range(1, count + 1))
    elif len(prompt_layers) == count:
        told["prompt_layers"] = tuple(prompt_layers)
    else:
        raise ValueError(f"prompt_layers lists {len(prompt_layers)} layers, but the file has {count} prompts")
    return options


def discriminator_options(extractor: Shapes, head: Shapes, feature_layers: Sequence[int] | None = None) -> Options:
    """Configuration of the discriminator with tensors of these shapes in `netD` and `netC`. ValueError as for the
    generator, and without `feature_layers` where their number is not the usual one."""
    (project,) = _needed(extractor, {"main.conv_r.0.weight": 4}, "discriminator")
    first, second = _needed(head, {"joint_conv.0.weight": 4, "joint_conv.2.weight": 4}, "discriminator's head")
    count = 1 + _count(extractor, r"DBlocks\.(\d+)\.")
    if feature_layers is None and count != len(_USUAL_FEATURE_LAYERS):
        raise ValueError(f"this discriminator reads {count} layers of CLIP: say which by feature_layers")
    if feature_layers is not None and len(feature_layers) != count:
        raise ValueError(
            f"feature_layers lists {len(feature_layers)} layers, but the file's discriminator reads {count}"
        )
    told: dict[str, Any] = {"clip_width": project[1], "extractor_channels": project[0], "head_channels": first[0]}
    told |= {"clip_grid": first[2] + second[2] - 1, "text_dim": first[1] - project[0]}
    told |= {"unused_shortcuts": "DBlocks.0.conv_s.weight" in extractor}
    assumed: dict[str, Any] = dict(_UNSEEN_DISCRIMINATOR)
    (assumed if feature_layers is None else told)["feature_layers"] = tuple(feature_layers or _USUAL_FEATURE_LAYERS)
    return Options(told, assumed)


def family_of(options: Mapping[str, object], asked: str = "auto") -> str:
    """ "ratlip" or "galip", told from a generator's configuration. ValueError if another one was `asked` for."""
    if asked not in ("auto", *FAMILIES):
        raise ValueError(f"family must be one of auto, {', '.join(FAMILIES)}, not {asked!r}")
    signs = {"LSTM states": options["fusion"] == "rat", "BatchNorm in the bridge": options["bridge_conv"] != "plain"}
    signs |= {"BatchNorm in the image generator": options["image_conv"] != "plain"}
    present = [sign for sign, seen in signs.items() if seen]
    family = "ratlip" if present else "galip"
    if asked not in ("auto", family):
        why = f"it has {', '.join(present)}" if present else f"it has no {', no '.join(signs)}"
        raise ValueError(f"the file is of the family {family}, not {asked}: {why}")
    return family


def check_layout(expected: Shapes, actual: Mapping[str, torch.Tensor], what: str) -> None:
    """Raise one ValueError that lists what `actual` lacks, what is unexpected in it, and what has another shape."""
    shapes = shapes_of(actual)
    wrong = [
        f"{name} {list(shapes[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if shapes.get(name, shape) != shape
    ]
    differences = {
        "missing": [name for name in expected if name not in shapes],
        "unexpected": [name for name in shapes if name not in expected],
        "of another shape": wrong,
    }
    if any(differences.values()):
        lists = "; ".join(f"{kind}: {_listed(names)}" for kind, names in differences.items() if names)
        raise ValueError(f"the {what} is not as its sizes say: {lists}")


def _told_by_generator(shapes: Shapes) -> dict[str, object]:
    needed = {"fc_code.weight": 2, "mapping.conv_fuse.weight": 4, "mapping.fc_prompt.weight": 2, "to_rgb.1.weight": 4}
    code, to_grid, prompts, to_rgb = _needed(shapes, needed, "generator")
    (rows, noise_dim), (width, bridge) = code, to_grid[:2]
    grid = math.isqrt(rows // bridge)
    if grid**2 * bridge != rows:
        raise ValueError(f"fc_code.weight has {rows} rows, which is no square grid of {bridge} channels")
    told = {
        "noise_dim": noise_dim,
        "text_dim": prompts[1] - noise_dim,
        "clip_width": width,
        "clip_grid": grid,
        "base_channels": to_rgb[1],
        "bridge_channels": bridge,
        "bridge_blocks": _count(shapes, r"mapping\.FBlocks\.(\d+)\."),
        "bridge_conv": _conv_form(shapes, "mapping.FBlocks.0.conv2"),
        "image_conv": _conv_form(shapes, "GBlocks.0.c1"),
        "fusion": "rat" if any(".rnn." in name for name in shapes) else "cat",
    }
    if told["fusion"] == "rat":
        (gates,) = _needed(shapes, {"mapping.FBlocks.0.fuse1.affine0.rnn.weight_hh_l0": 2}, "generator")
        told["lstm_hidden"] = gates[1]
    return told | _attention_groups(shapes)


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED])}{rest}"


def _needed(shapes: Shapes, dimensions: Mapping[str, int], what: str) -> list[tuple[int, ...]]:
    """Shapes of the tensors that tell the sizes; ValueError that lists those absent or with other dimensions."""
    absent = [name for name, count in dimensions.items() if len(shapes.get(name, ())) != count or 0 in shapes[name]]
    if absent:
        raise ValueError(f"the {what}'s sizes cannot be told; missing or of another form: {', '.join(absent)}")
    return [shapes[name] for name in dimensions]


def _count(shapes: Shapes, pattern: str) -> int:
    # Distinct numbers, not the largest: a stray name must not ask for a million blocks.
    count = len({found[1] for name in shapes if (found := re.match(pattern, name))})
    if count > MOST_BLOCKS:
        raise ValueError(f"the file has {count} blocks of one kind; at most {MOST_BLOCKS} can be converted")
    return count


def _conv_form(shapes: Shapes, prefix: str) -> str:
    if f"{prefix}.se.cweight" in shapes:
        return "bn_act_sa"
    return "bn_act" if f"{prefix}.bn.weight" in shapes else "plain"


def _attention_groups(shapes: Shapes) -> dict[str, int]:
    """{"attention_groups": G}, told by the C / 2G entries of an attention vector; empty without attention."""
    for prefix in ("mapping.FBlocks.0.conv2", "GBlocks.0.c1"):
        gate, conv = shapes.get(f"{prefix}.se.gn.weight"), shapes.get(f"{prefix}.conv.weight")
        if gate and conv:
            return {"attention_groups": max(1, conv[0] // (2 * gate[0]))}
    return {}


def _possible_sizes(grid: int, blocks: int) -> list[int]:
    sizes = [size for size in SAMPLE_SIZES if size >= grid and len(image_sizes(size, grid)) == blocks]
    if not sizes:
        raise ValueError(f"{blocks} image blocks on a grid of {grid} make no image of a size in {SAMPLE_SIZES}")
    return sizes


# Names


_SHUFFLE_ATTENTION = {
    "channel_weight": "cweight",
    "channel_bias": "cbias",
    "spatial_weight": "sweight",
    "spatial_bias": "sbias",
    "norm_weight": "gn.weight",
    "norm_bias": "gn.bias",
}
_OUTER = {"noise_proj": "fc_code", "to_grid": "mapping.conv_fuse", "from_grid": "mapping.conv"}
_OUTER |= {"prompt_proj": "mapping.fc_prompt", "to_rgb": "to_rgb.1"}
# The original keeps these four as [1, n, 1, 1].
_BROADCAST = ("cweight", "cbias", "sweight", "sbias")


def generator_key_map(generator: RATLIPGenerator) -> dict[str, str]:
    """{our name: name in the original `netG`} for every tensor of the generator. ValueError for recurrence across
    layers, which no original has."""
    config = generator.config
    if config.fusion == "rat" and config.recurrence == "across_layers":
        raise ValueError("recurrence='across_layers' does not occur in original checkpoints")
    return {name: _original_generator_name(name, config) for name in generator.state_dict()}


def discriminator_key_map(discriminator: RATLIPDiscriminator) -> dict[str, str]:
    """{our name: original name, after "netD." or "netC."} for every tensor of the discriminator."""
    return {name: _original_discriminator_name(name) for name in discriminator.state_dict()}


def from_original(
    key_map: Mapping[str, str], original: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Original tensors under our names, in the shapes of `like` (a state dict). Raises KeyError if one is absent."""
    return {ours: original[theirs].reshape(like[ours].shape) for ours, theirs in key_map.items()}


def to_original(key_map: Mapping[str, str], state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our tensors under the original names and in the original shapes."""
    return {
        theirs: state_dict[ours].reshape(1, -1, 1, 1) if theirs.endswith(_BROADCAST) else state_dict[ours]
        for ours, theirs in key_map.items()
    }


def _original_generator_name(name: str, config) -> str:
    outer, rest = name.split(".", 1)
    if outer in _OUTER:
        return f"{_OUTER[outer]}.{rest}"
    if outer == "states":  # states.cells.<step>: one LSTM per affine layer, kept inside it by the original
        _, step, leaf = rest.split(".")
        block, unit, affine = int(step) // 4, int(step) // 2 % 2, int(step) % 2
        return f"mapping.FBlocks.{block}.fuse{unit + 1}.affine{affine}.rnn.{leaf}"

    index, module, rest = rest.split(".", 2)
    in_bridge = outer == "bridge"
    prefix = f"mapping.FBlocks.{index}" if in_bridge else f"GBlocks.{index}"
    if module.startswith("fuse"):
        layers = ("0", "2") if in_bridge and config.fusion == "rat" else ("linear1", "linear2")
        _, unit_affine, mlp, layer, leaf = rest.split(".")  # affines.<0, 1>.<gamma, beta>.<0, 2>.<weight, bias>
        return f"{prefix}.{module}.affine{unit_affine}.fc_{mlp}.{layers[int(layer) // 2]}.{leaf}"
    if module == "shortcut":
        return f"{prefix}.c_sc.{rest}"

    form = ("plain" if module == "conv1" else config.bridge_conv) if in_bridge else config.image_conv
    module = module if in_bridge else module.replace("conv", "c")
    part, leaf = rest.split(".", 1)
    if part == "attention":
        return f"{prefix}.{module}.se.{_SHUFFLE_ATTENTION[leaf]}"
    if part == "norm":
        return f"{prefix}.{module}.bn.{leaf}"
    return f"{prefix}.{module}.{leaf}" if form == "plain" else f"{prefix}.{module}.conv.{leaf}"


def _original_discriminator_name(name: str) -> str:
    if name.startswith("referee."):
        _, conv, leaf = name.split(".")
        return f"netC.joint_conv.{0 if conv == 'conv1' else 2}.{leaf}"
    name = name.removeprefix("extractor.").replace("blocks.", "DBlocks.").replace("project.", "main.")
    name = name.replace(".conv1.", ".conv_r.0.").replace(".conv2.", ".conv_r.2.").replace(".shortcut.", ".conv_s.")
    return f"netD.{name}"
