"""Outlines of a side-view bird in its own coordinates: feet at the origin, facing right, y downwards, height near 0.7.
Owns the control points of every part and the smooth closed curves through them, computed once at import."""

import numpy as np

_SAMPLES_PER_SEGMENT = 5


def closed_curve(points: list[tuple[float, float]]) -> np.ndarray:
    """Sample a closed Catmull-Rom curve through `points`; returns a float array [len(points) * 5, 2]."""
    control = np.asarray(points, dtype=np.float64)
    before, after, second = np.roll(control, 1, axis=0), np.roll(control, -1, axis=0), np.roll(control, -2, axis=0)
    t = np.linspace(0.0, 1.0, _SAMPLES_PER_SEGMENT, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (array[:, None] for array in (before, control, after, second))
    curve = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    return (curve / 2).reshape(-1, 2)


def grown(curve: np.ndarray, distance: float) -> np.ndarray:
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


OUTLINE_WIDTH = 0.014
HEAD_CENTRE = (0.15, -0.50)
SHOULDER = (0.03, -0.33)
RUMP = (-0.22, -0.22)
HIPS = ((-0.01, -0.12), (0.075, -0.12))

BODY = closed_curve([
    (0.245, -0.36), (0.22, -0.22), (0.12, -0.115), (-0.02, -0.085), (-0.16, -0.125), (-0.27, -0.21),
    (-0.22, -0.33), (-0.07, -0.44), (0.02, -0.53), (0.15, -0.57), (0.26, -0.47),
])  # fmt: skip
HEAD = _circle(*HEAD_CENTRE, 0.155, count=28)
TAIL = np.array([(-0.20, -0.27), (-0.43, -0.20), (-0.455, -0.145), (-0.42, -0.115), (-0.19, -0.155)])
BELLY = closed_curve([
    (0.255, -0.385), (0.228, -0.22), (0.125, -0.105), (-0.02, -0.075), (-0.155, -0.115), (-0.12, -0.18),
    (-0.01, -0.225), (0.075, -0.30), (0.12, -0.385), (0.19, -0.405),
])  # fmt: skip
WING = closed_curve([
    (0.085, -0.32), (0.055, -0.425), (-0.05, -0.455), (-0.18, -0.385), (-0.30, -0.265), (-0.385, -0.135),
    (-0.25, -0.165), (-0.11, -0.175), (0.02, -0.225),
])  # fmt: skip
CROWN = closed_curve([
    (0.312, -0.535), (0.265, -0.635), (0.165, -0.69), (0.06, -0.665), (-0.015, -0.58), (-0.035, -0.455),
    (0.045, -0.505), (0.14, -0.552), (0.24, -0.548),
])  # fmt: skip
BEAK = np.array([(0.285, -0.525), (0.345, -0.505), (0.405, -0.465), (0.34, -0.455), (0.285, -0.445)])
EYE_RING = _circle(0.215, -0.487, 0.047)
EYE = _circle(0.219, -0.487, 0.032)
EYE_GLINT = _circle(0.230, -0.498, 0.011, count=8)
FEATHER_LINES = (
    np.array([(-0.01, -0.285), (-0.14, -0.265), (-0.28, -0.19)]),
    np.array([(-0.02, -0.36), (-0.15, -0.325), (-0.30, -0.215)]),
)
