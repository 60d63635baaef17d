"""Records become Parquet files with embedded images: one task per shard, several processes, resumable after a kill.
From a source folder to a finished corpus: read, shuffle, write shards, name them, manifest and card."""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import PIL
import pyarrow
import pyarrow.parquet
from tqdm import tqdm

from ...utils.errors import UserError
from ...utils.files import atomic_write, file_sha256
from ...version import __version__
from ..block_jpeg import SAVE_OPTIONS
from ..images import BadImage, decode, orientation, remarks, store, turn_box
from ..manifest import MANIFEST
from .importers import ORIGINS, READERS
from .publish import card_text
from .records import Corpus, Record, Report, SourceOptions, unique_records

ROW_GROUP = 100  # rows that a reader has to load at once


@dataclass(frozen=True)
class Storage:
    """How images are kept.

    Attributes:
        size: shorter side in pixels, or None for the original files.
        quality: of the JPEGs that a size needs.
        images_per_shard: images per Parquet file, before unusable ones are left out.
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
    """Write one shard, if any of its images is usable, and then its outcome, each as a whole. Returns the outcome.

    An image that cannot be used is left out and counted in the report.
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


ORDER_SEED = 0  # rows lie in a fixed random order, so that every shard is a fair sample of its split
_PLAN = "plan.json"


def prepare(
    kind: str,
    source: Path | None,
    out: Path,
    options: SourceOptions | None = None,
    storage: Storage | None = None,
    workers: int = 1,
    progress: bool | None = None,
) -> dict:
    """Write a corpus as Parquet shards, `manifest.json` and a dataset card into the new folder `out`.

    Shards grow in the hidden folder `.<out>.partial` beside `out`, which takes its name when everything is there; the
    same call after a kill goes on where it was. The same input gives the same bytes.

    Args:
        kind: one of `sources.KINDS`.
        source: folder with the raw data; None for synthetic birds.
        out: folder to make.
        options: choices of the source.
        storage: how images are kept.
        workers: processes that write.
        progress: show a bar; None shows it on a terminal only.

    Returns:
        The manifest.

    Raises:
        UserError: when `out` exists, or nothing in `source` can be used.
    """
    options, storage = options or SourceOptions(), storage or Storage()
    out = Path(os.path.abspath(out))
    if out.is_symlink() or os.path.ismount(out):
        raise UserError(f"--output_dir {out} is a link or a mount point: choose a folder inside it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--output_dir {out} exists already: choose another or remove it")
    corpus = READERS[kind](source, options)
    corpus.records = unique_records(corpus.records, corpus.report)
    working = out.with_name(f".{out.name}.partial")
    tasks = _plan(corpus, working, storage)
    _open_working_folder(working, _fingerprint(kind, corpus, storage))
    outcomes = _write(tasks, workers, kind, progress)
    for task in tasks:  # in their own order, whoever was finished first
        corpus.report.merge(outcomes[task.path]["report"])
    if not any(outcome["rows"] for outcome in outcomes.values()):
        shutil.rmtree(working)
        raise UserError(f"nothing usable in {source or kind}: {_main_reasons(corpus)}")
    manifest = {
        "kind": kind,
        "made_by": {"ratlip_hf": __version__, "pillow": PIL.__version__, "pyarrow": pyarrow.__version__},
        "storage": dataclasses.asdict(storage),
        "choices": corpus.choices,
        "splits_from": corpus.splits_from,
        "order_seed": ORDER_SEED,
        "splits": _name_shards(working, tasks, outcomes),
        "label_names": corpus.label_names,
        **corpus.report.to_dict(),
    }
    atomic_write(working / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    atomic_write(working / "README.md", card_text(manifest, ORIGINS[kind], corpus.features()))
    if out.exists():
        out.rmdir()
    os.rename(working, out)
    (out / _PLAN).unlink()
    return manifest


def _plan(corpus: Corpus, working: Path, storage: Storage) -> list[ShardTask]:
    features, tasks = corpus.features(), []
    for split in sorted({record.split for record in corpus.records}):
        records = sorted((r for r in corpus.records if r.split == split), key=lambda record: record.image_id)
        order = np.random.default_rng(ORDER_SEED).permutation(len(records))
        tasks += plan_shards(working, split, [records[index] for index in order], features, storage)
    return tasks


def _fingerprint(kind: str, corpus: Corpus, storage: Storage) -> str:
    """Of everything that decides the shards' bytes: only shards of the same plan may be kept after a kill."""
    digest = hashlib.sha256(repr((__version__, kind, storage, corpus.label_names, corpus.choices)).encode())
    for record in corpus.records:
        place = dataclasses.replace(record, image=record.image.fingerprint())
        digest.update(repr(place).encode())
    return digest.hexdigest()


def _open_working_folder(working: Path, fingerprint: str) -> None:
    """Make the folder, or keep what an interrupted run of the same plan left in it."""
    plan = working / _PLAN
    if plan.is_file() and json.loads(plan.read_text()) == fingerprint:
        return
    if working.exists():
        shutil.rmtree(working)
    working.mkdir(parents=True)
    atomic_write(plan, json.dumps(fingerprint))


def _write(tasks: list[ShardTask], workers: int, kind: str, progress: bool | None) -> dict[Path, dict]:
    outcomes = {}
    total = sum(len(task.records) for task in tasks)
    with tqdm(total=total, unit=" images", desc=kind, disable=None if progress is None else not progress) as bar:
        for task, outcome in run_tasks(tasks, workers):
            outcomes[task.path] = outcome
            bar.update(len(task.records))
    return outcomes


def _name_shards(working: Path, tasks: list[ShardTask], outcomes: dict[Path, dict]) -> dict[str, dict]:
    """Give the shards with rows the names that `datasets` expects; returns rows and files by split."""
    splits: dict[str, dict] = {}
    (working / "data").mkdir(exist_ok=True)
    for split in sorted({task.records[0].split for task in tasks}):
        mine = [task for task in tasks if task.records[0].split == split]
        written = [task for task in mine if outcomes[task.path]["rows"]]
        files = []
        for index, task in enumerate(written):
            name = f"data/{split}-{index:05d}-of-{len(written):05d}.parquet"
            rows, target = outcomes[task.path]["rows"], working / name
            if task.path.exists():  # else a run that was killed here has renamed it already
                os.rename(task.path, target)
            files.append({"path": name, "rows": rows, "bytes": target.stat().st_size, "sha256": file_sha256(target)})
        if files:
            splits[split] = {"rows": sum(file["rows"] for file in files), "files": files}
    for task in tasks:
        task.result_path.unlink()
    return splits


def _main_reasons(corpus: Corpus) -> str:
    entries = sorted(corpus.report.skipped.items(), key=lambda item: -item[1]["count"])[:3]
    return "; ".join(f"{entry['count']:,} x {reason}" for reason, entry in entries) or "it is empty"
