"""The frozen CLIP towers as the networks use them: pixels in, features out, and the tower prompted from inside.
Functions over transformers' CLIP models; nothing here holds or trains a weight."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..utils.precision import at_least_float32

CLIP_INPUTS = ("clip", "released")


def grid_size(config: CLIPVisionConfig) -> int:
    """Patches along one side of the tower's input picture."""
    return config.image_size // config.patch_size


def prepare_pixels(images: torch.Tensor, size: int, clip_input: str = "clip") -> torch.Tensor:
    """Turn pictures [B, 3, H, W] in [-1, 1] into the tower's input [B, 3, size, size]; differentiable.

    `"clip"` does what CLIP was trained with: [0, 1], antialiased bicubic resize, mean and std. Values outside the
    range are not clamped, so that they keep a gradient. `"released"` is what the authors' code does and what their
    checkpoints need: the picture is mapped to [0, 1] twice, so the tower sees [0.5, 1], and resized by nearest
    neighbour (method section 5).

    Raises:
        ValueError: for an unknown `clip_input`.
    """
    if clip_input not in CLIP_INPUTS:
        raise ValueError(f"clip_input must be one of {CLIP_INPUTS}, not {clip_input!r}")
    pixels = (images + 1) / 2
    if clip_input == "released":
        pixels = F.interpolate((pixels + 1) / 2, size=(size, size), mode="nearest")
    elif pixels.shape[-2:] != (size, size):
        # At least float32: CPUs have no antialiased resize for half precision.
        full = F.interpolate(
            at_least_float32(pixels), size=(size, size), mode="bicubic", align_corners=False, antialias=True
        )
        pixels = full.to(pixels.dtype)
    mean = pixels.new_tensor(OPENAI_CLIP_MEAN)[:, None, None]
    std = pixels.new_tensor(OPENAI_CLIP_STD)[:, None, None]
    return (pixels - mean) / std


def image_features(
    image_encoder: CLIPVisionModelWithProjection,
    images: torch.Tensor,
    layers: Sequence[int] = (1, 4, 8),
    clip_input: str = "clip",
) -> torch.Tensor:
    """Patch tokens after some layers of the frozen tower, as maps: what the discriminator reads.

    The tower is left after the last layer asked for.

    Args:
        image_encoder: frozen CLIP image tower.
        images: [B, 3, H, W] in [-1, 1].
        layers: 0-based layers in increasing order.
        clip_input: preprocessing, see [`prepare_pixels`].

    Returns:
        [B, len(layers), width, g, g].
    """
    with _awake(image_encoder) as tower:
        hidden = _embed_pixels(tower, images, clip_input)
        _, features = _run_layers(tower, hidden, range(max(layers) + 1), layers)
    return features


def image_features_and_embeds(
    image_encoder: CLIPVisionModelWithProjection,
    images: torch.Tensor,
    layers: Sequence[int] = (1, 4, 8),
    clip_input: str = "clip",
) -> tuple[torch.Tensor, torch.Tensor]:
    """[`image_features`] and the projected image embedding [B, D] (not normalised) from one pass of the tower."""
    with _awake(image_encoder) as tower:
        hidden = _embed_pixels(tower, images, clip_input)
        hidden, features = _run_layers(tower, hidden, range(len(tower.encoder.layers)), layers)
        pooled = tower.post_layernorm(hidden[:, 0])
    return features, image_encoder.visual_projection(pooled)


def prompted_tower(
    image_encoder: CLIPVisionModelWithProjection,
    grid: torch.Tensor,
    prompts: torch.Tensor,
    prompt_layers: Sequence[int],
) -> torch.Tensor:
    """The generator's CLIP block (method section 4.4): a feature grid takes the place of the patch embedding.

    Args:
        image_encoder: frozen CLIP image tower.
        grid: [B, width, g, g], used as the patch tokens.
        prompts: [B, P, width]; token j is appended before layer `prompt_layers[j]` and dropped after it.
        prompt_layers: P 0-based layers in increasing order.

    Returns:
        The patch tokens after the last layer, without post-LayerNorm, as [B, width, g, g] in the grid's dtype.
    """
    with _awake(image_encoder) as tower:
        dtype = tower.embeddings.patch_embedding.weight.dtype
        hidden = _with_class_token(tower, grid.flatten(2).transpose(1, 2).to(dtype))
        by_layer = dict(zip(prompt_layers, prompts.to(dtype).unbind(dim=1), strict=True))
        for index, layer in enumerate(tower.encoder.layers):
            if index in by_layer:
                hidden = torch.cat([hidden, by_layer[index][:, None]], dim=1)
                hidden = layer(hidden, attention_mask=None)[:, :-1]
            else:
                hidden = layer(hidden, attention_mask=None)
    return _as_map(hidden).to(grid.dtype)


def _embed_pixels(tower: nn.Module, images: torch.Tensor, clip_input: str) -> torch.Tensor:
    pixels = prepare_pixels(images, tower.embeddings.image_size, clip_input)
    embed = tower.embeddings.patch_embedding
    return _with_class_token(tower, embed(pixels.to(embed.weight.dtype)).flatten(2).transpose(1, 2))


def _with_class_token(tower: nn.Module, patches: torch.Tensor) -> torch.Tensor:
    """Patch tokens [B, g*g, width] -> input of layer 0 [B, 1 + g*g, width]."""
    with _hooks_around(tower.embeddings):
        class_token = tower.embeddings.class_embedding.expand(patches.shape[0], 1, -1)
        positions = tower.embeddings.position_embedding(tower.embeddings.position_ids)
        return tower.pre_layrnorm(torch.cat([class_token, patches], dim=1) + positions)


def _run_layers(
    tower: nn.Module, hidden: torch.Tensor, run: range, select: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    if list(select) != sorted(set(select)) or not 0 <= min(select) <= max(select) < len(tower.encoder.layers):
        raise ValueError(
            f"feature layers must increase and lie in 0..{len(tower.encoder.layers) - 1}, not {list(select)}"
        )
    picked = []
    for index in run:
        hidden = tower.encoder.layers[index](hidden, attention_mask=None)
        if index in select:
            picked.append(_as_map(hidden))
    return hidden, torch.stack(picked, dim=1)


def _as_map(hidden: torch.Tensor) -> torch.Tensor:
    """Tokens [B, 1 + g*g, width] -> patch tokens as [B, width, g, g]."""
    patches = hidden[:, 1:].transpose(1, 2)
    side = round(patches.shape[-1] ** 0.5)
    return patches.unflatten(2, (side, side))


@contextlib.contextmanager
def _awake(image_encoder: CLIPVisionModelWithProjection) -> Iterator[nn.Module]:
    """The tower inside `image_encoder`, on its device even under CPU offload.

    Offloading hangs on the `forward` of whole components, which is never called when inner layers are used directly.
    """
    with _hooks_around(image_encoder):
        yield image_encoder.vision_model


@contextlib.contextmanager
def _hooks_around(module: nn.Module) -> Iterator[None]:
    hooks = _offloading_hooks(module)
    for hook in hooks:
        hook.pre_forward(module)
    try:
        yield
    finally:
        for hook in reversed(hooks):
            hook.post_forward(module, None)


def _offloading_hooks(module: nn.Module) -> list:
    """Outermost first. accelerate keeps one hook on a module, diffusers (group offloading) a registry of them."""
    hook, registry = getattr(module, "_hf_hook", None), getattr(module, "_diffusers_hook", None)
    hooks = [] if registry is None else list(reversed(registry.hooks.values()))
    return hooks if hook is None else [*hooks, hook]
