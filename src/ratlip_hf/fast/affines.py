"""All affine layers of the bridge or of the image generator at once: their small MLPs as few batched matrix products.
Owns how gamma and beta are computed and applied; the states come from outside."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..models.modulation import Affine

FUSION_SLOPE = 0.2  # LeakyReLU after each affine of a FusionUnit


class AffineBank:
    """gamma and beta of a list of affine layers. Layers of equal width share two batched products.

    Args:
        affines: the layers in order of use.
        orders: for each the order in which its channels are kept; None for as they are.
        dtype: of weights and results.
    """

    def __init__(self, affines: Sequence[Affine], orders: Sequence[torch.Tensor | None], dtype: torch.dtype):
        self.dtype, self.count = dtype, len(affines)
        widths = [affine.gamma[-1].out_features for affine in affines]
        self.groups = [
            _Group([(index, affines[index], orders[index]) for index, w in enumerate(widths) if w == width], dtype)
            for width in dict.fromkeys(widths)
        ]

    def __call__(self, states: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """One state [B, S] per layer -> (gamma, beta) per layer, each [B, C]."""
        states = torch.stack([state.to(self.dtype) for state in states])
        found = {index: pair for group in self.groups for index, pair in group(states)}
        return [found[index] for index in range(self.count)]


class _Group:
    """Layers of one width; MLPs 2i and 2i + 1 are gamma and beta of its layer i."""

    def __init__(self, members: list[tuple[int, Affine, torch.Tensor | None]], dtype: torch.dtype):
        self.indices = [index for index, _, _ in members]
        self.readers = torch.tensor(self.indices).repeat_interleave(2)
        mlps = [(mlp, order) for _, affine, order in members for mlp in (affine.gamma, affine.beta)]
        self.first = _stacked([(mlp[0], None) for mlp, _ in mlps], dtype)
        self.last = _stacked([(mlp[2], order) for mlp, order in mlps], dtype)

    def __call__(self, states: torch.Tensor) -> list[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
        weight, bias = self.first
        hidden = torch.baddbmm(bias, states[self.readers], weight).relu_()
        weight, bias = self.last
        results = torch.baddbmm(bias, hidden, weight).unbind()
        return list(zip(self.indices, zip(results[::2], results[1::2], strict=True), strict=True))


def _stacked(layers: list[tuple[nn.Linear, torch.Tensor | None]], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Weights [n, S, C] and biases [n, 1, C] of linear layers with their outputs in the given orders."""
    every = slice(None)
    orders = [every if order is None else order for _, order in layers]
    first = layers[0][0]
    weight = torch.empty(len(layers), first.in_features, first.out_features, dtype=dtype)
    for target, (layer, _), order in zip(weight, layers, orders, strict=True):
        target.copy_(layer.weight.detach()[order].T)
    bias = torch.stack([layer.bias.detach()[order] for (layer, _), order in zip(layers, orders, strict=True)])
    return weight, bias[:, None].to(dtype)


def modulate(x: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """gamma * x + beta of x [B, H, W, C], which stays as it is; gamma and beta are [B, C]."""
    gamma, beta = (vector[:, None, None] for vector in pair)
    return torch.addcmul(beta, gamma, x)


def fuse_(
    x: torch.Tensor, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], factor: torch.Tensor | None = None
) -> torch.Tensor:
    """A fusion unit on factor * x, in place: affine -> LeakyReLU(0.2) -> affine -> LeakyReLU(0.2)."""
    gamma, beta = pairs[0]
    gamma = gamma if factor is None else gamma * factor
    torch.addcmul(beta[:, None, None], gamma[:, None, None], x, out=x)
    return finish_fusion_(x, pairs[1])


def finish_fusion_(x: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The fusion unit after its first affine, in place."""
    gamma, beta = (vector[:, None, None] for vector in pair)
    F.leaky_relu_(x, FUSION_SLOPE)
    torch.addcmul(beta, gamma, x, out=x)
    return F.leaky_relu_(x, FUSION_SLOPE)
