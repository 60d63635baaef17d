"""The fast forms of a bridge block and an image block, built from the plain ones. Maps are [B, H, W, C] throughout.
A map of C channels lies in `order_of(block, C)` at every boundary, so that weights can be reordered once."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..models.blocks import BridgeBlock, ConvBlock, ImageBlock
from ..models.modulation import Affine
from .affines import finish_fusion_, fuse_, modulate
from .attention import FastAttention, channel_order, rows_before_attention
from .folding import folded, rearrange, reordered
from .layers import Convolution, Linear, resize
from .upsampled_convolution import upsampled_convolution

Pair = tuple[torch.Tensor, torch.Tensor]


def order_of(block: nn.Module, channels: int) -> torch.Tensor | None:
    """The order in which maps of that many channels are kept around such a block; None for as they are."""
    attention = block.conv2.attention
    return None if attention is None else channel_order(channels, attention.groups)


def affines_and_orders(blocks: nn.ModuleList) -> tuple[list[Affine], list[torch.Tensor | None]]:
    """The affine layers of bridge or image blocks in order of use, and the order of the channels that each meets."""
    affines, orders = [], []
    for block in blocks:
        first, second = block.conv1.conv, block.conv2.conv
        # The bridge's first convolution is without attention and keeps its channels where they are.
        before = None if isinstance(block, BridgeBlock) else order_of(block, first.in_channels)
        for unit, order in ((block.fuse1, before), (block.fuse2, order_of(block, second.out_channels))):
            affines += unit.affines
            orders += [order] * len(unit.affines)
    return affines, orders


def _fast_weights(block: ConvBlock, columns: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, float | None]:
    weight, bias, slope = folded(block)
    channels = len(bias)
    rows = None if block.attention is None else rows_before_attention(channels, block.attention.groups)
    return *rearrange(weight, bias, rows, columns), slope


def _fast_attention(block: ConvBlock, dtype: torch.dtype) -> FastAttention | None:
    return None if block.attention is None else FastAttention(block.attention, block.conv.out_channels, dtype)


class FastBridgeBlock:
    """[`BridgeBlock`] with folded norms and without shuffles."""

    def __init__(self, block: BridgeBlock, size: int, dtype: torch.dtype):
        conv1, order = block.conv1.conv, order_of(block, block.conv1.conv.in_channels)
        self.conv1 = Convolution(*reordered(conv1, None, order), dtype, size, padding=1)
        weight, bias, slope = _fast_weights(block.conv2, None)
        self.conv2 = Convolution(weight, bias, dtype, size, padding=1, slope=slope)
        self.attention = _fast_attention(block.conv2, dtype)

    def __call__(self, x: torch.Tensor, pairs: Sequence[Pair]) -> torch.Tensor:
        """x [B, g, g, C] and four (gamma, beta) -> [B, g, g, C]."""
        residual = self.conv2(fuse_(self.conv1(x), pairs[:2]))
        factor = None if self.attention is None else self.attention(residual)
        return fuse_(residual, pairs[2:], factor).add_(x)


class FastImageBlock:
    """[`ImageBlock`] with what can be done before the resize done there.

    Nearest: the first fusion unit and the shortcut are exact on the small map, and the first convolution folds into
    the resize. Bilinear weights sum to 1, so the first affine and the shortcut (a 1x1 convolution) are exact on the
    small map, too, but no LeakyReLU is.
    """

    def __init__(self, block: ImageBlock, size_in: int, dtype: torch.dtype):
        conv = block.conv1.conv
        order_in, order_out = (order_of(block, width) for width in (conv.in_channels, conv.out_channels))
        self.size, self.mode = block.size, block.upsampling
        weight, bias, slope = _fast_weights(block.conv1, order_in)
        if self.mode == "nearest":
            self.conv1 = upsampled_convolution(weight, bias, slope, size_in, self.size, dtype)
        else:
            self.conv1 = Convolution(weight, bias, dtype, self.size, padding=1, slope=slope)
        weight, bias, slope = _fast_weights(block.conv2, order_out)
        self.conv2 = Convolution(weight, bias, dtype, self.size, padding=1, slope=slope)
        self.attention1, self.attention2 = (_fast_attention(part, dtype) for part in (block.conv1, block.conv2))
        self.shortcut = None
        if isinstance(block.shortcut, nn.Conv2d):
            weight, bias = reordered(block.shortcut, order_out, order_in)
            self.shortcut = Linear(weight.flatten(1), bias, dtype)

    def __call__(self, x: torch.Tensor, pairs: Sequence[Pair]) -> torch.Tensor:
        """x [B, h, h, C_in] and four (gamma, beta) -> [B, size, size, C_out]."""
        residual = self.conv1(self._modulated(x, pairs[:2]))
        factor = None if self.attention1 is None else self.attention1(residual)
        residual = self.conv2(fuse_(residual, pairs[2:], factor))
        factor = None if self.attention2 is None else self.attention2(residual)
        return self._sum_(residual, factor, x if self.shortcut is None else self.shortcut(x))

    def _modulated(self, x: torch.Tensor, pairs: Sequence[Pair]) -> torch.Tensor:
        first = modulate(x, pairs[0])
        return finish_fusion_(first if self.mode == "nearest" else resize(first, self.size, self.mode), pairs[1])

    def _sum_(self, residual: torch.Tensor, factor: torch.Tensor | None, shortcut: torch.Tensor) -> torch.Tensor:
        """factor * residual + the resized shortcut, in place of the residual."""
        small, whole = shortcut.shape[1], residual
        if self.mode == "nearest" and self.size == 2 * small:
            # Four places of the residual meet one of the shortcut, which need not be written out four times.
            residual = residual.unflatten(2, (small, 2)).unflatten(1, (small, 2))
            shortcut = shortcut[:, :, None, :, None]
        else:
            shortcut = resize(shortcut, self.size, self.mode)
        if factor is None:
            residual.add_(shortcut)
        else:
            factor = factor.view(len(factor), *[1] * (residual.ndim - 2), -1)
            torch.addcmul(shortcut, factor, residual, out=residual)
        return whole


class FastRGB:
    """LeakyReLU(0.2) and the convolution to three colours."""

    def __init__(self, to_rgb: nn.Conv2d, order: torch.Tensor | None, size: int, dtype: torch.dtype):
        self.convolution = Convolution(*reordered(to_rgb, None, order), dtype, size, padding=1)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, S, S, C], overwritten -> [B, S, S, 3]."""
        return self.convolution(F.leaky_relu_(x, 0.2))
