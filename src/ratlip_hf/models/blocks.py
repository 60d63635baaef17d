"""What the generator is made of: affine modulation, the fusion unit (Eqs. 1, 2, 7), shuffle attention, and the blocks
of bridge and image generator (docs/method.md, sections 2 and 4)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

CONV_BLOCKS = ("plain", "bn_act", "bn_act_sa")
UPSAMPLINGS = ("nearest", "bilinear")
FUSION_SLOPE = 0.2  # of the LeakyReLU after an affine layer
NORM_SLOPE = 0.01  # of the LeakyReLU after a BatchNorm


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
        first, last = nn.Linear(state_dim, channels), nn.Linear(channels, channels)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, start)
        return nn.Sequential(first, nn.ReLU(inplace=True), last)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """x [B, C, H, W], state [B, S] -> [B, C, H, W]."""
        return torch.addcmul(self.beta(state)[:, :, None, None], self.gamma(state)[:, :, None, None], x)


class FusionUnit(nn.Module):
    """Affine -> LeakyReLU(0.2) -> Affine -> LeakyReLU(0.2): a nonlinear Affine (Eq. 1) twice, one state for each."""

    AFFINES = 2

    def __init__(self, channels: int, state_dim: int):
        super().__init__()
        self.affines = nn.ModuleList(Affine(channels, state_dim) for _ in range(self.AFFINES))

    def forward(self, x: torch.Tensor, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """x [B, C, H, W] and two states [B, S] -> [B, C, H, W]."""
        for affine, state in zip(self.affines, states, strict=True):
            x = F.leaky_relu(affine(x, state), FUSION_SLOPE, inplace=True)
        return x


class ShuffleAttention(nn.Module):
    """Gate one half of each group by its channel means, the other by its normalised map, then shuffle channels.

    The six parameter vectors have C / 2G entries, for C a multiple of 2G, and serve all G groups.
    """

    def __init__(self, channels: int, groups: int):
        super().__init__()
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
        by_channel, by_place = self.halves(x)
        channel_gate, place_gate = self.gates(by_channel, by_place)
        x = torch.cat([by_channel * channel_gate, by_place * place_gate], dim=1)
        # Interleave the two halves of all channels so that the halves of a group meet other channels next time.
        halves = x.reshape(batch, 2, channels // 2, height, width)
        return halves.transpose(1, 2).reshape(batch, channels, height, width)

    def halves(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """x [B, C, H, W] -> what is gated by channel and what by place, each [B * G, C / 2G, H, W]."""
        return x.reshape(x.shape[0] * self.groups, -1, *x.shape[2:]).chunk(2, dim=1)

    def gates(self, by_channel: torch.Tensor, by_place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors in 0..1 for the two halves: [B * G, C / 2G, 1, 1] and [B * G, C / 2G, H, W]."""
        means = by_channel.mean(dim=(2, 3), keepdim=True)
        channel_gate = torch.sigmoid(_wide(self.channel_weight) * means + _wide(self.channel_bias))

        # One channel per normalisation group. The norm's own affine and the gate's fold into one scale and shift.
        scale = self.spatial_weight * self.norm_weight
        shift = self.spatial_weight * self.norm_bias + self.spatial_bias
        place_gate = F.group_norm(by_place, num_groups=len(scale), weight=scale, bias=shift, eps=1e-5)
        return channel_gate, torch.sigmoid(place_gate)


def _wide(vector: torch.Tensor) -> torch.Tensor:
    return vector[:, None, None]


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
            x = F.leaky_relu(self.norm(x), NORM_SLOPE, inplace=True)
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
    """Resize to `size`, then shortcut + [fusion -> conv -> fusion -> conv].

    Nearest neighbours repeat places and mix none, so what acts on every place alone, the first fusion unit and the
    1x1 shortcut, gives the same on the small map: where the side doubles, at a quarter of the cost. Bilinear weights
    mix places, and the fusion unit is not linear, so there the resize comes first. There are two halves because
    gradient checkpointing recomputes one at a time (`models/base.py`).
    """

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

    @property
    def resizes_late(self) -> bool:
        """Whether x stays small until `first_half` and `second_half` resize what they made of it."""
        return self.upsampling == "nearest"

    def forward(self, x: torch.Tensor, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """x [B, C_in, h, w] and four states [B, S] -> [B, C_out, size, size]."""
        x = x if self.resizes_late else self.resize(x)
        return self.second_half(self.first_half(x, states[:2]), x, states[2:])

    def first_half(self, x: torch.Tensor, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """The residual after its first convolution."""
        x = self.fuse1(x, states)
        return self.conv1(self.resize(x) if self.resizes_late else x)

    def second_half(self, residual: torch.Tensor, x: torch.Tensor, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """The shortcut and the rest of the residual."""
        x = self.shortcut(x)
        return (self.resize(x) if self.resizes_late else x) + self.conv2(self.fuse2(residual, states))

    def resize(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, h, w] -> [B, C, size, size]."""
        options = {} if self.upsampling == "nearest" else {"align_corners": False}
        return F.interpolate(x, size=(self.size, self.size), mode=self.upsampling, **options)
