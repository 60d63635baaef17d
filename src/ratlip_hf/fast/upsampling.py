"""Nearest resize followed by a 3x3 convolution, computed on the small map.
Neighbouring outputs see the same few inputs, so their nine taps fold into fewer; borders are exact."""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .layers import Convolution, resize

MAX_PERIOD = 4  # inputs after which a resize may repeat; rarer patterns make too many small convolutions


@dataclass(frozen=True)
class Neighbours:
    """Neighbouring outputs of one axis that read the same inputs.

    `start` is the first input that they read and `first` the first output, both relative to the period and negative
    before it; `fold` [outputs, inputs read, 3] has which of the 3 taps of an output fall on which input.
    """

    start: int
    first: int
    fold: torch.Tensor


@dataclass(frozen=True)
class Axis:
    """A nearest resize that repeats after `inputs` inputs, which give `outputs` outputs, `periods` times."""

    inputs: int
    outputs: int
    periods: int
    groups: tuple[Neighbours, ...]


def plan_axis(size_in: int, size_out: int) -> Axis | None:
    """How to resize one axis group by group, or None if the pattern repeats too rarely or not at all."""
    if size_out <= size_in:
        return None
    ruler = torch.arange(size_in, dtype=torch.float32)
    source = F.interpolate(ruler[None, None], size=size_out, mode="nearest")[0, 0].long()
    for inputs in range(1, MAX_PERIOD + 1):
        outputs = inputs * size_out // size_in
        if size_in % inputs or inputs * size_out % size_in:
            continue
        if torch.equal(source[outputs:], source[:-outputs] + inputs):
            return Axis(inputs, outputs, size_in // inputs, _groups(inputs, outputs, source[:outputs].tolist()))
    return None


def _groups(inputs: int, outputs: int, source: list[int]) -> tuple[Neighbours, ...]:
    """Outputs of one period, starting at one that does not go with its predecessor."""

    def taps(output: int) -> list[int]:
        return [source[o % outputs] + inputs * (o // outputs) for o in (output - 1, output, output + 1)]

    first = next(output for output in range(0, -outputs, -1) if taps(output)[0] != taps(output - 1)[0])
    runs: list[list[int]] = []
    for output in range(first, first + outputs):
        if runs and taps(runs[-1][0])[0] == taps(output)[0]:
            runs[-1].append(output)
        else:
            runs.append([output])
    return tuple(_group(run, [taps(output) for output in run]) for run in runs)


def _group(run: list[int], taps: list[list[int]]) -> Neighbours:
    start = taps[0][0]
    read = max(tap for row in taps for tap in row) - start + 1
    fold = torch.zeros(len(run), read, 3, dtype=torch.float64)
    for index, row in enumerate(taps):
        for number, tap in enumerate(row):
            fold[index, tap - start, number] = 1
    return Neighbours(start, run[0], fold)


def upsampled_convolution(
    weight: torch.Tensor, bias: torch.Tensor, slope: float | None, size_in: int, size_out: int, dtype: torch.dtype
) -> "Doubling | Periodic | Resizing":
    """Nearest resize from `size_in` to `size_out`, 3x3 convolution with padding 1 and LeakyReLU(`slope`), as one.

    Weight [C_out, C_in, 3, 3] and bias [C_out] are float64; a slope of None means no LeakyReLU.
    """
    axis = plan_axis(size_in, size_out)
    if axis is None or (axis.outputs >= 2 * axis.inputs and size_out != 2 * size_in):  # the latter from tiny grids
        return Resizing(weight, bias, slope, size_out, dtype)
    kind = Doubling if axis.inputs == 1 else Periodic
    return kind(weight, bias, slope, size_in, axis, dtype)


class Resizing:
    """The definition: for sizes without a short period, or that stay."""

    def __init__(self, weight, bias, slope, size_out: int, dtype: torch.dtype):
        self.size = size_out
        self.convolution = Convolution(weight, bias, dtype, size_out, padding=1, slope=slope)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[B, h, w, C_in] -> [B, size, size, C_out]."""
        return self.convolution(resize(x, self.size, "nearest"))


class Doubling:
    """Twice the size in 9 products per input pixel instead of 36.

    Along one axis output 2i is a x[i-1] + (b + c) x[i] and output 2i - 1 is (a + b) x[i-1] + c x[i]. Both contain
    a x[i-1] + c x[i], which belongs to the gap between two inputs, and add the middle tap b on an input. In two
    dimensions: the corner taps are summed at the corners between four pixels, the edge taps at the edges between two,
    the centre tap at the pixels, and every output is the sum of the nearest one of each.
    """

    def __init__(self, weight, bias, slope, size_in: int, axis: Axis, dtype: torch.dtype):
        self.slope, self.channels = slope, len(bias)
        outer, centre, nothing = slice(None, None, 2), slice(1, 2), torch.zeros_like(bias)

        def part(rows: slice, columns: slice, bias: torch.Tensor) -> Convolution:
            padding = (int(rows is outer), int(columns is outer))
            return Convolution(weight[:, :, rows, columns], bias, dtype, size_in, padding)

        self.corners, self.above = part(outer, outer, nothing), part(outer, centre, nothing)
        self.beside, self.centre = part(centre, outer, nothing), part(centre, centre, bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[B, h, w, C_in] -> [B, 2h, 2w, C_out]."""
        batch, height, width, _ = x.shape
        corners, above, beside, centre = self.corners(x), self.above(x), self.beside(x), self.centre(x)
        y = x.new_empty(batch, 2 * height, 2 * width, self.channels)
        for column in range(2):
            of_rows = corners[:, :, column : column + width] + above  # at the gaps between rows
            of_pixels = beside[:, :, column : column + width] + centre
            for row in range(2):
                torch.add(of_rows[:, row : row + height], of_pixels, out=y[:, row::2, column::2])
        return y if self.slope is None else F.leaky_relu_(y, self.slope)


class Periodic:
    """A ratio below two with a short period, such as 4 to 7: one strided convolution for each pair of groups."""

    def __init__(self, weight, bias, slope, size_in: int, axis: Axis, dtype: torch.dtype):
        self.axis, self.channels = axis, len(bias)
        self.before = -min(group.start for group in axis.groups)
        self.side = self.before + size_in
        self.parts = []
        for rows, columns in itertools.product(axis.groups, repeat=2):
            kernels = _fold(weight, rows, columns)
            biases = bias.repeat(len(kernels) // len(bias))
            convolution = Convolution(kernels, biases, dtype, self.side, stride=axis.inputs, slope=slope)
            self.parts.append((rows, columns, convolution))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[B, h, h, C_in] -> [B, size, size, C_out]."""
        batch, periods = len(x), self.axis.periods
        padded = self._padded(x)
        y = x.new_empty(batch, periods, self.axis.outputs, periods, self.axis.outputs, self.channels)
        for rows, columns, convolution in self.parts:
            height, width = len(rows.fold), len(columns.fold)
            # Rows run into each other and into the next image, with zeros in between, where windows look beyond.
            offset = ((rows.start + self.before) * self.side + columns.start + self.before) * x.shape[3]
            shape = (batch, self.side, self.side, x.shape[3])
            window = padded[offset : offset + batch * self.side**2 * x.shape[3]].view(shape)
            found = convolution(window)[:, :periods, :periods].unflatten(3, (height, width, self.channels))
            y[:, :, rows.first : rows.first + height, :, columns.first : columns.first + width] = found.transpose(2, 3)
        return y.view(batch, periods * self.axis.outputs, periods * self.axis.outputs, self.channels)

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        """Zeros above and to the left of every image, the same below the last: flat, for windows at any offset."""
        batch, channels = len(x), x.shape[3]
        size = batch * self.side**2 * channels
        furthest = max(group.start for group in self.axis.groups) + self.before
        flat = x.new_zeros(size + furthest * (self.side + 1) * channels)
        flat[:size].view(batch, self.side, self.side, channels)[:, self.before :, self.before :] = x
        return flat


def _fold(weight: torch.Tensor, rows: Neighbours, columns: Neighbours) -> torch.Tensor:
    """Kernels [rows * columns * C_out, C_in, k, l] of all outputs of two groups, row by row."""
    kernels = torch.einsum("aku,blv,oiuv->aboikl", rows.fold, columns.fold, weight.double())
    return kernels.flatten(0, 2)
