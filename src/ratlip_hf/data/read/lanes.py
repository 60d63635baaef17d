"""Parquet shards, local or remote, a few row groups at a time: opened with retries, fetched ahead of need by threads,
and held within a limit. Which rows come when is decided in `rows`."""

import json
import os
import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
from fsspec.implementations.local import LocalFileSystem

from ...utils.display import as_size
from ...utils.errors import UserError, one_line
from ..manifest import MANIFEST

_AHEAD = 4  # windows of a reader that are on their way before they are needed
_COUNTERS = 16  # threads that read footers of remote shards
_WAITS = (1, 2, 4, 8)  # seconds between tries to read a remote shard


def with_shard(shard: str, use: Callable[[pyarrow.parquet.ParquetFile], object], footer=None):
    """What `use` makes of an open shard, whose footer need not be read again if it is given. A remote one is tried
    five times within 15 seconds. Raises UserError for one that is not there, or cannot be read."""
    files, path = fsspec.url_to_fs(shard)
    # Stores and their clients have exceptions of many kinds.
    expected = (pyarrow.ArrowException, OSError) if isinstance(files, LocalFileSystem) else Exception
    waits = [] if isinstance(files, LocalFileSystem) else list(_WAITS)
    while True:
        try:
            # Without a cache, which would fetch more than is asked for; with `pre_buffer` a group is one request.
            with (
                files.open(path, "rb", cache_type="none") as handle,
                pyarrow.parquet.ParquetFile(handle, metadata=footer, pre_buffer=True) as file,
            ):
                return use(file)
        except expected as error:
            if not waits or isinstance(error, FileNotFoundError | PermissionError):
                raise UserError(f"cannot read the shard {shard}: {one_line(error)}") from error
            time.sleep(waits.pop(0))


def counted_rows(shards: Sequence[str]) -> list[int]:
    """Numbers of rows by the footers, none of which is kept."""
    with ThreadPoolExecutor(_COUNTERS) as pool:
        return list(pool.map(lambda shard: with_shard(shard, lambda file: file.metadata.num_rows), shards))


def recorded_counts(shards: Sequence[str]) -> list[int] | None:
    """Numbers of rows by the manifest of a prepared dataset, which spares opening every shard; None without one that
    has them all. A shard of another number is refused when it is opened."""
    root = shards[0].rpartition("/data/")[0]
    try:
        with fsspec.open(f"{root}/{MANIFEST}", "rb") as file:
            splits = json.load(file)["splits"]
        rows = {f"{root}/{file['path']}": file["rows"] for split in splits.values() for file in split["files"]}
        counts = [rows[shard] for shard in shards]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return counts if all(type(count) is int and 0 <= count < 2**40 for count in counts) else None


@dataclass(frozen=True, eq=False)
class Window:
    """Consecutive visits of a lane, and the rows they show: row groups of a shard, as far as they are the lane's.
    `first` is the number, within the shard, of the table's first row; `order` has a row of the table per visit."""

    visits: range
    shard: int
    first: int
    order: np.ndarray
    table: pyarrow.Table
    footer: pyarrow.parquet.FileMetaData  # held for the windows that follow


class Windows:
    """What one reader, a process or a worker of its loader, holds of the lanes that it reads. `begin(visit)` gives
    what fetches the window of that visit, in a thread.

    Of each lane there is the window in use. In its first quarter the one before stays, because mismatched captions are
    looked for ahead and the reader comes back; after it the next one is fetched, a few lanes at a time, as long as all
    together stay within `limit` bytes. Raises UserError when the windows in use do not fit. A copy in another process,
    forked or sent, starts with nothing.
    """

    def __init__(self, begin: Callable[[int], Callable[[], Window]], lanes: int, limit: int):
        self.begin, self.lanes, self.limit = begin, lanes, limit
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(_AHEAD + 1)
        self._held: dict[int, dict[int, Future[Window]]] = {}  # by lane, then by first visit
        self._in_use: dict[int, int] = {}  # which of them, by lane
        self._shared = weakref.WeakValueDictionary()

    def __getstate__(self) -> tuple:
        return self.begin, self.lanes, self.limit

    def __setstate__(self, state: tuple) -> None:
        self.begin, self.lanes, self.limit = state
        self._forget()

    def release(self) -> None:
        """Hold nothing any more, and have no thread."""
        if self._process == os.getpid():
            self._pool.shutdown(cancel_futures=True)
        self._forget()

    def shared(self, kind: str, key: Hashable, read: Callable[[], object]):
        """What is read, or what another window of the reader already holds of it."""
        if (found := self._shared.get((kind, key))) is None:
            found = self._shared[kind, key] = read()
        return found

    def at(self, visit: int) -> tuple[Window, int]:
        """The window of a visit, and the row of its table."""
        if self._process != os.getpid():
            self._forget()
        lane = self._held.setdefault(visit % self.lanes, {})
        window = self._found(lane, visit) or self._fetched(lane, visit)
        self._in_use[visit % self.lanes] = window.visits.start
        position, following = window.visits.index(visit), window.visits[-1] + self.lanes
        if 4 * (position + 1) > len(window.visits):
            for first in lane.keys() - {window.visits.start, following}:
                del lane[first]
            if following not in lane and self._may_fetch_ahead(window):
                lane[following] = self._pool.submit(self.begin(following))
        return window, int(window.order[position])

    @staticmethod
    def _found(lane: dict[int, Future[Window]], visit: int) -> Window | None:
        begun = (lane[first].result() for first in sorted(lane, reverse=True) if first <= visit)
        return next((window for window in begun if visit in window.visits), None)

    def _fetched(self, lane: dict[int, Future[Window]], visit: int) -> Window:
        future = self._pool.submit(self.begin(visit))
        window = future.result()
        lane[window.visits.start] = future
        self._in_use[visit % self.lanes] = window.visits.start  # before others are dropped
        if self._bytes() > self.limit:
            for number, windows in self._held.items():
                for first in windows.keys() - {self._in_use[number]}:
                    del windows[first]
            if (needed := self._bytes()) > self.limit:
                raise UserError(
                    f"{len(self._held)} lanes of the data hold {as_size(needed)}, more than the "
                    f"{as_size(self.limit)} of stream_memory: raise it, or lower stream_window or data_lanes"
                )
        return window

    def _may_fetch_ahead(self, window: Window) -> bool:
        futures = [future for lane in self._held.values() for future in lane.values()]
        on_their_way = sum(not future.done() for future in futures)
        return on_their_way < _AHEAD and self._bytes() + (1 + on_their_way) * window.table.nbytes <= self.limit

    def _bytes(self) -> int:
        futures = (future for lane in self._held.values() for future in lane.values())
        done = (future.result() for future in futures if future.done() and not future.exception())
        return sum({id(window.table): window.table.nbytes for window in done}.values())
