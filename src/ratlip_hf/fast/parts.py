"""The fast forms of the generator's parts, and what they assume of the plain ones. Maps are [B, H, W, C] throughout.

Channels around shuffle attention are kept in an order in which both halves of all groups are slices, so that nothing
has to be shuffled; the affine layers of the bridge, and those of the image generator, share a few batched products.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..models import RATLIPGenerator
from ..models.blocks import (
    FUSION_SLOPE,
    UPSAMPLINGS,
    Affine,
    BridgeBlock,
    ConvBlock,
    FusionUnit,
    ImageBlock,
    ShuffleAttention,
)
from ..models.recurrence import PerLayerStates
from .layers import Linear, folded, rearrange, reordered, resize
from .upsampling import upsampled_convolution

Pair = tuple[torch.Tensor, torch.Tensor]  # gamma and beta of an affine layer, each [B, C]

# Everything that the fast networks assume of the generator: for each kind of module its parts, with the forms of each
# that are known. A new kind of part belongs here once its fast form is written. `text_conditioning` and `states` may
# be anything (...): they are called as they are, except for `PerLayerStates`.
_MLP = ((nn.Sequential, nn.Linear, nn.ReLU, nn.Linear),)
_CONVS_AND_FUSIONS = {"conv1": (ConvBlock,), "fuse1": (FusionUnit,), "conv2": (ConvBlock,), "fuse2": (FusionUnit,)}
ASSUMED: dict[type, dict[str, tuple]] = {
    RATLIPGenerator: {
        **{"text_conditioning": (...,), "noise_proj": (nn.Linear,), "states": (...,), "prompt_proj": (nn.Linear,)},
        **{"bridge": ((nn.ModuleList, BridgeBlock),), "blocks": ((nn.ModuleList, ImageBlock),)},
        **{"to_grid": ((nn.Conv2d, 5),), "from_grid": ((nn.Conv2d, 5),), "to_rgb": ((nn.Conv2d, 3),)},
    },
    BridgeBlock: _CONVS_AND_FUSIONS,
    ImageBlock: {**_CONVS_AND_FUSIONS, "shortcut": ((nn.Conv2d, 1), nn.Identity)},
    FusionUnit: {"affines": ((nn.ModuleList, Affine, Affine),)},
    Affine: {"gamma": _MLP, "beta": _MLP},
    ConvBlock: {
        "conv": ((nn.Conv2d, 3),),
        "norm": (nn.BatchNorm2d, type(None)),
        "attention": (ShuffleAttention, type(None)),
    },
    ShuffleAttention: {},
    PerLayerStates: {"cells": ((nn.ModuleList, nn.LSTM),)},
}

# Tensors that a kind of module holds itself; the others hold theirs in their parts.
_VECTORS = {"channel_weight", "channel_bias", "spatial_weight", "spatial_bias", "norm_weight", "norm_bias"}
OWN_TENSORS: dict[type, set[str]] = {ShuffleAttention: _VECTORS}


def check_assumptions(generator: RATLIPGenerator) -> None:
    """Raise ValueError for a generator with a part that has no fast form, instead of computing something else."""
    for name, module in generator.named_modules():
        # What is not in the table is a leaf, or inside a part that is called as it is: its parent asks for its form.
        if type(module) not in ASSUMED:
            continue
        known, parts = ASSUMED[type(module)], module._modules
        for part in {**known, **parts}:
            forms, form = known.get(part, ()), _form(parts.get(part))
            if form not in forms and ... not in forms:
                raise _no_fast_form(f"{name}.{part}" if name else part, _in_words(form))
        if extra := {*module._parameters, *module._buffers} - OWN_TENSORS.get(type(module), set()):
            raise _no_fast_form(name, f"with a tensor {min(extra)!r} of its own")
    _check_one_form([block.conv2 for block in generator.bridge], "bridge")
    _check_one_form([conv for block in generator.blocks for conv in (block.conv1, block.conv2)], "blocks")
    for index, block in enumerate(generator.bridge):
        if _conv_form(block.conv1) != (False, False):
            raise _no_fast_form(f"bridge.{index}.conv1", "which is not plain")
    for index, block in enumerate(generator.blocks):
        if block.upsampling not in UPSAMPLINGS:
            raise _no_fast_form(f"blocks.{index}", f"with upsampling={block.upsampling!r}")


def _check_one_form(convs: Sequence[ConvBlock], name: str) -> None:
    """The order of channels around a block (`order_of`) is that of all blocks: attention everywhere or nowhere."""
    if len({_conv_form(conv) for conv in convs}) > 1:
        raise _no_fast_form(name, "whose convolutions have several forms")


def _conv_form(conv: ConvBlock) -> tuple[bool, bool]:
    return conv.norm is not None, conv.attention is not None


def _no_fast_form(path: str, what: str) -> ValueError:
    return ValueError(
        f"optimize() has no fast form for {path}, {what}: write one in ratlip_hf.fast.parts, or do without optimize()"
    )


def _form(module: nn.Module | None) -> type | tuple:
    """What [`ASSUMED`] compares: the type, with the side of a convolution that keeps the size or a list's items."""
    kind = type(module)
    if kind is nn.Conv2d:
        side = module.kernel_size[0]
        options = (module.kernel_size, module.padding, module.stride, module.dilation, module.groups)
        usual = options == ((side, side), (side // 2, side // 2), (1, 1), (1, 1), 1)
        return kind, side if usual and module.padding_mode == "zeros" else "unusual"
    if kind is nn.Sequential:
        return kind, *map(type, module)
    if kind is nn.ModuleList:
        items = [type(item) for item in module]
        return kind, *(items if Affine in items else dict.fromkeys(items))  # only of affines does the number matter
    return kind


def _in_words(form: type | tuple) -> str:
    return " of ".join(getattr(kind, "__name__", str(kind)) for kind in (form if isinstance(form, tuple) else [form]))


class FastConvBlock:
    """[`ConvBlock`] with its norm folded and no shuffle, after a nearest resize of its input to `size_out`.

    `columns` is the order in which the channels of the input lie, None for as they are.
    """

    def __init__(
        self, block: ConvBlock, columns: torch.Tensor | None, size_in: int, size_out: int, dtype: torch.dtype
    ):
        weight, bias, slope = folded(block)
        rows = self.attention = None
        if block.attention is not None:
            rows = rows_before_attention(len(bias), block.attention.groups)
            self.attention = FastAttention(block.attention, len(bias), dtype)
        weight, bias = rearrange(weight, bias, rows, columns)
        self.convolution = upsampled_convolution(weight, bias, slope, size_in, size_out, dtype)

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x [B, h, h, C_in] -> y [B, size_out, size_out, C_out], and [`FastAttention`]'s factors for it or None."""
        y = self.convolution(x)
        return y, None if self.attention is None else self.attention(y)


class FastBridgeBlock:
    """[`BridgeBlock`] with folded norms and without shuffles."""

    def __init__(self, block: BridgeBlock, size: int, dtype: torch.dtype):
        order = order_of(block, block.conv1.conv.in_channels)
        self.conv1 = FastConvBlock(block.conv1, order, size, size, dtype)
        self.conv2 = FastConvBlock(block.conv2, None, size, size, dtype)

    def __call__(self, x: torch.Tensor, pairs: Sequence[Pair]) -> torch.Tensor:
        """x [B, g, g, C] and four (gamma, beta) -> [B, g, g, C]."""
        residual = fuse_(*self.conv1(x), pairs[:2])
        return fuse_(*self.conv2(residual), pairs[2:]).add_(x)


class FastImageBlock:
    """[`ImageBlock`] with what can be done before the resize done there.

    Nearest: the first fusion unit and the shortcut are exact on the small map, and the first convolution folds into
    the resize. Bilinear weights sum to 1, so the first affine and the shortcut (a 1x1 convolution) are exact on the
    small map, too, but no LeakyReLU is.
    """

    def __init__(self, block: ImageBlock, size_in: int, dtype: torch.dtype):
        conv, self.size, self.mode = block.conv1.conv, block.size, block.upsampling
        order_in, order_out = (order_of(block, width) for width in (conv.in_channels, conv.out_channels))
        seen = size_in if self.mode == "nearest" else self.size  # by the first convolution
        self.conv1 = FastConvBlock(block.conv1, order_in, seen, self.size, dtype)
        self.conv2 = FastConvBlock(block.conv2, order_out, self.size, self.size, dtype)
        self.shortcut = None
        if isinstance(block.shortcut, nn.Conv2d):
            weight, bias = reordered(block.shortcut, order_out, order_in)
            self.shortcut = Linear(weight.flatten(1), bias, dtype)

    def __call__(self, x: torch.Tensor, pairs: Sequence[Pair]) -> torch.Tensor:
        """x [B, h, h, C_in] and four (gamma, beta) -> [B, size, size, C_out]."""
        first = modulate(x, pairs[0])
        if self.mode != "nearest":
            first = resize(first, self.size, self.mode)
        residual = fuse_(*self.conv1(finish_fusion_(first, pairs[1])), pairs[2:])
        return self._sum_(*self.conv2(residual), x if self.shortcut is None else self.shortcut(x))

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


def order_of(block: nn.Module, channels: int) -> torch.Tensor | None:
    """The order in which maps of that many channels are kept around such a block; None for as they are."""
    attention = block.conv2.attention
    return None if attention is None else channel_order(channels, attention.groups)


def ordered_affines(blocks: nn.ModuleList) -> list[tuple[Affine, torch.Tensor | None]]:
    """The affine layers of bridge or image blocks in order of use, each with the order of the channels it meets."""
    found = []
    for block in blocks:
        first, second = block.conv1.conv, block.conv2.conv
        # The bridge's first convolution is without attention and keeps its channels where they are.
        before = None if isinstance(block, BridgeBlock) else order_of(block, first.in_channels)
        for unit, order in ((block.fuse1, before), (block.fuse2, order_of(block, second.out_channels))):
            found += [(affine, order) for affine in unit.affines]
    return found


class FastAttention:
    """The gates of a [`ShuffleAttention`] for a map in [`channel_order`]."""

    def __init__(self, attention: ShuffleAttention, channels: int, dtype: torch.dtype):
        self.half, self.dtype = channels // 2, dtype
        width = channels // attention.groups
        position = rows_before_attention(channels, attention.groups) % width  # within its group
        first, second = position[: self.half], position[self.half :] - width // 2
        kind = torch.promote_types(dtype, torch.float32)  # the gates' arguments are never formed in half precision
        vectors = {name: vector.detach().to(kind) for name, vector in attention.named_parameters()}
        self.channel_weight = vectors["channel_weight"][first]
        self.channel_bias = vectors["channel_bias"][first]
        self.scale = (vectors["spatial_weight"] * vectors["norm_weight"])[second]
        self.shift = (vectors["spatial_weight"] * vectors["norm_bias"] + vectors["spatial_bias"])[second]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Gate the second half of the channels of x [B, H, W, C] in place.

        Returns the factors [B, C] still to be multiplied, which the caller does along the way: the gates of the first
        half, which are constant over the map, and ones.
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
    """Mean and variance of every channel of every image of x [B, H, W, C], each [B, C], at least float32."""
    kind = torch.promote_types(x.dtype, torch.float32)
    unused = x.new_zeros(x.shape[3], dtype=kind)  # running statistics; they make the results float32
    pairs = [torch.batch_norm_update_stats(image.permute(2, 0, 1)[None], unused, unused, 0.0) for image in x.unbind()]
    mean, variance = (torch.stack(part) for part in zip(*pairs, strict=True))
    return mean, variance


def channel_order(channels: int, groups: int) -> torch.Tensor:
    """Where to find the channels of a shuffled map: entry q is the shuffled position of the channel kept at q.

    First come all channels that are gated as a whole, then all that are gated place by place.
    """
    width = channels // groups
    by_place = _source(channels) % width >= width // 2
    return torch.argsort(by_place.long(), stable=True)


def rows_before_attention(channels: int, groups: int) -> torch.Tensor:
    """The convolution's output channels that end up, after attention and shuffle, in [`channel_order`]."""
    return _source(channels)[channel_order(channels, groups)]


def _source(channels: int) -> torch.Tensor:
    """Channel that the shuffle moves to each position: the two halves of all channels are interleaved."""
    return torch.arange(channels).reshape(2, channels // 2).T.reshape(-1)


def modulate(x: torch.Tensor, pair: Pair, out: torch.Tensor | None = None) -> torch.Tensor:
    """gamma * x + beta of x [B, H, W, C], into `out` or a new map."""
    gamma, beta = (vector[:, None, None] for vector in pair)
    return torch.addcmul(beta, gamma, x, out=out)


def fuse_(x: torch.Tensor, factor: torch.Tensor | None, pairs: Sequence[Pair]) -> torch.Tensor:
    """A fusion unit on factor * x, in place: affine -> LeakyReLU(0.2) -> affine -> LeakyReLU(0.2)."""
    gamma, beta = pairs[0]
    return finish_fusion_(modulate(x, (gamma if factor is None else gamma * factor, beta), out=x), pairs[1])


def finish_fusion_(x: torch.Tensor, pair: Pair) -> torch.Tensor:
    """The fusion unit after its first affine, in place."""
    modulate(F.leaky_relu_(x, FUSION_SLOPE), pair, out=x)
    return F.leaky_relu_(x, FUSION_SLOPE)


class AffineBank:
    """gamma and beta of [`ordered_affines`]. Layers of equal width share two batched products."""

    def __init__(self, affines: Sequence[tuple[Affine, torch.Tensor | None]], dtype: torch.dtype):
        self.dtype, self.count = dtype, len(affines)
        members = defaultdict(list)
        for index, (affine, order) in enumerate(affines):
            members[affine.gamma[-1].out_features].append((index, affine, order))
        self.groups = [_EqualWidths(group, dtype) for group in members.values()]

    def __call__(self, states: Sequence[torch.Tensor]) -> list[Pair]:
        """One state [B, S] per layer -> (gamma, beta) per layer, each [B, C]."""
        states = torch.stack([state.to(self.dtype) for state in states])
        found = {index: pair for group in self.groups for index, pair in group(states)}
        return [found[index] for index in range(self.count)]


class _EqualWidths:
    """Layers of one width; MLPs 2i and 2i + 1 are gamma and beta of its layer i."""

    def __init__(self, members: list[tuple[int, Affine, torch.Tensor | None]], dtype: torch.dtype):
        self.indices = [index for index, _, _ in members]
        self.readers = torch.tensor(self.indices).repeat_interleave(2)
        mlps = [(mlp, order) for _, affine, order in members for mlp in (affine.gamma, affine.beta)]
        self.first = _stacked([(mlp[0], None) for mlp, _ in mlps], dtype)
        self.last = _stacked([(mlp[2], order) for mlp, order in mlps], dtype)

    def __call__(self, states: torch.Tensor) -> list[tuple[int, Pair]]:
        (weight, bias), (last_weight, last_bias) = self.first, self.last
        hidden = torch.baddbmm(bias, states[self.readers], weight).relu_()
        results = torch.baddbmm(last_bias, hidden, last_weight).unbind()
        return list(zip(self.indices, zip(results[::2], results[1::2], strict=True), strict=True))


def _stacked(layers: list[tuple[nn.Linear, torch.Tensor | None]], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Weights [n, S, C] and biases [n, 1, C] of linear layers with their outputs in the given orders."""
    first = layers[0][0]
    weight = torch.empty(len(layers), first.in_features, first.out_features, dtype=dtype)
    bias = torch.empty(len(layers), 1, first.out_features, dtype=dtype)
    for index, (layer, order) in enumerate(layers):
        order = slice(None) if order is None else order
        weight[index], bias[index] = layer.weight.detach()[order].T, layer.bias.detach()[order]
    return weight, bias


class BatchedCells:
    """[`PerLayerStates`] with the cells' gates computed together."""

    def __init__(self, states: PerLayerStates):
        cells = states.cells
        self.batch_as_time = states.batch_as_time
        self.layers, self.hidden = len(cells), cells[0].hidden_size
        self.input_weight = torch.cat([cell.weight_ih_l0.detach() for cell in cells])
        self.bias = torch.cat([cell.bias_ih_l0.detach() + cell.bias_hh_l0.detach() for cell in cells])
        self.hidden_weight = torch.stack([cell.weight_hh_l0.detach().T for cell in cells])

    def __call__(self, noise: torch.Tensor, text: torch.Tensor) -> list[torch.Tensor]:
        """noise [B, Z] and text [B, D] -> one state [B, S] per layer."""
        condition = torch.cat([noise, text], dim=1)
        inputs = torch.addmm(self.bias, condition, self.input_weight.T)
        inputs = inputs.unflatten(1, (self.layers, -1)).transpose(0, 1)  # [layers, B, 4S]
        if not self.batch_as_time:
            hidden, _ = _step(inputs, inputs.new_zeros(()))
            return list(hidden.unbind())
        hidden = cell = inputs.new_zeros(self.layers, 1, self.hidden)
        for time in range(len(condition)):
            hidden, cell = _step(torch.baddbmm(inputs[:, time : time + 1], hidden, self.hidden_weight), cell)
        return list(hidden.expand(-1, len(condition), -1).unbind())


def _step(gates: torch.Tensor, cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One LSTM step; gates in torch's order i, f, g, o."""
    i, f, g, o = gates.chunk(4, dim=-1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell
