"""Weights of the plain blocks as the fast ones use them: BatchNorm folded into the convolution, channels reordered.
Sums are formed in float64, so that folding costs no more than one rounding."""

import torch
from torch import nn

from ..models.blocks import ConvBlock

NORM_SLOPE = 0.01  # LeakyReLU after the BatchNorm of a ConvBlock


def folded(block: ConvBlock) -> tuple[torch.Tensor, torch.Tensor, float | None]:
    """(weight [C_out, C_in, 3, 3], bias [C_out], slope): the block without attention as convolution and LeakyReLU.

    Uses the running statistics of the norm, as in eval mode; the slope is None for the form "plain".
    """
    weight, norm = block.conv.weight.detach(), block.norm
    if norm is None:
        return weight.double(), block.conv.bias.detach().double(), None
    scale = norm.weight.detach().double() * (norm.running_var.double() + norm.eps).rsqrt()
    bias = norm.bias.detach().double() - scale * norm.running_mean.double()
    return weight * scale[:, None, None, None], bias, NORM_SLOPE


def reordered(layer: nn.Conv2d, rows: torch.Tensor | None, columns: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Weight and bias of a convolution whose output and input channels lie in the given orders; None keeps them."""
    return rearrange(layer.weight.detach(), layer.bias.detach(), rows, columns)


def rearrange(
    weight: torch.Tensor, bias: torch.Tensor, rows: torch.Tensor | None, columns: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [C_out, C_in, ...] and bias [C_out] with output channels `rows` and input channels `columns`."""
    if rows is None:
        return (weight if columns is None else weight[:, columns]), bias
    return (weight[rows] if columns is None else weight[rows[:, None], columns]), bias[rows]
