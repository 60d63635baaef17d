"""From a photograph to a training image: crop to the object, scale, crop at random.
Two variants differ in rounding and resampling, not in what they show."""

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from ..images import Region, object_region

ANTIALIASED, RELEASED = "antialiased", "released"
VARIANTS = (ANTIALIASED, RELEASED)
_MARGIN = 76 / 64  # the image is scaled to this multiple of the size before a random crop takes the size out of it


def frame(
    image: Image.Image,
    size: int,
    box: list[float] | None = None,
    variant: str = ANTIALIASED,
    rng: np.random.Generator | None = None,
    mirror: bool = False,
) -> np.ndarray:
    """Pixels [size, size, 3] uint8 of a square part of an RGB image, around the object in `box` (left, top, width,
    height) if there is one. The crop is random with `rng`, else the largest in the middle.

    "antialiased" cuts the part out of the photograph and resamples it once, bicubic; "released" does what the authors'
    code did: everything to 76/64 of the size, bilinear, then a crop. Both filter when shrinking. Without a box, an
    image that has the size already is used as it is.
    """
    if image.size == (size, size) and box is None:
        return np.asarray(_crop(image, (0, 0, size, size), mirror))
    region = object_region(image.size, box, truncate=variant == RELEASED) if box else (0, 0, *image.size)
    if variant == RELEASED:
        return _released(_crop(image, region, mirror), size, rng)
    side = min(region[2] - region[0], region[3] - region[1])
    window = _place(region, max(1, round(side / _MARGIN)) if rng else side, rng)
    return _resample(_crop(image, window, mirror), size)


def _crop(image: Image.Image, region: Region, mirror: bool) -> Image.Image:
    # Mirrored here rather than as an array, whose three-byte pixels are slow to reverse.
    part = image.crop(region)
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else part


def _place(region: Region, side: int, rng: np.random.Generator | None) -> Region:
    """A square within the region: anywhere, or in the middle."""
    room = (region[2] - region[0] - side, region[3] - region[1] - side)
    across, down = (int(rng.integers(value + 1)) if rng else value // 2 for value in room)
    left, top = region[0] + across, region[1] + down
    return (left, top, left + side, top + side)


def _resample(image: Image.Image, size: int) -> np.ndarray:
    if image.size == (size, size):  # as from shards that hold what training crops to, at 76/64 of its size
        return np.asarray(image)
    # Pixels agree with Pillow's to rounding; torch is three times as fast on one core.
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    resized = functional.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _released(image: Image.Image, size: int, rng: np.random.Generator | None) -> np.ndarray:
    target = int(size * _MARGIN)
    shorter = min(image.size)
    sides = [target if side == shorter else int(target * side / shorter) for side in image.size]
    image = image.resize(sides, Image.Resampling.BILINEAR)
    return np.asarray(image.crop(_place((0, 0, *image.size), size, rng)))
