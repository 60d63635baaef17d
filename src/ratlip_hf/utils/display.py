"""How values, tables and images are shown to people."""

from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont


def as_size(count: float) -> str:
    """Bytes for people: 1.5 GB."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def as_markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def grid_image(images: Sequence[Image.Image], columns: int, gap: int = 2, min_side: int = 0) -> Image.Image:
    """Paste equally large images row by row on white, `gap` pixels apart; those smaller than `min_side` are enlarged
    by a whole factor to at least that side. Raises ValueError for no images or fewer than one column."""
    if not images or columns < 1:
        raise ValueError("a grid needs at least one image and one column")
    factor = -(-min_side // min(images[0].size)) if min_side else 1
    if factor > 1:
        size = (images[0].width * factor, images[0].height * factor)
        images = [image.resize(size, Image.Resampling.BICUBIC) for image in images]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width, height = images[0].size
    grid = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        grid.paste(image, (column * (width + gap), row * (height + gap)))
    return grid


_INK, _FONT_SIZE, _LINE, _GAP = "#333333", 13, 16, 4  # pixels


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    side: int = 128,
    title: str = "",
) -> Image.Image:
    """Rows of images on white, each `side` pixels high and wide, with words to their left, above them and on top.

    Args:
        rows: equally long rows of square images; small ones are enlarged smoothly.
        row_labels: one for each row, or none. Long ones are broken into lines.
        column_labels: one for each column, or none.
        title: a line above everything.

    Raises:
        ValueError: for no images, or labels of another number.
    """
    rows = [list(row) for row in rows]
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        raise ValueError("a grid needs equally long rows of at least one image")
    if len(row_labels) not in (0, len(rows)) or len(column_labels) not in (0, len(rows[0])):
        raise ValueError(f"{len(rows)} rows of {len(rows[0])} images need a label each, or none")
    cell = side + _GAP
    left = 190 if row_labels else 0
    heads = [_wrapped(label, side) for label in column_labels]
    titles = _wrapped(title, left + cell * len(rows[0])) if title else []
    top = _LINE * (len(titles) + max(map(len, heads), default=0)) + (8 if titles or heads else 0)
    canvas = Image.new("RGB", (left + cell * len(rows[0]) - _GAP, top + cell * len(rows) - _GAP), "white")
    write = ImageDraw.Draw(canvas)
    _write(write, (2, 2), titles)
    for column, lines in enumerate(heads):
        _write(write, (left + column * cell + 2, top - 6 - _LINE * len(lines)), lines)
    for index, row in enumerate(rows):
        if row_labels:
            lines = _wrapped(row_labels[index], left - 8)[: side // _LINE]
            _write(write, (2, top + index * cell + (side - _LINE * len(lines)) // 2), lines)
        for column, image in enumerate(row):
            scaled = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
            canvas.paste(scaled, (left + column * cell, top + index * cell))
    return canvas


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], lines: list[str]) -> None:
    for number, line in enumerate(lines):
        draw.text((place[0], place[1] + number * _LINE), line, font=_font(), fill=_INK)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _font().getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


@lru_cache
def _font():
    return ImageFont.load_default(size=_FONT_SIZE)
