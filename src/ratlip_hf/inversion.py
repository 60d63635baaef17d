"""Which noise, and if wanted which text embedding, makes a given image: found by descent through the frozen generator.
`invert` starts from the best of several draws, `fit` from given noise; `edit` changes words of what was found."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import CLIPVisionModelWithProjection

from .models import RATLIPGenerator
from .utils.tensors import evaluating

_RATE = 0.1  # Adam's step for noise, whose entries are standard normal
_NOISE_WEIGHT = 0.002  # of the squared way that noise goes
_TEXT_WEIGHT = 0.005  # of the squared way that text goes, in lengths of its embedding
_SMOOTH = 0.1  # differences of pixels well above it count linearly, so that one changed part does not move the rest


@dataclass(frozen=True)
class Inversion:
    """What was found: noise [B, Z], text embeddings [B, D], the images [B, 3, S, S] in [-1, 1] that they make, and
    the distance [B] of these from the given ones, see [`image_distance`]."""

    noise: torch.Tensor
    prompt_embeds: torch.Tensor
    images: torch.Tensor
    distance: torch.Tensor


def image_distance(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Mean over pixels of sqrt(difference^2 + 0.1^2) - 0.1 (Charbonnier); [B, 3, S, S] in [-1, 1] twice -> [B]."""
    return ((images - others).square() + _SMOOTH**2).sqrt().flatten(1).mean(dim=1) - _SMOOTH


def invert(
    generator: RATLIPGenerator,
    image_encoder: CLIPVisionModelWithProjection,
    images: torch.Tensor,
    prompt_embeds: torch.Tensor,
    *,
    steps: int = 60,
    candidates: int = 24,
    text_rate: float = 0.1,
    seed: int = 0,
) -> Inversion:
    """Noise that makes images as close to the given ones as the model can.

    Args:
        generator: the network; its weights stay as they are.
        image_encoder: the CLIP image tower it borrows.
        images: [B, 3, S, S] in [-1, 1], S the generator's `sample_size`.
        prompt_embeds: raw text embeddings [B, D] of what they show.
        steps: of Adam, after the start has been chosen.
        candidates: draws of noise per image, of which the one with the nearest image is the start.
        text_rate: how far an entry of the text embedding may go in a step, in root mean squares of the embedding;
            0 holds the text.
        seed: of the draws.

    Raises:
        ValueError: for images of another size, or inputs that do not fit the generator.
    """
    _check_images(generator, images, prompt_embeds)
    draws = torch.Generator().manual_seed(seed)
    start = torch.zeros(len(images), generator.config.noise_dim).to(images)
    best = torch.full((len(images),), torch.inf, device=images.device)
    with torch.no_grad(), evaluating(generator):
        for _ in range(candidates):
            z = torch.randn(*start.shape, generator=draws).to(images)
            distance = image_distance(_generated(generator, image_encoder, z, prompt_embeds), images)
            start[distance < best] = z[distance < best]
            best = torch.minimum(distance, best)
    return fit(generator, image_encoder, images, prompt_embeds, start, steps, text_rate)


def fit(
    generator: RATLIPGenerator,
    image_encoder: CLIPVisionModelWithProjection,
    images: torch.Tensor,
    prompt_embeds: torch.Tensor,
    noise: torch.Tensor,
    steps: int,
    text_rate: float = 0.0,
) -> Inversion:
    """[`invert`] from given noise [B, Z]: `steps` steps of Adam on [`image_distance`] and the way from the start.

    Of all that it passes, each image gets what came nearest, at worst its start.
    """
    _check_images(generator, images, prompt_embeds)
    images, prompt_embeds = images.detach(), prompt_embeds.detach().to(images)
    first = noise.detach().to(images)
    noise, text_way = first.clone().requires_grad_(), torch.zeros_like(prompt_embeds).requires_grad_()
    moving = [noise, text_way] if text_rate else [noise]
    groups: list[dict[str, Any]] = [{"params": [noise]}, {"params": [text_way], "lr": text_rate}]
    optimizer = torch.optim.Adam(groups, lr=_RATE)
    length = prompt_embeds.square().mean(dim=1, keepdim=True).sqrt()
    nearest = torch.full((len(images),), torch.inf, device=images.device)
    best = Inversion(first.clone(), prompt_embeds.clone(), images.clone(), nearest)
    with evaluating(generator):
        for step in range(steps + 1):
            with torch.set_grad_enabled(step < steps):
                text = prompt_embeds + length * text_way
                made = _generated(generator, image_encoder, noise, text)
                distance = image_distance(made, images)
                ways = _NOISE_WEIGHT * (noise - first).square().sum() + _TEXT_WEIGHT * text_way.square().mean(1).sum()
                loss = distance.sum() + ways
            _keep_nearer(best, Inversion(noise, text, made.clamp(-1, 1), distance))
            if step < steps:
                optimizer.zero_grad()
                loss.backward(inputs=moving)  # the networks' own weights get no gradients
                optimizer.step()
    return best


def edit(
    generator: RATLIPGenerator,
    image_encoder: CLIPVisionModelWithProjection,
    found: Inversion,
    change: torch.Tensor,
    keep_steps: int = 10,
) -> Inversion:
    """The images of an inversion with other words: `change` [B, D], the embedding of the new prompt less that of the
    old one, is added to the text that was found; then the noise moves towards what looks as before, as in
    `RATLIPPipeline.edit`. `distance` is that from the images before."""
    text = found.prompt_embeds + change.detach().to(found.prompt_embeds)
    return fit(generator, image_encoder, found.images, text, found.noise, keep_steps)


@torch.no_grad()
def _keep_nearer(best: Inversion, found: Inversion) -> None:
    nearer = found.distance < best.distance
    for name in ("noise", "prompt_embeds", "images", "distance"):
        getattr(best, name)[nearer] = getattr(found, name)[nearer].to(getattr(best, name).dtype)


def _generated(generator, image_encoder, noise: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
    size = 1 if generator.couples_batch else len(noise)
    inputs = [value.to(generator.dtype).split(size) for value in (noise, prompt_embeds)]
    parts = zip(*inputs, strict=True)
    return torch.cat([generator(z, text, image_encoder).sample for z, text in parts]).to(noise.dtype)


def _check_images(generator: RATLIPGenerator, images: torch.Tensor, prompt_embeds: torch.Tensor) -> None:
    side = generator.config.sample_size
    if images.ndim != 4 or list(images.shape[1:]) != [3, side, side] or len(images) != len(prompt_embeds):
        raise ValueError(
            f"images must be [{len(prompt_embeds)}, 3, {side}, {side}], one for each text, not {list(images.shape)}"
        )
