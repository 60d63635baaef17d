"""An auxiliary discriminator that reads pixels, for what the frozen CLIP does not see: fine texture, and the joints of
its patches. It is not in the paper; `training/pixel_losses.py` has its losses."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import nn

from .base import StrictModel

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


class PixelDiscriminator(StrictModel):
    """Scores images [B, 3, S, S] in [-1, 1] with texts [B, D] as the frozen CLIP's discriminator conditions them.

    The logit [B] is a linear function of the image's features plus their product with the text, projected (Miyato and
    Koyama 2018, arXiv:1802.05637). `channels` is the width at full size; it doubles with each halving, at most
    eightfold, until the side is 4 to 7 pixels.
    """

    folder = "pixel_discriminator"

    @register_to_config
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
