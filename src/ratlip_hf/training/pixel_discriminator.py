"""An auxiliary discriminator that reads pixels, for what the frozen CLIP does not see: fine texture, and the joints of
its patches. It is not in the paper, and off unless `pixel_loss_weight` is positive.

Its loss compares each generated image with the real one of the same caption (relativistic pairs; Jolicoeur-Martineau
2018, arXiv:1807.00734) under zero-centred gradient penalties on both (R1 and R2; Huang et al. 2025, arXiv:2501.05441),
which are taken every few steps with as much more weight (lazy; Karras et al. 2020, arXiv:1912.04958).
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from ..models import RATLIPGenerator
from ..utils.tensors import at_least_float32
from .config import TrainingConfig

PENALTY_INTERVAL = 8  # steps between gradient penalties
_LAST = 4  # side of the last maps
_WIDEST = 8  # times the channels of the first maps
_SLOPE = 0.2


class _Block(nn.Module):
    """x + residual of two 3x3 convolutions, then half the side and other channels; no normalisation."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.narrow = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        nn.init.zeros_(self.conv2.weight)  # every block starts as a mean over pixels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(x, _SLOPE)), _SLOPE))
        return self.narrow(F.avg_pool2d(x + residual, 2))


class PixelDiscriminator(nn.Module):
    """Scores images [B, 3, S, S] in [-1, 1] with texts [B, D] as the frozen CLIP's discriminator conditions them.

    The logit [B] is a linear function of the image's features plus their product with the text, projected (Miyato and
    Koyama 2018, arXiv:1802.05637). `channels` is the width at full size; it doubles with each halving, at most
    eightfold, until the side is 4 to 7 pixels.
    """

    def __init__(self, sample_size: int, text_dim: int, channels: int):
        super().__init__()
        halvings = int(math.log2(sample_size / _LAST))
        widths = [channels * min(2**step, _WIDEST) for step in range(halvings + 1)]
        self.from_rgb = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(_Block(*pair) for pair in pairwise(widths)))
        self.features = nn.Linear(widths[-1] * _LAST**2, widths[-1])
        self.alone = nn.Linear(widths[-1], 1)
        self.with_text = nn.Linear(text_dim, widths[-1], bias=False)

    def forward(self, images: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x = F.adaptive_avg_pool2d(self.blocks(self.from_rgb(images)), _LAST)
        x = F.leaky_relu(self.features(F.leaky_relu(x, _SLOPE).flatten(1)), _SLOPE)
        text = F.normalize(self.with_text(text), dim=1)
        return self.alone(x)[:, 0] + (x * text).sum(dim=1)


def build(config: TrainingConfig, generator: RATLIPGenerator) -> PixelDiscriminator | None:
    """The discriminator that a run has for images of its generator, if it has one."""
    if not config.pixel_loss_weight:
        return None
    return PixelDiscriminator(generator.config.sample_size, generator.config.text_dim, config.pixel_channels)


def relativistic(better: torch.Tensor, worse: torch.Tensor) -> torch.Tensor:
    """E[softplus(worse - better)] over pairs of logits [B]."""
    return F.softplus(at_least_float32(worse) - at_least_float32(better)).mean()


def zero_centred_penalty(logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """E[|d logit / d image|^2] / 2 for logits [B] of images [B, 3, S, S] that require gradients."""
    (gradients,) = torch.autograd.grad(at_least_float32(logits).sum(), images, create_graph=True)
    return gradients.square().sum(dim=(1, 2, 3)).mean() / 2


def discriminator_loss(
    discriminator: nn.Module,
    real: torch.Tensor,
    fake: torch.Tensor,
    text: torch.Tensor,
    penalty_weight: float,
    penalise: bool,
) -> dict[str, torch.Tensor]:
    """The loss to descend, and what is logged, for images [B, 3, S, S] (detached) and conditioned texts [B, D]."""
    real, fake = (at_least_float32(images).detach().requires_grad_(penalise) for images in (real, fake))
    real_logits, fake_logits = discriminator(torch.cat([real, fake]), torch.cat([text, text])).chunk(2)
    loss = relativistic(real_logits, fake_logits)
    terms = {"p_loss": loss, "p_gap": (real_logits - fake_logits).mean()}
    if penalise:
        penalty = zero_centred_penalty(real_logits, real) + zero_centred_penalty(fake_logits, fake)
        loss = loss + penalty_weight * PENALTY_INTERVAL * penalty
        terms["p_penalty"] = penalty
    return {"loss": loss, **terms}


def generator_loss(
    discriminator: nn.Module, real: torch.Tensor, fake: torch.Tensor, text: torch.Tensor
) -> torch.Tensor:
    """The generator's side, for generated images with a graph; the discriminator is frozen."""
    with torch.no_grad():
        real_logits = discriminator(real, text)
    return relativistic(discriminator(fake, text), real_logits)
