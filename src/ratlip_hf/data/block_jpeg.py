"""JPEGs with a restart marker after every block can be decoded in part: the blocks of a region are a JPEG themselves.
Owns that cutting. `SAVE_OPTIONS` make such files, which any reader opens; others are left to whole decoding."""

import re
import struct

from PIL import Image

from .images import Region, decode, to_rgb

SAVE_OPTIONS = {"subsampling": "4:2:0", "restart_marker_blocks": 1}
_SIDE = 16  # of a block in pixels, with colour at half the resolution
_SOF, _DRI, _SOS, _EXIF = 0xC0, 0xDD, 0xDA, 0xE1
_SAMPLING = (0x22, 0x11, 0x11)
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_RESTARTS = [bytes((0xFF, 0xD0 + number)) for number in range(8)]
_END = b"\xff\xd9"


class BlockJPEG:
    """A JPEG of blocks that do not depend on each other, undecoded; `size` and `crop` are as those of a PIL image."""

    def __init__(self, content: bytes, size_at: int, scan_at: int):
        self._content, self._size_at = content, size_at
        height, width = struct.unpack_from(">HH", content, size_at)
        self.size = (width, height)
        self._columns = -(-width // _SIDE)
        restarts = [match.start() for match in _RESTART.finditer(content, scan_at)]
        self._begins = [scan_at, *(place + 2 for place in restarts)]
        self._ends = [*restarts, len(content) - 2]

    @classmethod
    def parse(cls, content: bytes) -> "BlockJPEG | None":
        """Recognise such a file by its headers; None for any other."""
        size_at = scan_at = interval = None
        at = 2 if content[:2] == b"\xff\xd8" and content.endswith(_END) else len(content)
        while at + 4 <= len(content) and content[at] == 0xFF:
            marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4])
            if marker == _SOF and tuple(content[at + 11 : at + 19 : 3]) == _SAMPLING:
                size_at = at + 5
            elif marker == _DRI:
                interval = int.from_bytes(content[at + 4 : at + 6])
            elif marker == _EXIF:
                return None  # may ask to turn the picture
            elif marker == _SOS:
                scan_at = at + 2 + length
                break
            at += 2 + length
        if interval != 1 or size_at is None or scan_at is None:
            return None
        picture = cls(content, size_at, scan_at)
        rows = -(-picture.size[1] // _SIDE)
        return picture if len(picture._begins) == rows * picture._columns else None

    def crop(self, region: Region) -> Image.Image:
        """The pixels of a region, exactly as they are in the whole picture. Raises BadImage for damaged blocks."""
        (width, height), (left, top, right, bottom) = self.size, region
        # A pixel more on each side: colours are interpolated from their neighbours.
        first_column, first_row = max(0, left - 1) // _SIDE, max(0, top - 1) // _SIDE
        last_column, last_row = min(width, right + 1) - 1, min(height, bottom + 1) - 1
        columns = range(first_column, last_column // _SIDE + 1)
        rows = range(first_row, last_row // _SIDE + 1)
        x, y = first_column * _SIDE, first_row * _SIDE
        size = struct.pack(">HH", min(height - y, len(rows) * _SIDE), min(width - x, len(columns) * _SIDE))
        part = decode(b"".join([*self._head(size), *self._scan(columns, rows), _END]))
        return part.crop((left - x, top - y, right - x, bottom - y))

    def _head(self, size: bytes) -> tuple[bytes, ...]:
        return self._content[: self._size_at], size, self._content[self._size_at + 4 : self._begins[0]]

    def _scan(self, columns: range, rows: range) -> list[bytes]:
        """The blocks of the region, each but the last followed by its restart marker, numbered anew."""
        pieces = []
        for row in rows:
            for block in range(row * self._columns + columns.start, row * self._columns + columns.stop):
                pieces.append(self._content[self._begins[block] : self._ends[block]])
                pieces.append(_RESTARTS[(len(pieces) // 2) % 8])
        return pieces[:-1]


def open_picture(content: bytes) -> "Image.Image | BlockJPEG":
    """A picture in RGB that can be cropped, undecoded if that can wait. Raises BadImage."""
    return BlockJPEG.parse(content) or to_rgb(decode(content))
