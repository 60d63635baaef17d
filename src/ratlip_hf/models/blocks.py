"""Convolution blocks of the generator: the three forms of a 3x3 convolution, a bridge block, an image block.
They take the states of their affine layers as arguments and know nothing of where those come from."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .attention import ShuffleAttention
from .modulation import FusionUnit

CONV_BLOCKS = ("plain", "bn_act", "bn_act_sa")
UPSAMPLINGS = ("nearest", "bilinear")


class ConvBlock(nn.Module):
    """A 3x3 convolution in one of three forms.

    `plain`: with bias, nothing else (GALIP). `bn_act`: no bias, then BatchNorm and LeakyReLU(0.01). `bn_act_sa`: the
    same followed by shuffle attention, which is the released code's SAConv.
    """

    def __init__(self, in_channels: int, out_channels: int, form: str, attention_groups: int):
        super().__init__()
        plain = form == "plain"
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=plain)
        self.norm = None if plain else nn.BatchNorm2d(out_channels)
        self.attention = ShuffleAttention(out_channels, attention_groups) if form == "bn_act_sa" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, C_in, H, W] -> [B, C_out, H, W]."""
        x = self.conv(x)
        if self.norm is not None:
            x = F.leaky_relu(self.norm(x), 0.01, inplace=True)
        return x if self.attention is None else self.attention(x)


class BridgeBlock(nn.Module):
    """h + residual(h) at constant size: conv to half the channels, fusion, conv back, fusion."""

    AFFINES = 2 * FusionUnit.AFFINES

    def __init__(self, channels: int, state_dim: int, form: str, attention_groups: int):
        super().__init__()
        self.conv1 = ConvBlock(channels, channels // 2, "plain", attention_groups)
        self.fuse1 = FusionUnit(channels // 2, state_dim)
        self.conv2 = ConvBlock(channels // 2, channels, form, attention_groups)
        self.fuse2 = FusionUnit(channels, state_dim)

    def forward(self, x: torch.Tensor, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """x [B, C, g, g] and four states [B, S] -> [B, C, g, g]."""
        residual = self.fuse1(self.conv1(x), states[:2])
        return x + self.fuse2(self.conv2(residual), states[2:])


class ImageBlock(nn.Module):
    """Resize to `size`, then shortcut + [fusion -> conv -> fusion -> conv]."""

    AFFINES = 2 * FusionUnit.AFFINES

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        state_dim: int,
        form: str,
        attention_groups: int,
        upsampling: str,
    ):
        super().__init__()
        self.size, self.upsampling = size, upsampling
        self.fuse1 = FusionUnit(in_channels, state_dim)
        self.conv1 = ConvBlock(in_channels, out_channels, form, attention_groups)
        self.fuse2 = FusionUnit(out_channels, state_dim)
        self.conv2 = ConvBlock(out_channels, out_channels, form, attention_groups)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: torch.Tensor, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """x [B, C_in, h, w] and four states [B, S] -> [B, C_out, size, size]."""
        options = {} if self.upsampling == "nearest" else {"align_corners": False}
        x = F.interpolate(x, size=(self.size, self.size), mode=self.upsampling, **options)
        residual = self.conv1(self.fuse1(x, states[:2]))
        return self.shortcut(x) + self.conv2(self.fuse2(residual, states[2:]))
