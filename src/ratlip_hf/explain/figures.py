"""Figures of explanations as PIL images, with Pillow alone: heat over images, bars for words, cells for steps."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..utils.display import labelled_grid
from .insides import AttentionGates, StateTrace

_INK, _BAR, _AGAINST = "#333333", (0, 114, 178), (213, 94, 0)
_HEAT = np.array([(0, 0, 80), (0, 90, 255), (0, 220, 160), (255, 230, 0), (220, 0, 0)], dtype=float)  # low to high


def heat(values: torch.Tensor) -> Image.Image:
    """A map [h, w] in 0..1 as colours, from blue to red."""
    place = values.detach().float().clamp(0, 1).cpu().numpy() * (len(_HEAT) - 1)
    low = np.minimum(place.astype(int), len(_HEAT) - 2)
    share = (place - low)[..., None]
    return Image.fromarray((_HEAT[low] * (1 - share) + _HEAT[low + 1] * share).round().astype(np.uint8))


def as_pil(image: torch.Tensor) -> Image.Image:
    """An image [3, S, S] in [-1, 1]."""
    pixels = ((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def saliency_figure(
    images: torch.Tensor, maps: dict[str, torch.Tensor], columns: Sequence[str], title: str = ""
) -> Image.Image:
    """The paper's Fig. 3: images [B, 3, S, S] in the first row, then a row for each entry of `maps` [B, S, S], each
    map over its image and scaled by its own largest value; negatives count as nothing."""
    rows = [[as_pil(image) for image in images]]
    for each in maps.values():
        rows.append([_over(image, values) for image, values in zip(images, each, strict=True)])
    return labelled_grid(rows, ["", *maps], columns, title=title)


def _over(image: torch.Tensor, values: torch.Tensor) -> Image.Image:
    positive = values.clamp(min=0)
    coloured = heat(positive / positive.max().clamp(min=1e-12))
    return Image.blend(as_pil(image).convert("L").convert("RGB"), coloured, 0.5)


def words_figure(importance: Sequence[tuple[str, float]], title: str = "") -> Image.Image:
    """A bar for each word: to the right, in blue, what the score loses without it; to the left, in orange, what it
    gains."""
    font, row, left, span = ImageFont.load_default(size=13), 22, 110, 260
    canvas = Image.new("RGB", (left + 2 * span // 2 + 90, 30 + row * len(importance)), "white")
    draw, largest = ImageDraw.Draw(canvas), max(abs(value) for _, value in importance) or 1.0
    middle = left + span // 2
    draw.text((4, 4), title, font=font, fill=_INK)
    for number, (word, value) in enumerate(importance):
        top, end = 28 + number * row, middle + value / largest * span / 2
        draw.text((4, top), word, font=font, fill=_INK)
        draw.rectangle((min(middle, end), top + 2, max(middle, end), top + 15), fill=_BAR if value >= 0 else _AGAINST)
        draw.text((left + span + 8, top), f"{value:+.3f}", font=font, fill=_INK)
    return canvas


def cells_figure(
    values: torch.Tensor, rows: Sequence[str], columns: Sequence[str], title: str = "", width: int = 40
) -> Image.Image:
    """A matrix [R, C] of numbers from 0 up as coloured cells with their numbers, red for the largest."""
    font, height, left = ImageFont.load_default(size=12), 24, 130
    canvas = Image.new("RGB", (left + width * len(columns), 46 + height * len(rows)), "white")
    draw, scaled = ImageDraw.Draw(canvas), values / values.max().clamp(min=1e-12)
    canvas.paste(heat(scaled).resize((width * len(columns), height * len(rows)), Image.Resampling.NEAREST), (left, 44))
    draw.text((4, 4), title, font=font, fill=_INK)
    for place, column in enumerate(columns):
        draw.text((left + width * (place + 0.5), 26), column, font=font, fill=_INK, anchor="mt")
    for number, row in enumerate(rows):
        draw.text((4, 48 + number * height), row, font=font, fill=_INK)
        for place in range(len(columns)):
            where = (left + width * (place + 0.5), 56 + height * number)
            ink = "black" if 0.4 < scaled[number, place] < 0.9 else "white"
            draw.text(where, f"{values[number, place]:.2f}", font=font, fill=ink, anchor="mm")
    return canvas


def states_figure(trace: StateTrace, title: str = "") -> Image.Image:
    """Mean gates of the first sample, and the lengths of what is written, of cell and of hidden state, per step."""
    first = {"input gate": trace.input, "forget gate": trace.forget, "output gate": trace.output}
    rows = [values[0].mean(dim=1) for values in first.values()]
    lengths = {"written": trace.written, "cell": trace.cell, "hidden state": trace.hidden}
    rows += [values[0].square().mean(dim=1).sqrt() for values in lengths.values()]
    steps = [str(step + 1) for step in range(len(rows[0]))]
    return cells_figure(torch.stack(rows), [*first, *lengths], steps, title)


def gates_figure(gates: Sequence[AttentionGates], title: str = "") -> Image.Image:
    """Of the first sample, for each block: gates of channels as a square of cells, and the mean gate of places.
    Colours go from the smallest to the largest gate of the block. Raises ValueError for no gates."""
    channels = [_squared(each.channels[0]) for each in gates]
    places = [each.places[0].mean(dim=0) for each in gates]
    rows = [
        [heat(_spread(values)).resize((128, 128), Image.Resampling.NEAREST) for values in row]
        for row in (channels, places)
    ]
    names = [
        f"{each.name.removesuffix('.attention')}: {_range(c)}; {_range(p)}"
        for each, c, p in zip(gates, channels, places, strict=True)
    ]
    return labelled_grid(rows, ["channels", "places"], names, title=title)


def _range(values: torch.Tensor) -> str:
    return f"{float(values.min()):.2f} to {float(values.max()):.2f}"


def _spread(values: torch.Tensor) -> torch.Tensor:
    return (values - values.min()) / (values.max() - values.min()).clamp(min=1e-12)


def _squared(values: torch.Tensor) -> torch.Tensor:
    side = int(len(values) ** 0.5)
    while len(values) % side:
        side -= 1
    return values.reshape(side, -1)


def neighbours_figure(
    samples: Sequence[Image.Image], found: Sequence[Sequence[Image.Image]], distances: torch.Tensor, title: str = ""
) -> Image.Image:
    """Samples with the training images nearest to them, and their distances [N, count]."""
    rows = [[sample, *near] for sample, near in zip(samples, found, strict=True)]
    labels = [f"distances {', '.join(f'{float(value):.3f}' for value in row)}" for row in distances]
    return labelled_grid(rows, labels, ["sample", *(f"nearest {n + 1}" for n in range(len(rows[0]) - 1))], title=title)
