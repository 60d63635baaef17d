"""From a source folder to a finished corpus: read, shuffle, write shards, name them, manifest and card.
Owns the order of these steps, the working folder that makes them resumable, and `manifest.json`."""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import PIL
import pyarrow
from tqdm import tqdm

from ..utils.errors import UserError
from ..utils.files import atomic_write
from ..utils.fingerprints import file_sha256
from ..version import __version__
from .card import card_text
from .corpus import Corpus, SourceOptions, unique_records
from .manifest import MANIFEST
from .shards import ShardTask, Storage, plan_shards, run_tasks
from .sources import ORIGINS, READERS

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
        storage: how pictures are kept.
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
        raise UserError(f"--out {out} is a link or a mount point: choose a folder inside it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists already: choose another or remove it")
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
