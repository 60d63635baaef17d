"""From a source folder to a prepared dataset: read, shuffle, write shards in several processes, manifest and card.
One task per shard, resumable after a kill. The processes import this module, so nothing heavy is imported here."""

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

import numpy as np
import PIL
import pyarrow
import pyarrow.parquet
from tqdm import tqdm

from ...utils.errors import UserError
from ...utils.files import atomic_write, file_sha256, is_free, read_json
from ...version import __version__
from ..images import BadImage, decode, orientation, remarks, store, turn_box
from ..manifest import MANIFEST
from .importers import DEFAULT_NUM_IMAGES, load_importer
from .source_dataset import Record, Report, SourceDataset, SourceOptions

ROW_GROUP = 100  # rows that must be loaded at once to read one
ORDER_SEED = 0  # rows lie in a fixed random order, so that every shard is a fair sample of its split
_PLAN = "plan.json"


@dataclass(frozen=True)
class Storage:
    """How images are kept."""

    size: int | None = None  # shorter side in pixels, or None for the original files
    quality: int = 90  # of the JPEGs that a size needs
    images_per_shard: int = 1000  # before unusable ones are left out

    def __post_init__(self):
        if self.size is not None and not 16 <= self.size <= 4096:
            raise UserError(f"--store_size must be 'original' or a number from 16 to 4096, not {self.size}")
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality must lie in 1..100, not {self.quality}")
        if self.images_per_shard < 1:
            raise UserError(f"--images_per_shard must be at least 1, not {self.images_per_shard}")


def prepare(
    kind: str,
    source: Path | None,
    output_dir: Path,
    options: SourceOptions | None = None,
    storage: Storage | None = None,
    workers: int = 1,
) -> dict:
    """Write a dataset as Parquet shards, `manifest.json` and a dataset card into the new folder `output_dir`.

    Shards grow in the hidden folder `.<name>.partial` next to it, which takes its name when everything is there; the
    same call after a kill goes on where it was. The same input gives the same bytes.

    Args:
        kind: one of `importers.KINDS`.
        source: folder with the raw data; None for synthetic birds.
        output_dir: folder to make.
        options: choices of the importer.
        storage: how images are kept.
        workers: processes that write.

    Returns:
        The manifest.

    Raises:
        UserError: when `output_dir` exists, or nothing in `source` can be used.
    """
    from .publish import card_text  # needs `datasets`, which the processes that write do without

    options, storage = options or SourceOptions(), storage or Storage()
    if options.num_images is None:
        options = dataclasses.replace(options, num_images=DEFAULT_NUM_IMAGES.get(kind))
    output_dir = Path(os.path.abspath(output_dir))
    if not is_free(output_dir, UserError):
        raise UserError(f"--output_dir {output_dir} exists already: choose another or remove it")
    read, origin = load_importer(kind)
    dataset = read(source, options)
    dataset.drop_repeated_names()
    features, working = dataset.features(), output_dir.with_name(f".{output_dir.name}.partial")
    tasks = _plan(dataset, features.arrow_schema, working, storage)
    _open_working_folder(working, _fingerprint(kind, dataset, storage))
    outcomes = {}
    with tqdm(total=len(dataset.records), unit=" images", desc=kind, disable=None) as bar:  # on a terminal only
        for task, outcome in _finish(tasks, workers):
            outcomes[task.path] = outcome
            bar.update(len(task.records))
    for task in tasks:  # in their own order, whichever was finished first
        dataset.report.merge(outcomes[task.path]["report"])
    if not any(outcome["rows"] for outcome in outcomes.values()):
        shutil.rmtree(working)
        raise UserError(f"nothing usable in {source or kind}: {_main_reasons(dataset.report)}")
    manifest = {
        "kind": kind,
        "made_by": {"ratlip_hf": __version__, "pillow": PIL.__version__, "pyarrow": pyarrow.__version__},
        "storage": dataclasses.asdict(storage),
        "choices": dataset.choices,
        "splits_from": dataset.splits_from,
        "order_seed": ORDER_SEED,
        "splits": _name_shards(working, tasks, outcomes),
        "label_names": dataset.label_names,
        **dataset.report.to_dict(),
    }
    atomic_write(working / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    atomic_write(working / "README.md", card_text(manifest, origin, features))
    if output_dir.exists():
        output_dir.rmdir()
    os.rename(working, output_dir)
    (output_dir / _PLAN).unlink()
    return manifest


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: its place and all that its bytes depend on."""

    path: Path
    records: tuple[Record, ...]
    schema: pyarrow.Schema
    storage: Storage

    @property
    def outcome_path(self) -> Path:
        """Where the outcome is noted; it exists only when the shard is complete."""
        return self.path.with_suffix(".json")


def _plan(dataset: SourceDataset, schema: pyarrow.Schema, working: Path, storage: Storage) -> list[ShardTask]:
    """Shuffle each split and cut it into tasks, in order."""
    tasks, size = [], storage.images_per_shard
    for split in sorted({record.split for record in dataset.records}):
        records = sorted((r for r in dataset.records if r.split == split), key=lambda record: record.image_id)
        order = np.random.default_rng(ORDER_SEED).permutation(len(records))
        for number, start in enumerate(range(0, len(records), size)):
            shard = tuple(records[index] for index in order[start : start + size])
            tasks.append(ShardTask(working / f"{split}-{number:05d}.parquet", shard, schema, storage))
    return tasks


def _fingerprint(kind: str, dataset: SourceDataset, storage: Storage) -> str:
    """Of everything that decides the shards' bytes: only shards of the same plan may be kept after a kill."""
    digest = hashlib.sha256(repr((__version__, kind, storage, dataset.label_names, dataset.choices)).encode())
    for record in dataset.records:
        digest.update(repr(dataclasses.replace(record, image=record.image.fingerprint())).encode())
    return digest.hexdigest()


def _open_working_folder(working: Path, fingerprint: str) -> None:
    """Make the folder, or keep what an interrupted run of the same plan left in it."""
    plan = working / _PLAN
    if plan.is_file() and read_json(plan) == fingerprint:
        return
    if working.exists():
        shutil.rmtree(working)
    working.mkdir(parents=True)
    atomic_write(plan, json.dumps(fingerprint))


def _finish(tasks: list[ShardTask], workers: int) -> Iterator[tuple[ShardTask, dict]]:
    """Write the shards that are not there yet, here or in several processes; yields (task, {"rows", "report"})."""
    waiting = []
    for task in tasks:
        if task.outcome_path.is_file():
            yield task, read_json(task.outcome_path)
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
    context.set_forkserver_preload([__name__])  # imported once for all of them
    return context


def write_shard(task: ShardTask) -> dict:
    """Write one shard, if any of its images is usable, and then its outcome, each as a whole. Returns the outcome, in
    whose report images that cannot be used are counted."""
    report = Report()
    rows = [row for record in task.records if (row := _row(record, task, report)) is not None]
    if rows:
        table = pyarrow.Table.from_pylist(rows, schema=task.schema)
        temporary = task.path.with_suffix(".writing")
        pyarrow.parquet.write_table(table, temporary, row_group_size=ROW_GROUP)
        os.replace(temporary, task.path)
    outcome = {"rows": len(rows), "report": report.to_dict()}
    atomic_write(task.outcome_path, json.dumps(outcome))
    return outcome


def _row(record: Record, task: ShardTask, report: Report) -> dict | None:
    try:
        content = record.image.read()
        image = decode(content)
        stored = store(content, image, task.storage.size, task.storage.quality)
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
    return {name: row[name] for name in task.schema.names}


def _name_shards(working: Path, tasks: list[ShardTask], outcomes: dict[Path, dict]) -> dict[str, dict]:
    """Give the shards with rows the names that `datasets` expects; returns rows and files by split."""
    splits: dict[str, dict] = {}
    (working / "data").mkdir(exist_ok=True)
    for split in sorted({task.records[0].split for task in tasks}):
        written = [task for task in tasks if task.records[0].split == split and outcomes[task.path]["rows"]]
        files = []
        for number, task in enumerate(written):
            name = f"data/{split}-{number:05d}-of-{len(written):05d}.parquet"
            rows, target = outcomes[task.path]["rows"], working / name
            if task.path.exists():  # else a run that was killed here has renamed it already
                os.rename(task.path, target)
            files.append({"path": name, "rows": rows, "bytes": target.stat().st_size, "sha256": file_sha256(target)})
        if files:
            splits[split] = {"rows": sum(file["rows"] for file in files), "files": files}
    for task in tasks:
        task.outcome_path.unlink()
    return splits


def _main_reasons(report: Report) -> str:
    entries = sorted(report.skipped.items(), key=lambda item: -item[1]["count"])[:3]
    return "; ".join(f"{entry['count']:,} x {reason}" for reason, entry in entries) or "it is empty"
