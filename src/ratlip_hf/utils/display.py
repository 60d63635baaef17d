"""How values, tables and images are shown to people."""

from collections.abc import Sequence

from PIL import Image


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


def grid_image(images: list[Image.Image], columns: int, gap: int = 2, min_side: int = 0) -> Image.Image:
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
