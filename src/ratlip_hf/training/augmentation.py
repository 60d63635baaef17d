"""Differentiable augmentation of what the discriminator sees, for small datasets (Zhao et al. 2020, arXiv:2006.10738).
What happens to a sample is a function of (seed, global sample index, real or generated), nothing else."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

AUGMENTATIONS = ("color", "translation", "cutout", "shift")
_STREAM = 6  # random stream of these numbers; samples and rows have others
_NUMBERS = 9  # uniform numbers per sample: three for colour, two for each of the others
# Largest translation, side of the hole and largest shift, as shares of the image's side.
_TRANSLATION, _HOLE, _SHIFT = 1 / 8, 1 / 2, 1 / 16


def augment(images: torch.Tensor, names: Sequence[str], numbers: torch.Tensor) -> torch.Tensor:
    """Change images [B, 3, H, W] in [-1, 1] in the ways of `names`; differentiable.

    "color": brightness, saturation and contrast. "translation": a shift by up to an eighth, zeros move in. "cutout": a
    square hole of half the side, which may reach over the edge. "shift": by up to a sixteenth, the image goes on
    mirrored; it moves the image against the patches of the CLIP. They are applied in this order, by the numbers
    [B, 9] of [`augmentation_numbers`].
    """
    numbers = numbers.to(images)
    if "color" in names:
        images = _color(images, *numbers[:, :3].T)
    if "translation" in names:
        images = _translate(images, *numbers[:, 3:5].T, _TRANSLATION, "constant")
    if "cutout" in names:
        images = _cut_out(images, *numbers[:, 5:7].T)
    if "shift" in names:
        images = _translate(images, *numbers[:, 7:9].T, _SHIFT, "reflect")
    return images


def augmentation_numbers(seed: int, indices: Sequence[int], generated: bool) -> torch.Tensor:
    """Uniform numbers in [0, 1), [B, 9], for the samples with these global indices."""
    rngs = (np.random.default_rng((seed, _STREAM, index, int(generated))) for index in indices)
    return torch.from_numpy(np.stack([rng.random(_NUMBERS) for rng in rngs])).float()


def _color(images: torch.Tensor, brightness: torch.Tensor, saturation: torch.Tensor, contrast: torch.Tensor):
    """Add up to a half, scale the distance from grey by up to 2, and that from the mean by 0.5 to 1.5."""
    brightness, saturation, contrast = (x[:, None, None, None] for x in (brightness, saturation, contrast))
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (0.5 + contrast)


def _translate(images: torch.Tensor, across: torch.Tensor, down: torch.Tensor, share: float, border: str):
    height, width = images.shape[-2:]
    x, y = _positions(across, width, share), _positions(down, height, share)
    room = (round(width * share), round(height * share))
    padded = F.pad(images, (room[0], room[0], room[1], room[1]), mode=border)
    rows = (y[:, None] + room[1] + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (x[:, None] + room[0] + torch.arange(width, device=images.device))[:, None, None, :]
    sample = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return padded[sample, channel, rows, columns]


def _positions(numbers: torch.Tensor, side: int, share: float) -> torch.Tensor:
    """Whole numbers from -share * side to +share * side, each as likely as the others."""
    most = round(side * share)
    return (numbers * (2 * most + 1)).long().clamp(max=2 * most) - most


def _cut_out(images: torch.Tensor, across: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    height, width = images.shape[-2:]
    inside = []
    for numbers, side in ((down, height), (across, width)):
        hole = round(side * _HOLE)
        first = (numbers * (side + 1)).long().clamp(max=side) - hole // 2
        place = torch.arange(side, device=images.device)
        inside.append((place >= first[:, None]) & (place < first[:, None] + hole))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(hole, 0.0)
