"""Draws one synthetic bird from its attributes and an integer seed.
Owns pose, colour jitter and the painting order of the parts; outlines come from `shapes`, the rest from `scenery`."""

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from . import shapes
from .attributes import BirdAttributes
from .scenery import draw_background, draw_perch

MIN_IMAGE_SIZE = 64

_SUPERSAMPLING = 3
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
_BEAK = (92, 82, 76)
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
        tilted = (turned - shapes.HIPS[0]) @ _rotation(self.tilt) + shapes.HIPS[0]
        return (tilted * (self.mirror * self.scale, self.scale) + self.foot).ravel().tolist()


def _rotation(angle: float) -> np.ndarray:
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, sine], [-sine, cosine]])


def _draw_pose(attributes: BirdAttributes, side: int, rng: random.Random) -> _Pose:
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
        edge = shapes.grown(outline, shapes.OUTLINE_WIDTH)
        self.draw.polygon(self.pose.place(edge, turn, pivot), fill=_darker(fill))
        self.draw.polygon(self.pose.place(outline, turn, pivot), fill=fill)

    def plain(self, outline: np.ndarray, fill, turn: float = 0.0, pivot=(0.0, 0.0)) -> None:
        self.draw.polygon(self.pose.place(outline, turn, pivot), fill=fill)

    def line(self, points: np.ndarray, fill, turn: float = 0.0, pivot=(0.0, 0.0)) -> None:
        self.draw.line(self.pose.place(points, turn, pivot), fill=fill, width=max(1, round(0.016 * self.pose.scale)))

    def legs(self) -> None:
        width = max(1, round(0.024 * self.pose.scale))
        for hip_x, hip_y in shapes.HIPS:
            hip = self.pose.place(np.array([(hip_x, hip_y)]))
            foot_x = self.pose.foot[0] + self.pose.mirror * self.pose.scale * hip_x
            foot_y = self.pose.foot[1] + 0.01 * self.pose.scale
            toe_x = foot_x + self.pose.mirror * self.pose.scale * 0.045
            self.draw.line((*hip, foot_x, foot_y, toe_x, foot_y), fill=_LEGS, width=width)


def _paint_bird(painter: _Painter, attributes: BirdAttributes, rng: random.Random) -> None:
    crown, belly, wing = (_jittered(_PAINTS[colour], rng) for colour in attributes.colours)
    feathers = _jittered(_FEATHERS, rng)
    pose = painter.pose
    head = {"turn": pose.head, "pivot": shapes.HEAD_CENTRE}
    folded = {"turn": pose.wing, "pivot": shapes.SHOULDER}
    painter.legs()
    painter.shape(shapes.TAIL, feathers, turn=pose.tail, pivot=shapes.RUMP)
    painter.shape(shapes.BODY, feathers)
    painter.shape(shapes.BELLY, belly)
    painter.shape(shapes.WING, wing, **folded)
    for line in shapes.FEATHER_LINES:
        painter.line(line, _darker(wing), **folded)
    painter.plain(shapes.BEAK, _BEAK, **head)
    painter.plain(shapes.HEAD, feathers)
    painter.shape(shapes.CROWN, crown, **head)
    painter.plain(shapes.EYE_RING, (244, 240, 230), **head)
    painter.plain(shapes.EYE, (24, 20, 22), **head)
    painter.plain(shapes.EYE_GLINT, (255, 255, 255), **head)


def render_bird(attributes: BirdAttributes, seed: int, image_size: int = 64) -> Image.Image:
    """Draw a bird as an RGB picture [image_size, image_size]; the same arguments give the same bytes everywhere.

    The seed chooses pose, position, exact tones and scenery details; at two sizes it gives the same composition.
    Raises `ValueError` for an `image_size` below 64.
    """
    if image_size < MIN_IMAGE_SIZE:
        raise ValueError(f"image_size must be at least {MIN_IMAGE_SIZE}; got {image_size}")
    rng = random.Random(seed)
    side = image_size * _SUPERSAMPLING
    pose = _draw_pose(attributes, side, rng)
    picture = draw_background(attributes.background, side, rng)
    draw = ImageDraw.Draw(picture)
    draw_perch(attributes.perch, draw, side, *pose.foot.tolist(), rng)
    _paint_bird(_Painter(draw, pose), attributes, rng)
    return picture.reduce(_SUPERSAMPLING)
