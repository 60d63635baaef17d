"""The frozen CLIP image tower that original generators repeat: its names there, and whether it is the CLIP at hand.
The originals use OpenAI's code, which keeps query, key and value in one matrix and has GELU's quick form."""

import torch
from transformers import CLIPVisionModelWithProjection

from .layout import check_layout

PREFIX = "mapping.CLIP_ViT."
_AROUND = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
}
_INSIDE = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
_INSIDE |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}


def split_tower(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors of an original generator without its CLIP tower, and those of the tower; names stay."""
    tower = {name: value for name, value in tensors.items() if name.startswith(PREFIX)}
    return {name: value for name, value in tensors.items() if name not in tower}, tower


def original_tower(image_encoder: CLIPVisionModelWithProjection) -> dict[str, torch.Tensor]:
    """The part of a CLIP image tower that original generators repeat, under its names there.

    That is all but post-LayerNorm and projection.
    """
    tower = {name.removeprefix("vision_model."): value for name, value in image_encoder.state_dict().items()}
    named = {theirs: tower[ours] for theirs, ours in _AROUND.items()}
    for index in range(image_encoder.config.num_hidden_layers):
        layer, block = f"encoder.layers.{index}", f"transformer.resblocks.{index}"
        for leaf in ("weight", "bias"):
            parts = [tower[f"{layer}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            named[f"{block}.attn.in_proj_{leaf}"] = torch.cat(parts)
            named |= {f"{block}.{theirs}.{leaf}": tower[f"{layer}.{ours}.{leaf}"] for theirs, ours in _INSIDE.items()}
    return {PREFIX + name: value for name, value in named.items()}


def check_activation(image_encoder: CLIPVisionModelWithProjection, source: str) -> None:
    """Raise ValueError for a CLIP with another activation than OpenAI's: equal weights would mean something else."""
    if (used := image_encoder.config.hidden_act) != "quick_gelu":
        raise ValueError(
            f"original checkpoints need a CLIP with quick_gelu, as OpenAI's are; that of {source} has {used}"
        )


def compare_tower(
    stored: dict[str, torch.Tensor], image_encoder: CLIPVisionModelWithProjection, path, source: str
) -> None:
    """Compare the tower in a file with a given CLIP, tensor by tensor.

    Equal up to rounding to half precision, in which OpenAI's weights are published.

    Args:
        stored: the tower's tensors under their original names, as [`split_tower`] gives them.
        image_encoder: the given CLIP's image tower.
        path: the file, for messages.
        source: where the given CLIP comes from, for messages.

    Raises:
        ValueError: when layers, widths or values differ; the message counts and names tensors.
    """
    given = original_tower(image_encoder)
    try:
        check_layout({name: tuple(value.shape) for name, value in given.items()}, stored, "CLIP tower")
    except ValueError as error:
        raise ValueError(f"the CLIP tower inside {path} is built otherwise than that of {source}: {error}") from error
    different = [name for name, value in given.items() if not _equal(stored[name].float(), value.float().cpu())]
    if different:
        raise ValueError(
            f"the CLIP tower inside {path} is not that of {source}: {len(different)} of {len(given)} tensors differ, "
            f"for example {different[0]}; give the CLIP that the checkpoint was trained with"
        )


def _equal(stored: torch.Tensor, given: torch.Tensor) -> bool:
    return torch.allclose(stored, given, rtol=2**-11, atol=2**-24)
