"""From a photograph to a training picture: crop to the object, scale, crop at random.
Owns the two variants, which differ in rounding and resampling, not in what they show."""

import numpy as np
from PIL import Image

ANTIALIASED, RELEASED = "antialiased", "released"
VARIANTS = (ANTIALIASED, RELEASED)
_MARGIN = 76 / 64  # the picture is scaled to this multiple of the size before a random crop takes the size out of it
_BOX_MARGIN = 0.75  # half the side of the crop to an object, as a multiple of the longer side of its box

Region = tuple[float, float, float, float]


def frame(
    image: Image.Image,
    size: int,
    box: list[float] | None = None,
    variant: str = ANTIALIASED,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Pixels [size, size, 3] uint8 of a square part of a picture.

    Args:
        image: in RGB. One that has the size already, and no box, is taken as it is.
        size: side of the result.
        box: left, top, width, height of the object to crop to, if any.
        variant: "antialiased" takes the part out of the photograph by a single bicubic resampling, at fractions of
            pixels; "released" does what the authors' code did: whole pixels, bilinear to 76/64 of the size, then crop.
        rng: of the random crop; without it the part is the largest one in the middle.
    """
    if image.size == (size, size) and box is None:
        return np.asarray(image)
    region = object_region(image.size, box, whole_pixels=variant == RELEASED) if box else (0, 0, *image.size)
    if variant == RELEASED:
        return _released(image.crop(region), size, rng)
    side = min(region[2] - region[0], region[3] - region[1])
    window = _place(region, side / _MARGIN if rng else side, rng)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=window))


def object_region(size: tuple[int, int], box: list[float], whole_pixels: bool) -> Region:
    """Left, top, right, bottom of a square around a box, with a margin, clipped to a picture of `size`.

    A box that leaves less than a pixel of it gives the whole picture.
    """
    left, top, width, height = box
    half = _BOX_MARGIN * max(width, height)
    x, y = (2 * left + width) / 2, (2 * top + height) / 2
    if whole_pixels:
        half, x, y = int(half), int(x), int(y)
    region = (max(0, x - half), max(0, y - half), min(size[0], x + half), min(size[1], y + half))
    return region if min(region[2] - region[0], region[3] - region[1]) >= 1 else (0, 0, *size)


def _place(region: Region, side: float, rng: np.random.Generator | None) -> Region:
    """A square within the region: anywhere, or in the middle."""
    room_x, room_y = region[2] - region[0] - side, region[3] - region[1] - side
    across, down = rng.random(2) * (room_x, room_y) if rng else (room_x // 2, room_y // 2)
    left, top = region[0] + float(across), region[1] + float(down)
    # Rounding must not carry the window beyond the region, which Pillow refuses.
    return (left, top, min(left + side, region[2]), min(top + side, region[3]))


def _released(image: Image.Image, size: int, rng: np.random.Generator | None) -> np.ndarray:
    target = int(size * _MARGIN)
    shorter = min(image.size)
    sides = [target if side == shorter else int(target * side / shorter) for side in image.size]
    image = image.resize(sides, Image.Resampling.BILINEAR)
    room = (image.width - size, image.height - size)
    left, top = (int(rng.integers(value + 1)) if rng else value // 2 for value in room)
    return np.asarray(image.crop((left, top, left + size, top + size)))
