"""From a source folder to a prepared dataset: read, shuffle, write shards in several processes, manifest and card.
One task per shard, resumable after a kill. The processes import this module, so nothing heavy is imported here."""

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import re
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
from ...utils.locks import locked
from ...version import __version__
from ..images import BadImage, box_remarks, decode, orientation, remarks, store, turn_box
from ..manifest import MANIFEST
from .importers import DEFAULT_NUM_IMAGES, load_importer
from .source_dataset import Record, Report, SourceDataset, SourceOptions
from .source_files import Folder, open_source

ROW_GROUP = 100  # rows that must be loaded at once to read one, or fewer that have more than so many bytes
_GROUP_BYTES = 2**26
_SHARD_BYTES = 2**29  # of the source's files: a shard is in memory as a whole when it is read
ORDER_SEED = 0  # rows lie in a fixed random order, so that every shard is a fair sample of its split
_PLAN = "plan.json"
_LEFT = re.compile(r"(data/)?\w+-\d+(-of-\d+)?\.(parquet|json|writing)|plan\.json|manifest\.json|README\.md|\.\S+")


class PreparationFailed(UserError):
    """A source that gave nothing; `found` is what the manifest would have said of it."""

    def __init__(self, text: str, found: dict):
        super().__init__(text)
        self.found = found


@dataclass(frozen=True)
class Storage:
    """How images are kept."""

    size: int | None = None  # shorter side in pixels, or None for the original files
    quality: int = 90  # of the JPEGs that a size needs
    crop: bool = False  # to what training crops to around the box of an object, where there is one
    images_per_shard: int = 1000  # before unusable ones are left out

    def __post_init__(self):
        if self.size is not None and not 16 <= self.size <= 4096:
            raise UserError(f"--store_size must be 'original' or a number from 16 to 4096, not {self.size}")
        if self.crop and self.size is None:
            raise UserError("--store_crop needs a --store_size: 76/64 of the size to be trained at")
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
        source: folder or archive (.tar, .tgz, .zip) with the raw data, or a folder of archives; None for synthetic
            birds. While it runs, what a .tgz holds lies decompressed in `.<name>.unpacked`.
        output_dir: folder to make.
        options: choices of the importer.
        storage: how images are kept.
        workers: processes that write.

    Returns:
        The manifest.

    Raises:
        UserError: when `output_dir` exists; PreparationFailed, when nothing in `source` can be used.
    """
    options, storage = options or SourceOptions(), storage or Storage()
    if options.num_images is None:
        options = dataclasses.replace(options, num_images=DEFAULT_NUM_IMAGES.get(kind))
    output_dir = Path(os.path.abspath(output_dir))
    working = output_dir.with_name(f".{output_dir.name}.partial")
    if source is not None and any(
        place in (p := Path(source).resolve(), *p.parents) for place in (working, output_dir)
    ):
        raise UserError(f"--source {source} lies in {output_dir} or in {working}, which is written: choose another")
    scratch = output_dir.with_name(f".{output_dir.name}.unpacked")
    with locked(output_dir):
        if not is_free(output_dir, UserError):
            raise UserError(f"--output_dir {output_dir} exists already: choose another or remove it")
        _clear_scratch(scratch)
        try:
            return _prepare(kind, source, output_dir, working, options, storage, workers, scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _clear_scratch(scratch: Path) -> None:
    """Remove what a killed run has left, and nothing else."""
    if os.path.lexists(scratch):
        if scratch.is_symlink() or not scratch.is_dir() or any(p.suffix != ".archive" for p in scratch.rglob("*.*")):
            raise UserError(
                f"{scratch} is in the way: no earlier preparation has left it; move it, or choose another name"
            )
        shutil.rmtree(scratch)


def _prepare(
    kind: str,
    source: Path | None,
    output_dir: Path,
    working: Path,
    options: SourceOptions,
    storage: Storage,
    workers: int,
    scratch: Path,
) -> dict:
    """[`prepare`] by the only process that writes `output_dir` and the folder `working` in which it grows."""
    from .publish import card_text  # needs `datasets`, which the processes that write do without

    read, origin = load_importer(kind)
    root = None if source is None else open_source(source, scratch=scratch, apart=kind == "webdataset")
    try:
        dataset = read(root, options)
    except UserError as error:
        if root is None:
            raise
        raise PreparationFailed(str(error), _found(root, root.report)) from error
    dataset.drop_repeated_names()
    features = dataset.features()
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
        reasons = _main_reasons(dataset.report)
        raise PreparationFailed(f"nothing usable in {source or kind}: {reasons}", _found(root, dataset.report))
    manifest = {
        "kind": kind,
        "made_by": {"ratlip_hf": __version__, "pillow": PIL.__version__, "pyarrow": pyarrow.__version__},
        "storage": dataclasses.asdict(storage),
        "choices": dataset.choices,
        "splits_from": dataset.splits_from,
        "order_seed": ORDER_SEED,
        "splits": _name_shards(working, tasks, outcomes),
        "label_names": dataset.label_names,
        **_found(root, dataset.report),
    }
    atomic_write(working / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    atomic_write(working / "README.md", card_text(manifest, origin, features))
    if output_dir.exists():
        output_dir.rmdir()
    os.rename(working, output_dir)
    (output_dir / _PLAN).unlink()
    return manifest


def _found(root: Folder | None, report: Report) -> dict:
    """What the manifest says of the source: left out, repaired, remarks, and which files were read and which not."""
    return {**report.to_dict(), "source_files": root.usage() if root else {"read": {}, "unread": {}}}


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
    tasks = []
    for split in sorted({record.split for record in dataset.records}):
        records = sorted((r for r in dataset.records if r.split == split), key=lambda record: record.image_id)
        order = np.random.default_rng(ORDER_SEED).permutation(len(records))
        shards = _cut([records[index] for index in order], storage.images_per_shard)
        for number, shard in enumerate(shards):
            tasks.append(ShardTask(working / f"{split}-{number:05d}.parquet", tuple(shard), schema, storage))
    return tasks


def _cut(records: list[Record], count: int) -> Iterator[list[Record]]:
    """Consecutive records, `count` at a time, or fewer where their files are large."""
    shard, size = [], 0
    for record in records:
        added = _size(record)
        if shard and (len(shard) == count or size + added > _SHARD_BYTES):
            yield shard
            shard, size = [], 0
        shard.append(record)
        size += added
    if shard:
        yield shard


def _size(record: Record) -> int:
    try:
        return record.image.stored_bytes()
    except OSError:  # said when it is read
        return 0


def _fingerprint(kind: str, dataset: SourceDataset, storage: Storage) -> str:
    """Of everything that decides the shards' bytes: only shards of the same plan may be kept after a kill."""
    digest = hashlib.sha256(repr((__version__, kind, storage, dataset.label_names, dataset.choices)).encode())
    for record in dataset.records:
        try:
            image = record.image.fingerprint()
        except OSError as error:  # said when it is read
            image = str(error)
        digest.update(repr(dataclasses.replace(record, image=image)).encode())
    return digest.hexdigest()


def _open_working_folder(working: Path, fingerprint: str) -> None:
    """Make the folder, or keep what an interrupted run of the same plan left in it."""
    plan = working / _PLAN
    if os.path.lexists(working):
        if not _is_ours(working):
            raise UserError(
                f"{working} is in the way: no earlier preparation has left it; move it, or choose another name"
            )
        with contextlib.suppress(OSError, ValueError):  # a plan that a kill or a disk has damaged
            if read_json(plan) == fingerprint:
                return
        shutil.rmtree(working)
    working.mkdir(parents=True)
    atomic_write(plan, json.dumps(fingerprint))


def _is_ours(working: Path) -> bool:
    """Whether a folder is what an interrupted run leaves: its plan, and nothing but what goes with it."""
    if working.is_symlink() or not working.is_dir():
        return False
    names = {
        path.relative_to(working).as_posix() for path in working.rglob("*") if path.is_symlink() or not path.is_dir()
    }
    return not names or (_PLAN in names and all(_LEFT.fullmatch(name) for name in names))


def _finish(tasks: list[ShardTask], workers: int) -> Iterator[tuple[ShardTask, dict]]:
    """Write the shards that are not there yet, here or in several processes; yields (task, {"rows", "report"})."""
    waiting = []
    for task in tasks:
        if (outcome := _known_outcome(task)) is not None:
            yield task, outcome
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


def _known_outcome(task: ShardTask) -> dict | None:
    """What an interrupted run has noted of a shard; None for one that is not there, or whose note is damaged."""
    try:
        outcome = read_json(task.outcome_path)
        Report().merge(outcome["report"])
        return outcome if outcome["rows"] >= 0 else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


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
    report, count = Report(), 0
    rows = (row for record in task.records if (row := _row(record, task, report)) is not None)
    temporary, writer = task.path.with_suffix(".writing"), None
    for group in _groups(rows):
        if writer is None:
            writer = pyarrow.parquet.ParquetWriter(temporary, task.schema)
        writer.write_table(pyarrow.Table.from_pylist(group, schema=task.schema), row_group_size=ROW_GROUP)
        count += len(group)
    if writer is not None:
        writer.close()
        os.replace(temporary, task.path)
    outcome = {"rows": count, "report": report.to_dict()}
    atomic_write(task.outcome_path, json.dumps(outcome))
    return outcome


def _groups(rows: Iterator[dict]) -> Iterator[list[dict]]:
    """Rows that are written, and later read, together."""
    group, size = [], 0
    for row in rows:
        added = len(row["image"]["bytes"])
        if group and (len(group) == ROW_GROUP or size + added > _GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(row)
        size += added
    if group:
        yield group


def _row(record: Record, task: ShardTask, report: Report) -> dict | None:
    try:
        content = record.image.read()
        image = decode(content)
        box, cropped = record.bbox, bool(record.bbox) and task.storage.crop
        upright = box and turn_box(box, image.size, orientation(image))
        stored = store(content, image, task.storage.size, task.storage.quality, upright if cropped else None)
    except BadImage as error:
        report.skip(str(error), record.image_id)
        return None
    except OSError as error:
        report.skip(f"image that cannot be read ({error.strerror})", record.image_id)
        return None
    for remark in [*remarks(image), *(box_remarks(box, image.size) if box else ())]:
        report.repair(remark, record.image_id)
    if stored.scale > 1:
        smaller = "part of an image, smaller" if cropped else "image smaller"
        report.repair(f"{smaller} than --store_size {task.storage.size}, enlarged", record.image_id)
    row = {
        "image": {"bytes": stored.content, "path": Path(record.image_id).name + stored.suffix},
        "captions": list(record.captions),
        "image_id": record.image_id,
        "label": record.label,
        "bbox": None if cropped or not upright else [value * stored.scale for value in upright],
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
