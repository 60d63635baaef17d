"""What surrounds the bird: pale, low-contrast backgrounds, and the perch it stands on.
Owns their colours and drawing; every function draws in pixels on a canvas of any size."""

import random

import numpy as np
from PIL import Image, ImageDraw

_GRADIENTS = {
    "sky": ((172, 206, 226), (222, 236, 240)),
    "meadow": ((226, 234, 214), (184, 208, 168)),
    "sunset": ((206, 186, 208), (244, 206, 180)),
    "snow": ((188, 198, 210), (220, 226, 232)),
}
_WOOD, _WOOD_DARK = (122, 90, 66), (92, 66, 48)
_LEAF, _STONE, _STONE_LIGHT = (118, 152, 98), (140, 140, 142), (168, 168, 168)
_GROUND, _BLADE = (130, 162, 104), (104, 138, 84)


def _shade(colour: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
    return tuple(max(0, min(255, round(channel * factor))) for channel in colour)


def draw_background(background: str, side: int, rng: random.Random) -> Image.Image:
    """Return a new RGB picture [side, side]: a vertical gradient with a few faint details."""
    light = rng.uniform(0.95, 1.04)
    top, bottom = (np.array(_shade(colour, light), dtype=np.float64) for colour in _GRADIENTS[background])
    mix = np.linspace(0.0, 1.0, side)[:, None]
    column = (top * (1 - mix) + bottom * mix).round().astype(np.uint8)[:, None]
    picture = Image.fromarray(column).resize((side, side), Image.Resampling.NEAREST)
    _DETAILS[background](ImageDraw.Draw(picture), side, rng)
    return picture


def _ellipse(draw: ImageDraw.ImageDraw, x: float, y: float, half_width: float, half_height: float, fill) -> None:
    draw.ellipse((x - half_width, y - half_height, x + half_width, y + half_height), fill=fill)


def _clouds(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    for _ in range(2):
        x, y, size = rng.uniform(0, side), rng.uniform(0.08, 0.45) * side, rng.uniform(0.07, 0.11) * side
        for shift, scale in ((-1.1, 0.7), (0.0, 1.0), (1.1, 0.65)):
            _ellipse(draw, x + shift * size, y, size * scale * 1.3, size * scale * 0.7, (230, 239, 244))


def _hills(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    for height, colour in ((0.58, (200, 218, 186)), (0.70, (184, 206, 168))):
        _ellipse(draw, rng.uniform(0, side), (height + 0.5) * side, 0.9 * side, 0.5 * side, colour)
    for _ in range(7):
        x, y = rng.uniform(0, side), rng.uniform(0.72, 1.0) * side
        _ellipse(draw, x, y, 0.014 * side, 0.014 * side, (236, 226, 190))


def _low_sun(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    x, y, radius = rng.uniform(0.1, 0.9) * side, rng.uniform(0.2, 0.6) * side, rng.uniform(0.11, 0.15) * side
    _ellipse(draw, x, y, radius * 1.35, radius * 1.35, (238, 208, 190))
    _ellipse(draw, x, y, radius, radius, (250, 226, 196))
    _ellipse(draw, rng.uniform(0, side), 1.3 * side, 1.0 * side, 0.5 * side, (196, 172, 184))


def _snowfall(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    _ellipse(draw, rng.uniform(0, side), 1.25 * side, 1.0 * side, 0.5 * side, (232, 236, 240))
    for _ in range(16):
        x, y, radius = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(0.008, 0.016) * side
        _ellipse(draw, x, y, radius, radius, (242, 244, 247))


def draw_perch(perch: str, draw: ImageDraw.ImageDraw, side: int, x: float, y: float, rng: random.Random) -> None:
    """Draw the perch so that its top supports feet at pixel (x, y) of a canvas of `side` pixels."""
    _PERCHES[perch](draw, side, x, y, rng)


def _branch(draw: ImageDraw.ImageDraw, side: int, x: float, y: float, rng: random.Random) -> None:
    slope, half = rng.uniform(-0.10, 0.10), 0.03 * side
    left, right = y + half - slope * x, y + half + slope * (side - x)
    draw.line((-9, left, side + 9, right), fill=_WOOD_DARK, width=round(2.5 * half))
    draw.line((-9, left - half / 3, side + 9, right - half / 3), fill=_WOOD, width=round(1.6 * half))
    for place in (rng.uniform(0.04, 0.2), rng.uniform(0.8, 0.96)):
        leaf_x, leaf_y, size = place * side, left + (right - left) * place + 0.055 * side, 0.045 * side
        _ellipse(draw, leaf_x, leaf_y, size * 0.6, size, _LEAF)


def _rock(draw: ImageDraw.ImageDraw, side: int, x: float, y: float, rng: random.Random) -> None:
    left, right = rng.uniform(0.27, 0.36) * side, rng.uniform(0.27, 0.36) * side
    low = side + 4
    outline = [(x - left, low), (x - 0.8 * left, y + 0.07 * side), (x - 0.4 * left, y), (x + 0.5 * right, y - 2)]
    draw.polygon([*outline, (x + 0.85 * right, y + 0.06 * side), (x + right, low)], fill=_STONE)
    facet = [(x - 0.4 * left, y), (x + 0.5 * right, y - 2), (x + 0.3 * right, y + 0.06 * side)]
    draw.polygon([*facet, (x - 0.5 * left, y + 0.05 * side)], fill=_STONE_LIGHT)


def _grass(draw: ImageDraw.ImageDraw, side: int, x: float, y: float, rng: random.Random) -> None:
    _ellipse(draw, x, y + 0.35 * side, 0.95 * side, 0.36 * side, _GROUND)
    for index in range(11):
        root = (index + rng.uniform(0.1, 0.9)) * side / 11
        tip, base, half = rng.uniform(0.0, 0.07) * side, y + 0.13 * side, 0.016 * side
        lean = rng.uniform(-0.03, 0.03) * side
        draw.polygon([(root - half, base), (root + lean, y + tip), (root + half, base)], fill=_BLADE)
    draw.rectangle((0, y + 0.13 * side, side, 2 * side), fill=_BLADE)


def _post(draw: ImageDraw.ImageDraw, side: int, x: float, y: float, rng: random.Random) -> None:
    half = rng.uniform(0.11, 0.14) * side
    draw.rectangle((x - half, y, x + half, 2 * side), fill=_WOOD)
    draw.rectangle((x + 0.4 * half, y, x + half, 2 * side), fill=_WOOD_DARK)
    draw.rectangle((x - 1.25 * half, y - 0.005 * side, x + 1.25 * half, y + 0.045 * side), fill=_shade(_WOOD, 1.15))


_DETAILS = {"sky": _clouds, "meadow": _hills, "sunset": _low_sun, "snow": _snowfall}
_PERCHES = {"branch": _branch, "rock": _rock, "grass": _grass, "post": _post}
