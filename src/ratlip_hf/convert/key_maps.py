"""Which tensor of an original RATLIP or GALIP checkpoint is which of ours.
Our names are the source: each is translated to the original one, and the map is read in either direction."""

import re
from collections.abc import Mapping

import torch

from ..models import RATLIPDiscriminator, RATLIPGenerator

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
    """{our name: name in the original `netG`} for every tensor of the generator.

    Raises:
        ValueError: when the configuration has no original counterpart (recurrence across layers).
    """
    config = generator.config
    if config.fusion == "rat" and config.recurrence == "across_layers":
        raise ValueError("recurrence='across_layers' does not occur in original checkpoints")
    return {name: _original_generator_name(name, config) for name in generator.state_dict()}


def discriminator_key_map(discriminator: RATLIPDiscriminator) -> dict[str, tuple[str, str]]:
    """{our name: ("netD" or "netC", original name)} for every tensor of the discriminator."""
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
        affine, mlp, layer, leaf = re.fullmatch(r"affines\.(\d)\.(gamma|beta)\.(\d)\.(\w+)", rest).groups()
        return f"{prefix}.{module}.affine{affine}.fc_{mlp}.{layers[int(layer) // 2]}.{leaf}"
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


def _original_discriminator_name(name: str) -> tuple[str, str]:
    if name.startswith("referee."):
        _, conv, leaf = name.split(".")
        return "netC", f"joint_conv.{0 if conv == 'conv1' else 2}.{leaf}"
    name = name.removeprefix("extractor.").replace("blocks.", "DBlocks.").replace("project.", "main.")
    name = name.replace(".conv1.", ".conv_r.0.").replace(".conv2.", ".conv_r.2.").replace(".shortcut.", ".conv_s.")
    return "netD", name
