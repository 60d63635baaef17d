"""From the name of a data set, or a prepared folder, to rows with captions, and from a row to the pixels of a square.
Owns what is said of data that cannot be read, and what is done where there are classes instead of captions."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np

from ..utils.errors import UserError, one_line
from .block_jpeg import open_picture
from .captions import class_caption
from .corpus import Report
from .images import BadImage
from .rows import Row
from .sources.flowers import read_class_names
from .transforms import ANTIALIASED, frame

logger = logging.getLogger(__name__)


def load_captioned(
    source: str, split: str, caption_column: str = "captions", limit: int | None = None
) -> datasets.Dataset:
    """One split of a data set, the first `limit` rows of it; sentences are made of classes' names where that is all.

    Raises:
        UserError: when nothing loadable has that name, or it has no such split.
    """
    try:
        dataset = datasets.load_dataset(str(source), split=split)
    except Exception as error:  # datasets raises many kinds; each means that the name or folder is wrong
        raise unreadable(source, error) from error
    if limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    return _with_captions(dataset, source, caption_column)


def unreadable(source: str, error: Exception) -> UserError:
    """What is said of data that cannot be loaded."""
    return UserError(f"cannot load the data {str(source)!r}: {one_line(error)}")


def row_pixels(
    row: Row, size: int, variant: str = ANTIALIASED, rng: np.random.Generator | None = None, mirror: bool = False
) -> np.ndarray:
    """Pixels [size, size, 3] uint8 of a row's picture, cut out as [`frame`] does it.

    Raises:
        UserError: for a damaged picture, saying where it is.
    """
    with naming_damage(row):
        return frame(open_picture(row.content), size, row.box, variant, rng, mirror)


@contextlib.contextmanager
def naming_damage(row: Row) -> Iterator[None]:
    """Turn what is wrong with a row's picture into a UserError that says where the picture is."""
    try:
        yield
    except BadImage as error:
        raise UserError(f"row {row.place} of the data: {error} (see ratlip data prepare)") from error


def _with_captions(dataset: datasets.Dataset, source: str, caption_column: str) -> datasets.Dataset:
    label = dataset.features.get("label")
    if caption_column in dataset.column_names or not isinstance(label, datasets.ClassLabel):
        return dataset
    names = read_class_names(Path(source), Report())
    captions = [class_caption(names.get(name, name)) for name in label.names]
    logger.info("no captions in %s: sentences are made of class names, such as %r", source, captions[0])
    return dataset.add_column(caption_column, [captions[index] for index in dataset["label"]])
