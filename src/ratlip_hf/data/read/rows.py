"""Rows, undecoded, in endless reproducible sequences: of a dataset in memory, of Parquet shards, of a mixture.
Then from the name of a dataset to such rows, and from a row to the pixels of a square."""

import contextlib
import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

import datasets
import numpy as np
import pyarrow.parquet

from ...utils.errors import UserError, one_line
from ...utils.files import read_bytes, read_text
from ..images import BadImage, open_image
from ..manifest import CLASS_NAMES, MANIFEST, class_caption, parse_class_names, require_recorded_shards
from .lanes import Window, Windows, counted_rows, recorded_counts, with_shard
from .transforms import ANTIALIASED, frame

logger = logging.getLogger(__name__)
_ORDER, _SHARDS, _WITHIN, _MIXTURE = 1, 3, 4, 5  # separate random streams; 2 is the samples' own
_BLOCK = 1000  # visits within which a mixture has exactly its weights
_HASHED_IMAGES = 64
_PIECE = 1000  # rows whose captions are read together


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read; `box` is used only where the data has it, None never."""

    image: str = "image"
    captions: str = "captions"
    box: str | None = "bbox"

    def present(self, available: Sequence[str]) -> list[str]:
        """The columns to read of those available. Raises UserError when image or captions are not among them."""
        for column in (self.image, self.captions):
            if column not in available:
                raise UserError(f"the data has no column {column!r}; there are {', '.join(available)}")
        return [self.image, self.captions, *([self.box] if self.box in available else [])]


@dataclass(frozen=True)
class Row:
    """One image, undecoded, with at least one caption; `box` is left, top, width, height in pixels or None.
    `place` is the row's number in the order of storage, within the dataset that `part` of a mixture numbers."""

    content: bytes
    captions: list[str]
    box: list[float] | None
    place: int
    part: int = 0


class Rows(Protocol):
    """What readers have in common. `len` is the number of rows; visits go on beyond it, epoch after epoch.

    Visits i, i + `lanes`, i + 2 `lanes` and so on are a lane: its rows lie together, and whoever takes visits of a few
    lanes only fetches no others.
    """

    lanes: int

    def __len__(self) -> int: ...

    def row(self, visit: int) -> Row:
        """The row of the global sample `visit`, counted from 0."""

    def captions(self, count: int) -> Iterator[list[str]]:
        """Captions of the first rows in the order of storage, read as they are asked for."""

    def release(self) -> None:
        """Let go of what is held in memory and of threads, for example before another process takes over."""


class MapRows:
    """Rows of a map-style dataset, each epoch in a random order of its own. One lane: any row is at hand for everyone,
    so that nothing would be gained by keeping rows together. Raises UserError for an empty dataset or missing
    columns."""

    lanes = 1

    def __init__(self, dataset: datasets.Dataset, columns: Columns, seed: int):
        names = columns.present(dataset.column_names)
        if not len(dataset):
            raise UserError("the dataset is empty")
        # Undecoded: images are decoded in one place, whichever reader they come from.
        self.dataset = dataset.select_columns(names).cast_column(columns.image, datasets.Image(decode=False))
        self.columns, self.seed = columns, seed
        self._order = Recent(self._permutation, 2)

    def __len__(self) -> int:
        return len(self.dataset)

    def row(self, visit: int) -> Row:
        epoch, position = divmod(visit, len(self))
        return self.stored(int(self._order(epoch)[position]))

    def stored(self, place: int) -> Row:
        """The row with this number in the order of storage."""
        return _to_row(self.dataset[place], self.columns, place)

    def captions(self, count: int) -> Iterator[list[str]]:
        column = self.dataset.select_columns(self.columns.captions)  # no images read
        for start in range(0, min(count, len(self)), _PIECE):
            piece = column[start : min(count, start + _PIECE)][self.columns.captions]
            yield from (_as_list(value, index) for index, value in enumerate(piece, start))

    def release(self) -> None:
        pass

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, _ORDER, epoch)).permutation(len(self))


class ShardRows:
    """Rows of Parquet files, given as paths or addresses (`hf://...`) in the order of storage, each fetched once per
    epoch by whoever owns its lane. Raises UserError for files that cannot be read, no rows, or missing columns.

    Visit i belongs to lane i mod `lanes`. Each epoch lines up the shards in random order, cuts the line into as many
    equal pieces as there are lanes (so that every row comes once and all lanes end together, however uneven or few
    the shards are) and deals them to the lanes at random. A lane reads its piece `window` row groups at a time and
    shuffles the rows of each. A row group that is cut is fetched by both lanes: at most `lanes` - 1 of them per epoch.
    All of it is arithmetic on the numbers of rows, so any visit is reached by reading one window. `memory` are the
    bytes that a reader may hold (see [`Windows`]).
    """

    def __init__(
        self, shards: list[str], columns: Columns, seed: int, lanes: int = 1, window: int = 1, memory: int = 4 * 2**30
    ):
        self.shards, self.columns, self.seed, self.lanes, self.window = shards, columns, seed, lanes, window
        self.counts = np.array(recorded_counts(shards) or counted_rows(shards), dtype=np.int64)
        self._names = columns.present(with_shard(shards[0], lambda file: file.schema_arrow.names))
        if not self.counts.sum():
            raise UserError("the dataset is empty")
        self._first_place = np.concatenate([[0], np.cumsum(self.counts)])
        self._epoch = Recent(self._plan_epoch, 4)
        self._windows = Windows(self._begin, lanes, memory)

    def __len__(self) -> int:
        return int(self._first_place[-1])

    def row(self, visit: int) -> Row:
        window, offset = self._windows.at(visit)
        values = window.table.slice(offset, 1).to_pylist()[0]
        return _to_row(values, self.columns, int(self._first_place[window.shard]) + window.first + offset)

    def captions(self, count: int) -> Iterator[list[str]]:
        for shard, first in zip(self.shards, self._first_place, strict=False):
            if first >= count:
                break
            column = with_shard(shard, lambda file: file.read([self.columns.captions])).column(0).to_pylist()
            values = islice(column, int(count - first))
            yield from (_as_list(value, index) for index, value in enumerate(values, int(first)))

    def release(self) -> None:
        self._windows.release()

    def _plan_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The order of the shards and where each ends in the line of all rows; where each lane's piece starts in it,
        and how long it is, by the position in the epoch of the lane's first visit."""
        rng = np.random.default_rng((self.seed, _SHARDS, epoch))
        order, dealt = rng.permutation(len(self.shards)), rng.permutation(self.lanes)
        lengths = (len(self) - np.arange(self.lanes) + self.lanes - 1) // self.lanes
        starts = np.empty_like(lengths)
        starts[dealt] = np.cumsum(lengths[dealt]) - lengths[dealt]
        return order, np.cumsum(self.counts[order]), starts, lengths

    def _begin(self, visit: int) -> Callable[[], Window]:
        """What fetches the window of a visit. Threads run it: whatever others may change is looked up here."""
        epoch, position = divmod(visit, len(self))
        order, ends, starts, lengths = self._epoch(epoch)
        index, piece = divmod(position, self.lanes)
        start, stop = int(starts[piece]), int(starts[piece] + lengths[piece])
        which = int(np.searchsorted(ends, start + index, side="right"))
        shard = int(order[which])
        count = int(self.counts[shard])
        before = int(ends[which]) - count  # rows of the line that lie before this shard
        rows = range(max(start - before, 0), min(stop - before, count))  # those of the shard in this piece
        return partial(self._fetch, epoch, visit, shard, rows, start + index - before)

    def _fetch(self, epoch: int, visit: int, shard: int, rows: range, row: int) -> Window:
        footer = self._windows.shared("footer", shard, partial(self._footer, shard))
        bounds = np.cumsum([0, *(footer.row_group(group).num_rows for group in range(footer.num_row_groups))])
        lowest, group = (np.searchsorted(bounds, [rows.start, row], side="right") - 1).tolist()
        group = group // self.window * self.window
        groups = range(max(group, lowest), min(group + self.window, int(np.searchsorted(bounds, rows.stop))))
        read = partial(with_shard, self.shards[shard], lambda file: file.read_row_groups(groups, self._names), footer)
        table = self._windows.shared("rows", (shard, groups), read)
        stored, first = int(bounds[groups.start]), max(int(bounds[groups.start]), rows.start)
        last = min(int(bounds[groups.stop]), rows.stop)
        order = np.random.default_rng((self.seed, _WITHIN, epoch, shard, first)).permutation(last - first)
        visits = range(visit - (row - first) * self.lanes, visit + (last - row) * self.lanes, self.lanes)
        return Window(visits, shard, stored, order + (first - stored), table, footer)

    def _footer(self, shard: int) -> pyarrow.parquet.FileMetaData:
        footer = with_shard(self.shards[shard], lambda file: file.metadata)
        if footer.num_rows != self.counts[shard]:
            raise UserError(
                f"{self.shards[shard]} has {footer.num_rows} rows, not {self.counts[shard]} as {MANIFEST} says: "
                "it was changed after ratlip data prepare"
            )
        return footer


class MixedRows:
    """Rows of several readers in proportion to positive weights, each reader going through its own epochs.

    In every block of 1,000 visits of a lane the shares are exact to a thousandth and their order is random; a lane of
    the mixture takes each streamed part's rows from the lane of the same number. Raises UserError for weights that are
    not positive, or a share below a thousandth.
    """

    def __init__(self, parts: list[Rows], weights: list[float], seed: int):
        if len(parts) != len(weights) or not parts or min(weights) <= 0:
            raise UserError(f"a mixture needs one positive weight per dataset, not {weights}")
        self.parts, self.seed = parts, seed
        self.lanes = max(part.lanes for part in parts)  # streamed ones have equally many, those in memory one
        self._quotas = _quotas(weights)
        if not self._quotas.min():
            raise UserError(f"a weight is below a thousandth of the sum: {weights}")
        self._block = Recent(self._plan_block, 2 * self.lanes)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def row(self, visit: int) -> Row:
        part, local = self._locate(visit)
        row = self.parts[part].row(local)
        return replace(row, part=part)

    def captions(self, count: int) -> Iterator[list[str]]:
        """Captions of the first visits, one block at most: in the proportions of the mixture, not in storage order."""
        visits = [self._locate(visit) for visit in range(min(count, _BLOCK))]
        firsts = [list(part.captions(count)) for part in self.parts]
        yield from (firsts[part][local % len(firsts[part])] for part, local in visits)

    def release(self) -> None:
        for part in self.parts:
            part.release()

    def _locate(self, visit: int) -> tuple[int, int]:
        """Which part a visit belongs to, and the number of that visit within the part, from 0."""
        turn, lane = divmod(visit, self.lanes)
        block, position = divmod(turn, _BLOCK)
        parts, earlier = self._block(block * self.lanes + lane)
        part = int(parts[position])
        return part, (block * int(self._quotas[part]) + int(earlier[position])) * self.lanes + lane

    def _plan_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        parts = np.repeat(np.arange(len(self.parts)), self._quotas)
        parts = np.random.default_rng((self.seed, _MIXTURE, block)).permutation(parts)
        earlier = np.empty_like(parts)
        for part in range(len(self.parts)):
            earlier[parts == part] = np.arange(self._quotas[part])
        return parts, earlier


def _quotas(weights: list[float]) -> np.ndarray:
    """Whole shares of a block: rounded down, then the largest remainders up."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * _BLOCK
    quotas = np.floor(exact).astype(np.int64)
    quotas[np.argsort(quotas - exact, kind="stable")[: _BLOCK - quotas.sum()]] += 1
    return quotas


class Recent:
    """Calls `function` and keeps its last `size` results; a copy in another process starts with none."""

    def __init__(self, function: Callable, size: int):
        self.function, self.size = function, size
        self.results: OrderedDict[tuple, object] = OrderedDict()

    def __call__(self, *key):
        if key not in self.results:
            self.results[key] = self.function(*key)
        self.results.move_to_end(key)
        while len(self.results) > self.size:
            self.results.popitem(last=False)
        return self.results[key]

    def __getstate__(self) -> dict:
        return {**vars(self), "results": OrderedDict()}


def rows_sha256(rows: Rows) -> str:
    """Hash by which a run knows its data again: numbers of rows, captions (of shards, which would have to be read
    whole, the first thousand) and some images spread over everything."""
    digest = hashlib.sha256()
    for part in rows.parts if isinstance(rows, MixedRows) else [rows]:
        digest.update(json.dumps(part.counts.tolist() if isinstance(part, ShardRows) else len(part)).encode())
        for captions in part.captions(_PIECE if isinstance(part, ShardRows) else len(part)):
            digest.update(json.dumps(captions).encode())
        for place in range(0, len(part), -(-len(part) // _HASHED_IMAGES)) if isinstance(part, MapRows) else ():
            digest.update(part.stored(place).content)
    return digest.hexdigest()


def _to_row(values: dict, columns: Columns, place: int) -> Row:
    image = values[columns.image]
    if isinstance(image, dict):
        image = image["bytes"] if image.get("bytes") is not None else _read(image["path"], place)
    if not isinstance(image, bytes):
        raise UserError(f"row {place} of the column {columns.image!r} holds no image")
    return Row(image, _as_list(values[columns.captions], place), values.get(columns.box), place)


def _read(path: str, place: int) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:  # a worker process could not send it on in one line
        raise UserError(f"cannot read the image of row {place}, {path}: {error.strerror}") from error


def _as_list(captions: str | list[str] | None, place: int) -> list[str]:
    captions = [captions] if isinstance(captions, str) else captions
    if not captions or not all(isinstance(caption, str) for caption in captions):
        raise UserError(f"row {place} has no captions")
    if not all(caption.strip() for caption in captions):
        raise UserError(f"row {place} has an empty caption: remove it from the data (ratlip data prepare does)")
    return captions


# From the name of a dataset to rows


def load_captioned(
    source: str, split: str, caption_column: str = "captions", limit: int | None = None
) -> datasets.Dataset:
    """One split of a dataset, the first `limit` rows of it; without captions, names of classes make them. Raises
    UserError when nothing loadable has that name, or it has no such split."""
    if (Path(source) / MANIFEST).is_file():  # `datasets` finds its cache without looking at the shards
        require_recorded_shards(Path(source), [split])
    try:
        dataset = datasets.load_dataset(str(source), split=split)
    except Exception as error:  # datasets raises many kinds; each means that the name or folder is wrong
        raise unreadable(source, error) from error
    if limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    return _with_captions(dataset, source, caption_column)


def unreadable(source: str, error: Exception) -> UserError:
    """The error for data that cannot be loaded."""
    return UserError(f"cannot load the data {str(source)!r}: {one_line(error)}")


def _with_captions(dataset: datasets.Dataset, source: str, caption_column: str) -> datasets.Dataset:
    label = dataset.features.get("label")
    if caption_column in dataset.column_names or not isinstance(label, datasets.ClassLabel):
        return dataset
    try:
        names = parse_class_names(read_text(Path(source) / CLASS_NAMES))
    except (OSError, ValueError):
        names = {}
    classes = [names.get(name, name) for name in label.names]
    if numbers := [name for name in classes if name.strip().isdigit()]:
        told = "the classes of %s have numbers, such as %s, for names, and make no captions: name them in %s"
        logger.warning(told, source, numbers[0], CLASS_NAMES)
        return dataset
    captions = list(map(class_caption, classes))
    logger.info("no captions in %s: they are made of class names, such as %r", source, captions[0])
    return dataset.add_column(caption_column, [captions[index] for index in dataset["label"]])


def find_shards(source: str, split: str = "train") -> list[str]:
    """Parquet files of a split of a folder or a dataset on the Hub, by `datasets`' own rules. Raises UserError when
    there is no such split or it is not of Parquet files; `datasets` raises its own errors for unknown names."""
    builder = datasets.load_dataset_builder(source)
    if "parquet" not in type(builder).__module__:
        raise UserError(f"{source} does not consist of Parquet files: see ratlip data prepare, or do not stream")
    files = (builder.config.data_files or {}).get(split)
    if not files:
        raise UserError(f"{source} has no split {split!r}")
    return [str(file) for file in files]


# From a row to pixels


def row_pixels(
    row: Row, size: int, variant: str = ANTIALIASED, rng: np.random.Generator | None = None, mirror: bool = False
) -> np.ndarray:
    """Pixels [size, size, 3] uint8 of a row's image, cut out by [`frame`]; a UserError says where a damaged one is."""
    with naming_damage(row):
        return frame(open_image(row.content), size, row.box, variant, rng, mirror)


@contextlib.contextmanager
def naming_damage(row: Row) -> Iterator[None]:
    """Turn a BadImage within the block into a UserError that says which row it is."""
    try:
        yield
    except BadImage as error:
        raise UserError(f"row {row.place} of the data: {error} (see ratlip data prepare)") from error
