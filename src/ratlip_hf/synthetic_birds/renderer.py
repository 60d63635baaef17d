"""Renders synthetic birds: `render_bird` makes an image of attributes and an integer seed, `render_masks` says where
its parts are, `sample_birds` gives birds and seeds, of which no two purposes share one. The sections: images, seeds,
the bird, its outlines, its scene."""

import io
import math
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from .attributes import PARTS, BirdAttributes, sample_attributes

if TYPE_CHECKING:
    import torch

MIN_IMAGE_SIZE = 64
_SUPERSAMPLING = 3


def render_bird(attributes: BirdAttributes, seed: int, image_size: int = 64) -> Image.Image:
    """Render a bird as an RGB image [image_size, image_size]; the same arguments give the same bytes everywhere.

    The seed chooses pose, position, exact tones and scenery details; at two sizes it gives the same composition.
    Raises `ValueError` for an `image_size` below 64.
    """
    return _paint(attributes, seed, image_size).reduce(_SUPERSAMPLING)


def render_masks(attributes: BirdAttributes, seed: int, image_size: int = 64) -> np.ndarray:
    """Where crown, belly and wing are in [`render_bird`]'s image: the share of each pixel that the part covers, with
    its outline, float32 [3, image_size, image_size] in the order of `PARTS`; a place belongs to what is in front."""
    image, masks = np.asarray(_paint(attributes, seed, image_size)), []
    for part in PARTS:
        # A part is where another colour of it shows: nothing else in the image depends on the word.
        other = "black" if getattr(attributes, part) != "black" else "white"
        changed = (np.asarray(_paint(replace(attributes, **{part: other}), seed, image_size)) != image).any(axis=2)
        tiles = changed.reshape(image_size, _SUPERSAMPLING, image_size, _SUPERSAMPLING)
        masks.append(tiles.mean(axis=(1, 3), dtype=np.float32))
    return np.stack(masks)


def _paint(attributes: BirdAttributes, seed: int, image_size: int) -> Image.Image:
    """The image before it is reduced by `_SUPERSAMPLING`."""
    if image_size < MIN_IMAGE_SIZE:
        raise ValueError(f"image_size must be at least {MIN_IMAGE_SIZE}; got {image_size}")
    rng = random.Random(seed)
    side = image_size * _SUPERSAMPLING
    pose = _sample_pose(attributes, side, rng)
    image = _paint_background(attributes.background, side, rng)
    draw = ImageDraw.Draw(image)
    _paint_perch(attributes.perch, draw, side, *pose.foot.tolist(), rng)
    _paint_bird(_Painter(draw, pose), attributes, rng)
    return image


def render_png(bird: BirdAttributes, seed: int, image_size: int) -> bytes:
    """A bird as a PNG file of image_size x image_size pixels."""
    buffer = io.BytesIO()
    render_bird(bird, seed, image_size).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def render_pixels(birds: list[BirdAttributes], seeds: list[int], image_size: int = 64) -> "torch.Tensor":
    """Render birds into a uint8 tensor [N, 3, image_size, image_size]."""
    import torch  # not above: workers that only write PNG files start faster without it

    images = [np.asarray(render_bird(bird, seed, image_size)) for bird, seed in zip(birds, seeds, strict=True)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


# Which seeds belong to which purpose

_PURPOSES = ("train", "test", "clip", "clip_check", "judge", "judge_check", "prompts", "validation", "scorer")
_IMAGES_PER_SEED = 10**7
_SEEDS_PER_PURPOSE = 10**4
_WORDING_OFFSET = 2**60


def first_render_seed(purpose: str, seed: int) -> int:
    """The first of ten million render seeds reserved for a purpose and a user's seed (0 to 9999)."""
    if not 0 <= seed < _SEEDS_PER_PURPOSE:
        raise ValueError(f"seed must lie in 0..{_SEEDS_PER_PURPOSE - 1}; got {seed}")
    return (_PURPOSES.index(purpose) * _SEEDS_PER_PURPOSE + seed) * _IMAGES_PER_SEED


def sample_birds(purpose: str, seed: int, count: int, split: str | None) -> tuple[list[BirdAttributes], list[int]]:
    """Attributes of `count` birds of a split (None: any colours) and the seeds to render them with."""
    first = first_render_seed(purpose, seed)
    rng = random.Random(first)
    return [sample_attributes(rng, split) for _ in range(count)], list(range(first, first + count))


def wording_rng(render_seed: int) -> random.Random:
    """The generator for the captions of one render; not the render's own, or wording and pose would go together."""
    return random.Random(_WORDING_OFFSET + render_seed)


# The bird

_PAINTS = {
    "red": (212, 36, 46),
    "orange": (246, 134, 24),
    "yellow": (250, 218, 48),
    "green": (40, 152, 68),
    "blue": (40, 92, 214),
    "black": (30, 30, 36),
    "white": (250, 250, 248),
    "purple": (140, 58, 182),
}
_FEATHERS = (168, 150, 132)
_LEGS = (112, 84, 62)
_BEAK_PAINT = (92, 82, 76)
_SCALES = {"small": (0.70, 0.78), "large": (0.98, 1.06)}
_FOOT_HEIGHTS = {"small": 0.76, "large": 0.86}


@dataclass(frozen=True)
class _Pose:
    """Where the bird's own coordinates land on the canvas, and how far its movable parts are turned (radians)."""

    foot: np.ndarray
    scale: float
    mirror: int
    tilt: float
    head: float
    wing: float
    tail: float

    def place(self, points: np.ndarray, turn: float = 0.0, pivot: tuple[float, float] = (0.0, 0.0)) -> list[float]:
        """Turn `points` [n, 2] around `pivot`, then tilt, mirror, scale and move them; returns x0, y0, x1, y1, ..."""
        turned = (points - pivot) @ _rotation(turn) + pivot
        tilted = (turned - _HIPS[0]) @ _rotation(self.tilt) + _HIPS[0]
        return (tilted * (self.mirror * self.scale, self.scale) + self.foot).ravel().tolist()


def _rotation(angle: float) -> np.ndarray:
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, sine], [-sine, cosine]])


def _sample_pose(attributes: BirdAttributes, side: int, rng: random.Random) -> _Pose:
    mirror = 1 if attributes.direction == "right" else -1
    x = 0.5 + rng.uniform(-0.04, 0.04)
    y = _FOOT_HEIGHTS[attributes.size] + rng.uniform(-0.03, 0.02)
    return _Pose(
        foot=np.array([x, y]) * side,
        scale=rng.uniform(*_SCALES[attributes.size]) * side,
        mirror=mirror,
        tilt=rng.uniform(-0.16, 0.13),
        head=rng.uniform(-0.14, 0.14),
        wing=rng.uniform(-0.10, 0.08),
        tail=rng.uniform(-0.25, 0.25),
    )


def _jittered(colour: tuple[int, int, int], rng: random.Random) -> tuple[int, int, int]:
    light = rng.uniform(0.94, 1.05)
    return tuple(max(0, min(255, round(channel * light + rng.uniform(-8, 8)))) for channel in colour)


def _darker(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    # The constant keeps the edge of a black part visible: it comes out lighter than the part.
    return tuple(round(channel * 0.52 + 24) for channel in colour)


class _Painter:
    """Paints outlined shapes of one pose on one canvas."""

    def __init__(self, draw: ImageDraw.ImageDraw, pose: _Pose):
        self.draw = draw
        self.pose = pose

    def shape(self, outline: np.ndarray, fill, turn: float = 0.0, pivot=(0.0, 0.0)) -> None:
        edge = _grown(outline, _OUTLINE_WIDTH)
        self.draw.polygon(self.pose.place(edge, turn, pivot), fill=_darker(fill))
        self.draw.polygon(self.pose.place(outline, turn, pivot), fill=fill)

    def plain(self, outline: np.ndarray, fill, turn: float = 0.0, pivot=(0.0, 0.0)) -> None:
        self.draw.polygon(self.pose.place(outline, turn, pivot), fill=fill)

    def line(self, points: np.ndarray, fill, turn: float = 0.0, pivot=(0.0, 0.0)) -> None:
        self.draw.line(self.pose.place(points, turn, pivot), fill=fill, width=max(1, round(0.016 * self.pose.scale)))

    def legs(self) -> None:
        width = max(1, round(0.024 * self.pose.scale))
        for hip_x, hip_y in _HIPS:
            hip = self.pose.place(np.array([(hip_x, hip_y)]))
            foot_x = self.pose.foot[0] + self.pose.mirror * self.pose.scale * hip_x
            foot_y = self.pose.foot[1] + 0.01 * self.pose.scale
            toe_x = foot_x + self.pose.mirror * self.pose.scale * 0.045
            self.draw.line((*hip, foot_x, foot_y, toe_x, foot_y), fill=_LEGS, width=width)


def _paint_bird(painter: _Painter, attributes: BirdAttributes, rng: random.Random) -> None:
    crown, belly, wing = (_jittered(_PAINTS[colour], rng) for colour in attributes.colours)
    feathers = _jittered(_FEATHERS, rng)
    pose = painter.pose
    head = {"turn": pose.head, "pivot": _HEAD_CENTRE}
    folded = {"turn": pose.wing, "pivot": _SHOULDER}
    painter.legs()
    painter.shape(_TAIL, feathers, turn=pose.tail, pivot=_RUMP)
    painter.shape(_BODY, feathers)
    painter.shape(_BELLY, belly)
    painter.shape(_WING, wing, **folded)
    for line in _FEATHER_LINES:
        painter.line(line, _darker(wing), **folded)
    painter.plain(_BEAK, _BEAK_PAINT, **head)
    painter.plain(_HEAD, feathers)
    painter.shape(_CROWN, crown, **head)
    painter.plain(_EYE_RING, (244, 240, 230), **head)
    painter.plain(_EYE, (24, 20, 22), **head)
    painter.plain(_EYE_GLINT, (255, 255, 255), **head)


# The bird's outlines in its own coordinates: feet at the origin, facing right, y downwards, height near 0.7

_SAMPLES_PER_SEGMENT = 5


def _closed_curve(points: list[tuple[float, float]]) -> np.ndarray:
    """Sample a closed Catmull-Rom curve through `points`; returns a float array [len(points) * 5, 2]."""
    control = np.asarray(points, dtype=np.float64)
    before, after, second = np.roll(control, 1, axis=0), np.roll(control, -1, axis=0), np.roll(control, -2, axis=0)
    t = np.linspace(0.0, 1.0, _SAMPLES_PER_SEGMENT, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (array[:, None] for array in (before, control, after, second))
    curve = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    return (curve / 2).reshape(-1, 2)


def _grown(curve: np.ndarray, distance: float) -> np.ndarray:
    """Move every point of a closed curve outwards along its normal by `distance`."""
    tangent = np.roll(curve, -1, axis=0) - np.roll(curve, 1, axis=0)
    normal = np.stack([tangent[:, 1], -tangent[:, 0]], axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    x, y = curve[:, 0], curve[:, 1]
    signed_area = np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))
    return curve + distance * np.sign(signed_area) * normal


def _circle(x: float, y: float, radius: float, count: int = 20) -> np.ndarray:
    angle = np.linspace(0.0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)


_OUTLINE_WIDTH = 0.014
_HEAD_CENTRE = (0.15, -0.50)
_SHOULDER = (0.03, -0.33)
_RUMP = (-0.22, -0.22)
_HIPS = ((-0.01, -0.12), (0.075, -0.12))

_BODY = _closed_curve([
    (0.245, -0.36), (0.22, -0.22), (0.12, -0.115), (-0.02, -0.085), (-0.16, -0.125), (-0.27, -0.21),
    (-0.22, -0.33), (-0.07, -0.44), (0.02, -0.53), (0.15, -0.57), (0.26, -0.47),
])  # fmt: skip
_HEAD = _circle(*_HEAD_CENTRE, 0.155, count=28)
_TAIL = np.array([(-0.20, -0.27), (-0.43, -0.20), (-0.455, -0.145), (-0.42, -0.115), (-0.19, -0.155)])
_BELLY = _closed_curve([
    (0.255, -0.385), (0.228, -0.22), (0.125, -0.105), (-0.02, -0.075), (-0.155, -0.115), (-0.12, -0.18),
    (-0.01, -0.225), (0.075, -0.30), (0.12, -0.385), (0.19, -0.405),
])  # fmt: skip
_WING = _closed_curve([
    (0.085, -0.32), (0.055, -0.425), (-0.05, -0.455), (-0.18, -0.385), (-0.30, -0.265), (-0.385, -0.135),
    (-0.25, -0.165), (-0.11, -0.175), (0.02, -0.225),
])  # fmt: skip
_CROWN = _closed_curve([
    (0.312, -0.535), (0.265, -0.635), (0.165, -0.69), (0.06, -0.665), (-0.015, -0.58), (-0.035, -0.455),
    (0.045, -0.505), (0.14, -0.552), (0.24, -0.548),
])  # fmt: skip
_BEAK = np.array([(0.285, -0.525), (0.345, -0.505), (0.405, -0.465), (0.34, -0.455), (0.285, -0.445)])
_EYE_RING = _circle(0.215, -0.487, 0.047)
_EYE = _circle(0.219, -0.487, 0.032)
_EYE_GLINT = _circle(0.230, -0.498, 0.011, count=8)
_FEATHER_LINES = (
    np.array([(-0.01, -0.285), (-0.14, -0.265), (-0.28, -0.19)]),
    np.array([(-0.02, -0.36), (-0.15, -0.325), (-0.30, -0.215)]),
)


# Pale, low-contrast backgrounds, and the perch that the bird stands on

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


def _paint_background(background: str, side: int, rng: random.Random) -> Image.Image:
    """Return a new RGB image [side, side]: a vertical gradient with a few faint details."""
    light = rng.uniform(0.95, 1.04)
    top, bottom = (np.array(_shade(colour, light), dtype=np.float64) for colour in _GRADIENTS[background])
    mix = np.linspace(0.0, 1.0, side)[:, None]
    column = (top * (1 - mix) + bottom * mix).round().astype(np.uint8)[:, None]
    image = Image.fromarray(column).resize((side, side), Image.Resampling.NEAREST)
    _DETAILS[background](ImageDraw.Draw(image), side, rng)
    return image


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


def _paint_perch(perch: str, draw: ImageDraw.ImageDraw, side: int, x: float, y: float, rng: random.Random) -> None:
    """Paint the perch so that its top supports feet at pixel (x, y) of a canvas of `side` pixels."""
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
