"""Shuffle attention without its shuffles: channels are kept in an order in which both halves of all groups are slices.
Owns that order and the gates; the convolutions' weights are brought into it when the fast path is built."""

import torch

from ..models.attention import ShuffleAttention


def channel_order(channels: int, groups: int) -> torch.Tensor:
    """Where to find the channels of a shuffled map: entry q is the shuffled position of the channel kept at q.

    First come all channels that are gated as a whole, then all that are gated place by place.
    """
    source = _source(channels)
    by_place = _within_group(source, channels, groups) >= channels // (2 * groups)
    return torch.argsort(by_place.long(), stable=True)


def rows_before_attention(channels: int, groups: int) -> torch.Tensor:
    """The convolution's output channels that end up, after attention and shuffle, in [`channel_order`]."""
    return _source(channels)[channel_order(channels, groups)]


def _source(channels: int) -> torch.Tensor:
    """Channel that the shuffle moves to each position: the two halves of all channels are interleaved."""
    return torch.arange(channels).reshape(2, channels // 2).T.reshape(-1)


def _within_group(channel: torch.Tensor, channels: int, groups: int) -> torch.Tensor:
    return channel % (channels // groups)


class FastAttention:
    """The gates of a [`ShuffleAttention`] for a map in [`channel_order`]."""

    def __init__(self, attention: ShuffleAttention, channels: int, dtype: torch.dtype):
        self.half, self.dtype = channels // 2, dtype
        position = _within_group(rows_before_attention(channels, attention.groups), channels, attention.groups)
        first, second = position[: self.half], position[self.half :] - channels // (2 * attention.groups)
        kind = torch.promote_types(dtype, torch.float32)  # the gates' arguments are never formed in half precision
        vectors = {name: vector.detach().to(kind) for name, vector in attention.named_parameters()}
        self.channel_weight = vectors["channel_weight"][first]
        self.channel_bias = vectors["channel_bias"][first]
        self.scale = (vectors["spatial_weight"] * vectors["norm_weight"])[second]
        self.shift = (vectors["spatial_weight"] * vectors["norm_bias"] + vectors["spatial_bias"])[second]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Gate the second half of the channels of x [B, H, W, C] in place.

        Returns:
            Factors [B, C] still to be multiplied: the gates of the first half, which are constant over the map, and
            ones. The caller has a multiplication to do anyway.
        """
        mean, variance = moments(x)
        gates = torch.sigmoid(self.channel_weight * mean[:, : self.half] + self.channel_bias)
        scale = self.scale * (variance[:, self.half :] + 1e-5).rsqrt()
        shift = self.shift - scale * mean[:, self.half :]

        by_place = x[..., self.half :]
        scale, shift = (vector.to(self.dtype)[:, None, None] for vector in (scale, shift))
        by_place.mul_(torch.addcmul(shift, scale, by_place).sigmoid_())
        return torch.cat([gates, torch.ones_like(gates)], dim=1).to(self.dtype)


def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of every channel of every picture of x [B, H, W, C], each [B, C], at least float32."""
    kind = torch.promote_types(x.dtype, torch.float32)
    unused = x.new_zeros(x.shape[3], dtype=kind)  # running statistics; they make the results float32
    pairs = [
        torch.batch_norm_update_stats(picture.permute(2, 0, 1)[None], unused, unused, 0.0) for picture in x.unbind()
    ]
    mean, variance = (torch.stack(part) for part in zip(*pairs, strict=True))
    return mean, variance
