"""Shuffle attention (SA-Net): channel and spatial gates on the two halves of each channel group.
Owns the attention module alone; the convolution that carries it is in `blocks`."""

import torch
import torch.nn.functional as F
from torch import nn


class ShuffleAttention(nn.Module):
    """Gate one half of each group by its channel means, the other by its normalised map, then shuffle channels.

    The six parameter vectors have C / 2G entries and serve all G groups.

    Raises:
        ValueError: when `channels` is not a multiple of twice `groups`.
    """

    def __init__(self, channels: int, groups: int):
        super().__init__()
        if channels % (2 * groups):
            raise ValueError(f"shuffle attention needs channels divisible by 2 * groups: {channels} and {groups}")
        self.groups, size = groups, channels // (2 * groups)
        self.channel_weight = nn.Parameter(torch.zeros(size))
        self.channel_bias = nn.Parameter(torch.ones(size))
        self.spatial_weight = nn.Parameter(torch.zeros(size))
        self.spatial_bias = nn.Parameter(torch.ones(size))
        self.norm_weight = nn.Parameter(torch.ones(size))
        self.norm_bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, C, H, W] -> [B, C, H, W]."""
        batch, channels, height, width = x.shape
        by_channel, by_place = x.reshape(batch * self.groups, -1, height, width).chunk(2, dim=1)

        means = by_channel.mean(dim=(2, 3), keepdim=True)
        by_channel = by_channel * torch.sigmoid(_wide(self.channel_weight) * means + _wide(self.channel_bias))

        # One channel per normalisation group. The norm's own affine and the gate's fold into one scale and shift.
        scale = self.spatial_weight * self.norm_weight
        shift = self.spatial_weight * self.norm_bias + self.spatial_bias
        gate = F.group_norm(by_place, num_groups=len(scale), weight=scale, bias=shift, eps=1e-5)
        by_place = by_place * torch.sigmoid(gate)

        x = torch.cat([by_channel, by_place], dim=1)
        # Interleave the two halves of all channels so that the halves of a group meet other channels next time.
        halves = x.reshape(batch, 2, channels // 2, height, width)
        return halves.transpose(1, 2).reshape(batch, channels, height, width)


def _wide(vector: torch.Tensor) -> torch.Tensor:
    return vector[:, None, None]
