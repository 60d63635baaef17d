"""Affine modulation of feature maps by a state vector, and the fusion unit made of two of them.
Owns Eqs. 1 and 2; where the state comes from is the business of `recurrence`."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class Affine(nn.Module):
    """Affine(c | h) = gamma(h) * c + beta(h), channel by channel (Eqs. 1, 2).

    gamma and beta are two-layer MLPs as wide as the feature map. Their last layers start at weight 0 with bias 1 and
    0, so a new block passes its input through unchanged.
    """

    def __init__(self, channels: int, state_dim: int):
        super().__init__()
        self.gamma = self._mlp(state_dim, channels, start=1.0)
        self.beta = self._mlp(state_dim, channels, start=0.0)

    @staticmethod
    def _mlp(state_dim: int, channels: int, start: float) -> nn.Sequential:
        mlp = nn.Sequential(nn.Linear(state_dim, channels), nn.ReLU(inplace=True), nn.Linear(channels, channels))
        nn.init.zeros_(mlp[-1].weight)
        nn.init.constant_(mlp[-1].bias, start)
        return mlp

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """x [B, C, H, W], state [B, S] -> [B, C, H, W]."""
        return torch.addcmul(self.beta(state)[:, :, None, None], self.gamma(state)[:, :, None, None], x)


class FusionUnit(nn.Module):
    """Affine -> LeakyReLU(0.2) -> Affine -> LeakyReLU(0.2); one state per affine layer."""

    AFFINES = 2

    def __init__(self, channels: int, state_dim: int):
        super().__init__()
        self.affines = nn.ModuleList(Affine(channels, state_dim) for _ in range(self.AFFINES))

    def forward(self, x: torch.Tensor, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """x [B, C, H, W] and two states [B, S] -> [B, C, H, W]."""
        for affine, state in zip(self.affines, states, strict=True):
            x = F.leaky_relu(affine(x, state), 0.2, inplace=True)
        return x
