"""Images as files: which bytes are a usable image, images in RGB, and shrinking them for storage.
Preparing, checking and training all decode here, so that they see the same pixels."""

import io
import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from PIL import ExifTags, Image, ImageOps

MAX_PIXELS = 2**26  # 67 megapixels; a small file can claim to be far larger than memory
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_LONGEST_JPEG = 65_500
_BOX_MARGIN = 0.75  # half the side of the crop to an object, as a multiple of the longer side of its box
Region = tuple[int, int, int, int]  # left, top, right, bottom in pixels
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_TEXT_BYTES = frozenset(range(32, 127)) | {9, 10, 13}
# Where EXIF's orientations move a point (x, y) of an image of w x h pixels.
_TURNS = {
    1: lambda x, y, w, h: (x, y),
    2: lambda x, y, w, h: (w - x, y),
    3: lambda x, y, w, h: (w - x, h - y),
    4: lambda x, y, w, h: (x, h - y),
    5: lambda x, y, w, h: (y, x),
    6: lambda x, y, w, h: (h - y, x),
    7: lambda x, y, w, h: (h - y, w - x),
    8: lambda x, y, w, h: (y, w - x),
}


class BadImage(ValueError):
    """Bytes that are no usable image; the text says why, as reports count it."""


class Stored(NamedTuple):
    """An image ready to be written: encoded bytes, suffix of its format, and the factor that scaled its sides."""

    content: bytes
    suffix: str
    scale: float


def open_image(content: bytes) -> Image.Image:
    """An encoded image in RGB. Raises BadImage as [`decode`] does."""
    return to_rgb(decode(content))


def decode(content: bytes) -> Image.Image:
    """A fully loaded image in the mode it is stored in. Raises BadImage for text, pointers to files, damaged or cut
    files, unknown formats, and sizes beyond `MAX_PIXELS`."""
    _refuse_text(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged tags, and of bombs, for which the limit here is stricter
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError  # as Pillow does beyond a limit of its own
            image.load()
    except Image.DecompressionBombError as error:
        raise BadImage(f"image of more than {MAX_PIXELS >> 20} megapixels") from error
    except Image.UnidentifiedImageError as error:
        raise BadImage("file in no known image format") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise BadImage("damaged or cut image") from error
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """The image as it is meant to be seen: turned as EXIF says, transparent parts on white, three channels."""
    if image.mode == "RGB" and orientation(image) == 1:
        return image
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits of grey; conversion alone would clip them
        brightest = 255 if image.getextrema()[1] <= 255 else 65535
        image = image.convert("F").point(lambda value: value * (255 / brightest)).convert("L")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def remarks(image: Image.Image) -> list[str]:
    """Properties of a usable image that are worth counting."""
    found = [] if image.mode == "RGB" else [f"image in mode {image.mode}, seen as RGB"]
    if orientation(image) != 1:
        found.append("image that EXIF says to turn or mirror")
    return found


def box_remarks(box: tuple[float, float, float, float], size: tuple[int, int]) -> list[str]:
    """What is odd about a box (left, top, width, height) of an image of `size`, both in pixels as they are stored."""
    left, top, width, height = box
    if left >= size[0] or top >= size[1] or left + width <= 0 or top + height <= 0:
        return ["bounding box that lies outside its image: training uses the whole image"]
    if left < 0 or top < 0 or left + width > size[0] or top + height > size[1]:
        return ["bounding box that reaches beyond its image: training cuts it there"]
    return []


def orientation(image: Image.Image) -> int:
    """How EXIF says to turn the stored pixels: 1 (not at all) to 8; values that mean nothing count as 1."""
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in _TURNS else 1


def turn_box(box: tuple[float, float, float, float], size: tuple[int, int], turn: int) -> tuple[float, ...]:
    """A box (left, top, width, height) of the stored image, where annotation tools that ignore EXIF see it, in pixels
    of the turned one. `size` is that of the stored image, `turn` its [`orientation`]."""
    left, top, width, height = box
    corners = [_TURNS[turn](x, y, *size) for x, y in ((left, top), (left + width, top + height))]
    (x0, x1), (y0, y1) = (sorted(values) for values in zip(*corners, strict=True))
    return (x0, y0, x1 - x0, y1 - y0)


def object_region(size: tuple[int, int], box: Sequence[float], truncate: bool = False) -> Region:
    """Left, top, right, bottom of a square around a box, with a margin, clipped to an image of `size`.

    A box that leaves nothing of it, or is no box, gives the whole image. `truncate` cuts the fractions of centre and
    side off, as the authors' code does, instead of rounding the corners.
    """
    left, top, width, height = box
    if not all(map(math.isfinite, box)):
        return (0, 0, *size)
    half = _BOX_MARGIN * max(width, height)
    x, y = (2 * left + width) / 2, (2 * top + height) / 2
    if truncate:
        half, x, y = int(half), int(x), int(y)
    left, top, right, bottom = (round(value) for value in (x - half, y - half, x + half, y + half))
    region = (max(0, left), max(0, top), min(size[0], right), min(size[1], bottom))
    return region if region[0] < region[2] and region[1] < region[3] else (0, 0, *size)


def store(
    content: bytes, image: Image.Image, size: int | None, quality: int, box: Sequence[float] | None = None
) -> Stored:
    """The bytes to keep of an image, given encoded and decoded. A `size` scales the shorter side to it, as RGB JPEG of
    a `quality` from 1 to 100, of the whole image or, with a `box` in the upright one, of the part around that object
    (see [`object_region`]); None keeps the file as it is."""
    if size is None:
        suffix = ".jpg" if image.format == "JPEG" else f".{image.format.lower()}"
        return Stored(content, suffix, 1.0)
    image = to_rgb(image)
    if box:
        image = image.crop(object_region(image.size, box))
    scale = size / min(image.size)
    sides = [max(size, round(side * scale)) for side in image.size]
    if sides[0] * sides[1] > MAX_PIXELS or max(sides) > _LONGEST_JPEG:
        raise BadImage("image too narrow for its shorter side to be stored at that size")
    buffer = io.BytesIO()
    image.resize(sides, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=quality)
    return Stored(buffer.getvalue(), ".jpg", scale)


def _refuse_text(content: bytes) -> None:
    head = content[:512]
    if not head.strip():
        raise BadImage("empty file")
    if head.startswith(b"version https://git-lfs"):
        raise BadImage("Git LFS pointer instead of the image (run git lfs pull in the source)")
    if b"annex/objects" in head:
        raise BadImage("git-annex pointer instead of the image")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise BadImage("web page instead of an image")
    if all(byte in _TEXT_BYTES for byte in head):
        raise BadImage("text instead of an image")
