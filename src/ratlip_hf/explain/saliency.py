"""Where in an image a score comes from: Grad-CAM, attention x gradient, gradient x input, occlusion.
All take images [B, 3, S, S] in [-1, 1] and a score (images -> [B, K], see `scores`) and give maps [B, K, S, S];
at the end, maps against masks."""

import contextlib
import threading
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPVisionModelWithProjection

from .scores import Score

_SQUARES = 32  # that occlusion covers in one run of the score


def grad_cam(score: Score, images: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """Grad-CAM (arXiv 1610.02391): channels of a layer times the mean of their gradients, summed, negatives cut.

    Args:
        score: what is explained.
        images: [B, 3, S, S].
        layer: called once in `score`; its values are maps [B, C, h, w], or tokens [B, 1 + g*g, C] of which the first,
            the class token, has no place. In a ViT take one before the last attention, such as its `layer_norm1`:
            patch tokens of the last layer's output have no gradient.

    Returns:
        Maps [B, K, S, S], at least 0, in the units of the score.

    Raises:
        ValueError: if the score never calls the layer, or its values have no places.
    """
    with recorded([layer], "output") as seen:
        columns = score(images.detach().requires_grad_())
    values = _the_only(seen)
    return torch.stack([_cam(values, gradient, images) for (gradient,) in _gradients(columns, [values])], dim=1)


def _cam(values: torch.Tensor, gradient: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    values, gradient = _as_maps(values.detach()), _as_maps(gradient)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return _to_pixels((weights * values).sum(dim=1).relu(), images)


def attention_x_gradient(
    score: Score, images: torch.Tensor, image_encoder: CLIPVisionModelWithProjection
) -> torch.Tensor:
    """Attention x gradient of every layer of a CLIP image tower, rolled out (arXiv 2103.15679, Eqs. 5, 6).

    Per layer: positive part of attention times its gradient, mean over heads. The class token's row says what patches
    matter; where a score reads patch tokens instead, as the discriminator does, the mean of their rows.

    Args:
        score: what is explained; it runs `image_encoder` once.
        images: [B, 3, S, S].
        image_encoder: the tower.

    Returns:
        Maps [B, K, S, S], at least 0; only their shape has a meaning.
    """
    layers = [layer.self_attn for layer in image_encoder.vision_model.encoder.layers]
    with _attentions_returned(image_encoder), recorded(layers, "output") as seen:
        columns = score(images.detach().requires_grad_())
    attentions = [values[1] for values in seen]
    return torch.stack([_rolled_out(attentions, each, images) for each in _gradients(columns, attentions)], dim=1)


def _rolled_out(attentions: Sequence[torch.Tensor], gradients: Sequence, images: torch.Tensor) -> torch.Tensor:
    relevance, rows = torch.eye(attentions[0].shape[-1]).to(attentions[0])[None], None
    for attention, gradient in zip(attentions, gradients, strict=True):
        if gradient is None:  # a layer behind all that the score reads
            continue
        step = (attention.detach() * gradient).relu().mean(dim=1)
        relevance = relevance + step @ relevance
        reads_class = bool((gradient[:, :, 0] != 0).any()) and not bool((gradient[:, :, 1:] != 0).any())
        rows = relevance[:, :1, 1:] if reads_class else relevance[:, 1:, 1:]
    if rows is None:
        raise ValueError("the score reads nothing of the image tower")
    if rows.shape[1] > 1:  # without itself: the identity says that every token matters to itself
        rows = rows - torch.eye(rows.shape[-1]).to(rows)
    return _to_pixels(_square(rows.mean(dim=1)), images)


def gradient_x_input(score: Score, images: torch.Tensor, steps: int = 8, blur: float = 0.06) -> torch.Tensor:
    """Integrated gradients (arXiv 1703.01365) from grey, their absolute values summed over colours and blurred.

    Args:
        score: what is explained.
        images: [B, 3, S, S].
        steps: points between grey and the image at which gradients are taken.
        blur: standard deviation of the blur, as a share of the side; single pixels say little.

    Returns:
        Maps [B, K, S, S], at least 0.
    """
    total: torch.Tensor | int = 0
    for step in range(steps):
        between = (images.detach() * (step + 0.5) / steps).requires_grad_()
        columns = score(between)
        total = total + torch.stack([gradient for (gradient,) in _gradients(columns, [between])], dim=1)
    return _blurred((total / steps * images[:, None]).sum(dim=2).abs(), blur * images.shape[-1])


@torch.no_grad()
def occlusion(score: Score, images: torch.Tensor, size: float = 0.16, stride: float = 0.06) -> torch.Tensor:
    """How much the score falls when a square is covered by the image's own blur, averaged over squares.

    It needs no gradient and no inside of the network, and one run of the score for every place.

    Args:
        score: what is explained.
        images: [B, 3, S, S].
        size, stride: side of the squares and way between them, as shares of S.

    Returns:
        Maps [B, K, S, S]; negative where covering helps.
    """
    side = images.shape[-1]
    window, step = max(1, round(size * side)), max(1, round(stride * side))
    cover, whole = _blurred(images, 0.15 * side), score(images)
    total = torch.zeros(*whole.shape, side, side).to(images)
    count = torch.zeros(side, side).to(images)
    starts = [*range(0, side - window, step), side - window]
    squares = [(..., slice(y, y + window), slice(x, x + window)) for y in starts for x in starts]
    for first in range(0, len(squares), _SQUARES):
        part = squares[first : first + _SQUARES]
        covered = images.repeat(len(part), 1, 1, 1).unflatten(0, (len(part), -1))
        for each, square in zip(covered, part, strict=True):
            each[square] = cover[square]
        falls = whole - score(covered.flatten(0, 1)).unflatten(0, (len(part), -1))
        for fall, square in zip(falls, part, strict=True):
            total[square] += fall[..., None, None]
            count[square] += 1
    return total / count


def _gradients(columns: torch.Tensor, values: Sequence[torch.Tensor]) -> Iterator[tuple]:
    """Gradients of each column [B, K] with respect to recorded values; samples of a batch do not mix."""
    if columns.ndim != 2:
        raise ValueError(f"a score must give [batch, results], not {list(columns.shape)}")
    for index in range(columns.shape[1]):
        last = index == columns.shape[1] - 1
        yield torch.autograd.grad(columns[:, index].sum(), values, retain_graph=not last, allow_unused=True)


@contextlib.contextmanager
def recorded(modules: Sequence[nn.Module], gives: str) -> Iterator[list]:
    """What modules are given or give back in this thread, in the order of their calls; with gradients."""
    seen, here = [], threading.get_ident()

    def record(module, inputs, outputs):
        if threading.get_ident() == here:
            seen.append(inputs[0] if gives == "input" else outputs)

    hooks = [module.register_forward_hook(record) for module in modules]
    try:
        with torch.enable_grad():
            yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _attentions_returned(image_encoder: CLIPVisionModelWithProjection) -> Iterator[None]:
    """Attention computed step by step; fused kernels return no weights. The results agree to rounding."""
    config = image_encoder.vision_model.encoder.layers[0].self_attn.config
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


def _the_only(seen: list) -> torch.Tensor:
    if len(seen) != 1 or not isinstance(seen[0], torch.Tensor):
        raise ValueError(
            f"the score must call the layer once, and the layer give a tensor; {len(seen)} calls were seen"
        )
    return seen[0]


def _as_maps(values: torch.Tensor) -> torch.Tensor:
    """[B, C, h, w] as it is; tokens [B, 1 + g*g, C] without the class token as [B, C, g, g]."""
    return values if values.ndim == 4 else _square(values[:, 1:].transpose(1, 2))


def _square(values: torch.Tensor) -> torch.Tensor:
    side = round(values.shape[-1] ** 0.5)
    if side**2 != values.shape[-1]:
        raise ValueError(f"{values.shape[-1]} tokens make no square")
    return values.unflatten(-1, (side, side))


def _to_pixels(maps: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """[B, h, w] -> [B, S, S]"""
    return F.interpolate(maps[:, None], images.shape[-2:], mode="bicubic", align_corners=False)[:, 0].relu()


def _blurred(maps: torch.Tensor, deviation: float) -> torch.Tensor:
    """Gaussian blur of the last two dimensions of [B, C, S, S], the edges repeated."""
    reach = max(1, round(2.5 * deviation))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation) ** 2).to(maps)
    kernel = (kernel / kernel.sum())[None, None]
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    padded = F.pad(flat, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[..., None]), kernel[:, :, None]).reshape(maps.shape)


# Maps against masks: the pointing game and the energy inside (arXiv 1608.00507, 1910.01279)


def pointing_hits(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Whether a map [..., S, S] is largest at a place that is mostly the part's; masks [..., S, S] hold shares of
    pixels. A map that is the same everywhere points nowhere. Returns floats [...]."""
    flat = maps.flatten(-2)
    inside = masks.flatten(-2).gather(-1, flat.argmax(-1, keepdim=True))[..., 0] >= 0.5
    return (inside & (flat.amax(-1) > flat.amin(-1))).float()


def energy_inside(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The share of a map's positive values that lies within the mask; 0 for a map without any. Floats [...]."""
    positive = maps.clamp(min=0)
    return (positive * masks).sum(dim=(-2, -1)) / positive.sum(dim=(-2, -1)).clamp(min=1e-12)
