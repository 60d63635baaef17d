"""The layers of the fast networks: convolutions and linear layers on maps [B, H, W, C], with weights laid out once for
oneDNN where its operators are there; BatchNorm folded into convolutions, channels in another order."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from ..models.blocks import NORM_SLOPE, ConvBlock

_PACKED_DTYPES = (torch.float32, torch.bfloat16)
_BATCH = 1  # oneDNN picks a layout for a shape; the one for a single image serves every batch


class Linear:
    """x [..., C_in] -> [..., C_out] with a fixed weight [C_out, C_in] and bias [C_out].

    With `packed` it keeps a packed copy of the weight, without it the tensor itself if that has the right dtype.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype, packed: bool = True):
        self.with_onednn = packs(dtype)
        self.bias = bias.detach().to(dtype)
        self.weight = weight.detach().to(dtype).contiguous()
        if packed and self.with_onednn:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not self.with_onednn:
            return F.linear(x, self.weight, self.bias)
        # For the few tokens of an image this is faster than torch's own product even where the weight is not packed.
        return _packed_linear(x, self.weight, self.bias)


class Convolution:
    """Convolution of x [B, H, W, C_in] with a fixed weight [C_out, C_in, k, l], then LeakyReLU(`slope`) unless None.

    `size` is the side of the maps that are expected; others work, but oneDNN may like another layout for them.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        dtype: torch.dtype,
        size: int,
        padding: int | tuple[int, int] = 0,
        stride: int = 1,
        slope: float | None = None,
    ):
        self.padding = [padding] * 2 if isinstance(padding, int) else list(padding)
        self.stride, self.slope = [stride] * 2, slope
        self.packed = packs(dtype)
        self.bias = bias.detach().to(dtype)
        self.weight = weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        if self.packed:
            self.weight = _packed_kernels(self.weight, self.padding, self.stride, size)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[B, H, W, C_in] -> [B, H', W', C_out], contiguous."""
        x = x.permute(0, 3, 1, 2)  # torch's channels-last form of the same memory
        if self.packed:
            x = _packed_convolution(x, self.weight, self.bias, self.padding, self.stride, self.slope)
        else:
            x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
            x = x if self.slope is None else F.leaky_relu_(x, self.slope)
        return x.permute(0, 2, 3, 1).contiguous()


def resize(x: torch.Tensor, size: int, mode: str) -> torch.Tensor:
    """[B, H, W, C] -> [B, size, size, C] by "nearest" or "bilinear", as the image blocks do it."""
    if x.shape[1:3] == (size, size):
        return x
    options = {} if mode == "nearest" else {"align_corners": False}
    x = F.interpolate(x.permute(0, 3, 1, 2), size=(size, size), mode=mode, **options)
    return x.permute(0, 2, 3, 1).contiguous()


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


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN's operators with packed weights are used for this dtype."""
    usable = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled and dtype in _PACKED_DTYPES
    return usable and _packed_operators_work(dtype)


@functools.cache
def _packed_operators_work(dtype: torch.dtype) -> bool:
    """Try them once: they are private to torch, so another version may lack them or call them in another way."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=generator).to(dtype) for size in ((1, 3, 3, 8), (8, 8, 1, 1), (8,)))
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        found = [
            _packed_linear(x, torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1)), bias),
            _packed_convolution(
                x.permute(0, 3, 1, 2), _packed_kernels(weight, [0, 0], [1, 1], 3), bias, [0, 0], [1, 1], None
            ).permute(0, 2, 3, 1),
        ]
    except (AttributeError, RuntimeError, TypeError):
        return False
    expected = F.linear(x.float(), weight.float().flatten(1), bias.float())
    return all(torch.allclose(value.float(), expected, rtol=0.05, atol=0.05) for value in found)


def _packed_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _packed_kernels(weight: torch.Tensor, padding: list[int], stride: list[int], size: int) -> torch.Tensor:
    shape = [_BATCH, weight.shape[1], size, size]
    return torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, [1, 1], 1, shape)


def _packed_convolution(x, weight, bias, padding: list[int], stride: list[int], slope: float | None) -> torch.Tensor:
    activation = ("none", [], "") if slope is None else ("leaky_relu", [slope], "")
    return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, padding, stride, [1, 1], 1, *activation)
