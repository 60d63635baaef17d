"""JPEGs with a restart marker after every block can be decoded in part: the blocks of a region are a JPEG themselves.
Owns that cutting. `SAVE_OPTIONS` make such files, which any reader opens; others are left to whole decoding."""

import struct

import numpy as np
from PIL import Image

from .images import Region, decode, to_rgb

SAVE_OPTIONS = {"subsampling": "4:2:0", "restart_marker_blocks": 1}
_SIDE = 16  # of a block in pixels, with colour at half the resolution
_SOF, _DRI, _SOS, _EXIF = 0xC0, 0xDD, 0xDA, 0xE1
_SAMPLING = (0x22, 0x11, 0x11)
_RESTART, _RESTARTS = 0xD0, 8  # the first of eight markers, which take turns
_END = b"\xff\xd9"


class BlockJPEG:
    """A JPEG of blocks that do not depend on each other, undecoded; `size` and `crop` are as those of a PIL image."""

    def __init__(self, content: bytes, size_at: int, scan_at: int):
        self._content, self._size_at = content, size_at
        height, width = struct.unpack_from(">HH", content, size_at)
        self.size = (width, height)
        self._columns = -(-width // _SIDE)
        scan = np.frombuffer(content, np.uint8, offset=scan_at)
        marks = np.flatnonzero(scan[:-1] == 0xFF)
        restarts = marks[scan[marks + 1] // _RESTARTS == _RESTART // _RESTARTS]
        self._begins = np.concatenate([[0], restarts + 2])  # of the blocks, counted from the start of the scan
        self._ends = np.append(restarts, len(scan) - 2)
        self._scan_at, self._scan = scan_at, scan

    @classmethod
    def parse(cls, content: bytes) -> "BlockJPEG | None":
        """Recognise such a file by its headers; None for any other."""
        size_at = scan_at = interval = None
        at = 2 if content[:2] == b"\xff\xd8" and content.endswith(_END) else len(content)
        while at + 4 <= len(content) and content[at] == 0xFF:
            marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4])
            if marker == _SOF and content[at + 9] == 3 and tuple(content[at + 11 : at + 19 : 3]) == _SAMPLING:
                size_at = at + 5
            elif marker == _DRI:
                interval = int.from_bytes(content[at + 4 : at + 6])
            elif marker == _EXIF:
                return None  # may ask to turn the image
            elif marker == _SOS:
                scan_at = at + 2 + length
                break
            at += 2 + length
        if interval != 1 or size_at is None or scan_at is None:
            return None
        image = cls(content, size_at, scan_at)
        rows = -(-image.size[1] // _SIDE)
        return image if len(image._begins) == rows * image._columns else None

    def crop(self, region: Region) -> Image.Image:
        """The pixels of a region, exactly as they are in the whole image. Raises BadImage for damaged blocks."""
        (width, height), (left, top, right, bottom) = self.size, region
        # A pixel more on each side: colours are interpolated from their neighbours.
        first_column, first_row = max(0, left - 1) // _SIDE, max(0, top - 1) // _SIDE
        last_column, last_row = min(width, right + 1) - 1, min(height, bottom + 1) - 1
        columns = range(first_column, last_column // _SIDE + 1)
        rows = range(first_row, last_row // _SIDE + 1)
        x, y = first_column * _SIDE, first_row * _SIDE
        size = struct.pack(">HH", min(height - y, len(rows) * _SIDE), min(width - x, len(columns) * _SIDE))
        head = self._content[: self._size_at], size, self._content[self._size_at + 4 : self._scan_at]
        part = decode(b"".join([*head, *self._rows_of_blocks(columns, rows), _END]))
        return part.crop((left - x, top - y, right - x, bottom - y))

    def _rows_of_blocks(self, columns: range, rows: range) -> list[bytes]:
        """The bytes of each row of the region, with the marker that follows each block numbered anew."""
        blocks = np.array(rows)[:, None] * self._columns + np.array(columns)
        begins, ends = self._begins[blocks[:, 0]], self._ends[blocks[:, -1]] + 2
        scan = self._scan.copy()
        scan[self._ends[blocks.ravel()] + 1] = _RESTART + np.arange(blocks.size) % _RESTARTS
        ends[-1] -= 2  # no marker after the last block
        return [scan[begin:end].tobytes() for begin, end in zip(begins, ends, strict=True)]


def open_image(content: bytes) -> "Image.Image | BlockJPEG":
    """An image in RGB that can be cropped, undecoded if that can wait. Raises BadImage."""
    return BlockJPEG.parse(content) or to_rgb(decode(content))
