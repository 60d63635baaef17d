"""Records become Parquet files with embedded pictures: one task per shard, several processes, resumable after a kill.
Owns a shard's bytes, which depend on its records and the storage alone, never on who writes it or when."""

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet

from ..utils.errors import UserError
from ..utils.files import atomic_write
from .block_jpeg import SAVE_OPTIONS
from .corpus import Record, Report
from .images import BadImage, decode, orientation, remarks, store, turn_box

ROW_GROUP = 100  # rows that a reader has to load at once


@dataclass(frozen=True)
class Storage:
    """How pictures are kept.

    Attributes:
        size: shorter side in pixels, or None for the original files.
        quality: of the JPEGs that a size needs.
        images_per_shard: pictures per Parquet file, before unusable ones are left out.
    """

    size: int | None = None
    quality: int = 90
    images_per_shard: int = 1000

    def __post_init__(self):
        if self.size is not None and not 16 <= self.size <= 4096:
            raise UserError(f"--store_size must be 'original' or a number from 16 to 4096, not {self.size}")
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality must lie in 1..100, not {self.quality}")
        if self.images_per_shard < 1:
            raise UserError(f"--images_per_shard must be at least 1, not {self.images_per_shard}")


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: its place and all that its bytes depend on."""

    path: Path
    records: tuple[Record, ...]
    features: datasets.Features
    storage: Storage

    @property
    def result_path(self) -> Path:
        """Where the outcome is noted; it exists only when the shard is complete."""
        return self.path.with_suffix(".json")


def plan_shards(folder: Path, split: str, records: list[Record], features, storage: Storage) -> list[ShardTask]:
    """Cut a split into tasks, in order."""
    size = storage.images_per_shard
    return [
        ShardTask(folder / f"{split}-{index:05d}.parquet", tuple(records[start : start + size]), features, storage)
        for index, start in enumerate(range(0, len(records), size))
    ]


def run_tasks(tasks: list[ShardTask], workers: int) -> Iterator[tuple[ShardTask, dict]]:
    """Write all shards that are not there yet; yields each task with its outcome {"rows", "report"}.

    Args:
        tasks: from `plan_shards`.
        workers: processes; 1 works in this one.
    """
    waiting = []
    for task in tasks:
        if task.result_path.is_file():
            yield task, json.loads(task.result_path.read_text())
        else:
            waiting.append(task)
    if workers == 1 or len(waiting) < 2:
        for task in waiting:
            yield task, write_shard(task)
        return
    with ProcessPoolExecutor(min(workers, len(waiting)), mp_context=_clean_context()) as pool:
        futures = {pool.submit(write_shard, task): task for task in waiting}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a process that writes shards was killed, perhaps for lack of memory: the same command with fewer "
                "--workers goes on from here"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _clean_context() -> multiprocessing.context.BaseContext:
    """Processes that inherit none of the locks and threads of this one's libraries."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports take seconds: once for all of them
    return context


def write_shard(task: ShardTask) -> dict:
    """Write one shard, if any of its pictures is usable, and then its outcome, each as a whole. Returns the outcome.

    A picture that cannot be used is left out and counted in the report.
    """
    report = Report()
    rows = [row for record in task.records if (row := _row(record, task, report)) is not None]
    if rows:
        table = pyarrow.Table.from_pylist(rows, schema=task.features.arrow_schema)
        temporary = task.path.with_suffix(".writing")
        pyarrow.parquet.write_table(table, temporary, row_group_size=ROW_GROUP)
        os.replace(temporary, task.path)
    outcome = {"rows": len(rows), "report": report.to_dict()}
    atomic_write(task.result_path, json.dumps(outcome))
    return outcome


def _row(record: Record, task: ShardTask, report: Report) -> dict | None:
    try:
        content = record.image.read()
        image = decode(content)
        stored = store(content, image, task.storage.size, {"quality": task.storage.quality, **SAVE_OPTIONS})
    except BadImage as error:
        report.skip(str(error), record.image_id)
        return None
    except OSError as error:
        report.skip(f"image that cannot be read ({error.strerror})", record.image_id)
        return None
    for remark in remarks(image):
        report.repair(remark, record.image_id)
    box = record.bbox
    row = {
        "image": {"bytes": stored.content, "path": Path(record.image_id).name + stored.suffix},
        "captions": list(record.captions),
        "image_id": record.image_id,
        "label": record.label,
        "bbox": box and [value * stored.scale for value in turn_box(box, image.size, orientation(image))],
    }
    return {name: row[name] for name in task.features}
