"""What processes and workers fetch of a streamed corpus, and hold: the reader's own arithmetic and prefetching, with
shards that are not there. `python benchmarks/lanes.py --out docs/records/lanes.jsonl` makes the record behind the
table of docs/scaling.md (five minutes of a core); nothing is read, so that the numbers are the same everywhere."""

import argparse
import heapq
import json
import math
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

from ratlip_hf.data.read import rows as reading
from ratlip_hf.data.read.rows import Columns, ShardRows

IMAGE = 35_600  # bytes, as photographs of 304 pixels have (docs/scaling.md)
GROUP = 100  # rows, as `ratlip data prepare` writes them
FOOTER = 2**16  # bytes that pyarrow fetches to find one


@dataclass(frozen=True)
class Case:
    """A corpus, in shards of 1,000 rows or of 100 to 1,900, and those who read it."""

    name: str
    shards: int
    processes: int
    workers: int
    lanes: int
    uneven: bool = False

    def counts(self) -> list[int]:
        sizes = np.random.default_rng(0).integers(100, 1901, self.shards) if self.uneven else [1000] * self.shards
        return [int(size) for size in sizes]


CASES = (
    Case("one process", 10_000, 1, 1, 48),
    Case("a machine of eight GPUs", 10_000, 8, 1, 48),
    Case("64 processes", 10_000, 64, 1, 64),
    Case("64 processes with workers", 10_000, 64, 4, 256),
    Case("64 processes, uneven shards", 10_000, 64, 1, 64, uneven=True),
    Case("more processes than shards", 9, 16, 1, 48),
    Case("5 processes, which do not divide 48 lanes", 1_000, 5, 1, 48),
)


class Rows:
    """Stands for a table: its size, and from where it is."""

    def __init__(self, nbytes: int):
        self.nbytes = nbytes


class Shard:
    """A shard without content, open; the footer of itself. Notes what is fetched of it."""

    def __init__(self, count: int, fetched: list[tuple[int, int]], number: int):
        self.num_rows, self.fetched, self.number = count, fetched, number
        self.num_row_groups = -(-count // GROUP)

    @property
    def metadata(self) -> "Shard":
        self.fetched.append((self.number, FOOTER))
        return self

    def row_group(self, index: int) -> "Shard":
        return Shard(min(GROUP, self.num_rows - index * GROUP), [], self.number)

    def read_row_groups(self, groups: range, _) -> Rows:
        size = IMAGE * sum(self.row_group(group).num_rows for group in groups)
        self.fetched.append((self.number, size))
        return Rows(size)


def read_epoch(rows: ShardRows, rank: int, world: int, lanes: list[int]) -> tuple[int, int]:
    """Visit the first epoch as one reader does, at those samples where something is fetched or dropped. Returns the
    samples that are its own, and the most bytes that it held."""
    period, total, most, samples = math.lcm(rows.lanes, world), len(rows), 0, 0

    def own(visit: int) -> int:
        """The first of the reader's samples in the lane of `visit` from there on."""
        return next(each for each in range(visit, visit + period + 1, rows.lanes) if each % world == rank)

    rows._windows._may_fetch_ahead = lambda window: window.visits[-1] + rows.lanes < total  # nothing of the next epoch
    waiting = [own(lane) for lane in lanes if any(each % world == rank for each in range(lane, period, rows.lanes))]
    heapq.heapify(waiting)
    while waiting and (visit := heapq.heappop(waiting)) < total:
        window, _ = rows._windows.at(visit)
        for future in rows._windows._held[visit % rows.lanes].values():
            future.result()  # as if the network were fast
        most = max(most, rows._windows._bytes())
        quarter, end = window.visits[len(window.visits) // 4], window.visits[-1]
        if visit < quarter and own(quarter) <= end:
            heapq.heappush(waiting, own(quarter))
        else:
            heapq.heappush(waiting, own(end + rows.lanes))
        if visit == own(window.visits[0]):
            samples += len(range(visit, end + 1, period))
    return samples, most


def simulate(case: Case) -> dict:
    """One epoch of all readers, one after the other."""
    counts = case.counts()
    fetched: list[tuple[int, int]] = []

    def with_shard(shard: str, use, footer=None):
        return use(Shard(counts[int(shard)], fetched, int(shard)))

    fakes = {"with_shard": with_shard, "recorded_counts": lambda shards: counts}
    readers, opened = [], np.zeros(case.shards, dtype=int)
    with mock.patch.multiple(reading, **fakes), mock.patch.object(Columns, "present", lambda *_: ["image"]):
        shards = [str(number) for number in range(case.shards)]
        Shard.schema_arrow = mock.Mock()
        for rank in range(case.processes):
            for worker in range(case.workers):
                rows = ShardRows(shards, Columns(), 0, case.lanes)
                fetched.clear()
                own = [each for each in range(case.lanes) if each // case.processes % case.workers == worker]
                own = [each for each in own if case.lanes % case.processes or each % case.processes == rank]
                samples, held = read_epoch(rows, rank, case.processes, own)
                rows.release()
                opened[list({number for number, _ in fetched})] += 1
                size = sum(size for _, size in fetched)
                readers.append({"samples": samples, "requests": len(fetched), "bytes": size, "held": held})
    return summary(case, counts, readers, opened)


def summary(case: Case, counts: list[int], readers: list[dict], opened: np.ndarray) -> dict:
    columns = {name: np.array([reader[name] for reader in readers]) for name in readers[0]}
    busy = columns["samples"] > 0
    assert columns["samples"].sum() == sum(counts), "every row is somebody's, once"
    return {
        "case": vars(case) | {"images": sum(counts), "bytes": sum(counts) * IMAGE},
        "requests": int(columns["requests"].sum()),
        "bytes": int(columns["bytes"].sum()),
        "idle_readers": int((~busy).sum()),
        "most_samples": float(columns["samples"].max() / columns["samples"].mean()),
        "most_bytes": float(columns["bytes"].max() / columns["bytes"].mean()),
        "held": int(columns["held"].max()),
        "shards_of_several": int((opened > 1).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the record, one line per case; replaced")
    parser.add_argument("--cases", type=int, nargs="*", help="numbers of some cases, from 0")
    options = parser.parse_args()
    cases = CASES if options.cases is None else [CASES[number] for number in options.cases]
    lines = []
    for case in cases:
        lines.append(json.dumps(simulate(case)))
        print(lines[-1], flush=True)
    options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
