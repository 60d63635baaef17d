"""How fast training images come from shards and from original JPEGs, and what streaming and large datasets take.
The measurements of docs/data.md and docs/scaling.md: `python benchmarks/data_loading.py speed|profile|memory|scale`"""

import argparse
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import torch

from ratlip_hf.data.images import open_image
from ratlip_hf.data.prepare.importers import birds
from ratlip_hf.data.prepare.shards import ROW_GROUP, Storage, prepare
from ratlip_hf.data.prepare.source_dataset import SourceOptions
from ratlip_hf.data.prepare.source_files import open_source
from ratlip_hf.data.read.rows import Columns, MapRows, Row, ShardRows, find_shards
from ratlip_hf.data.read.transforms import ANTIALIASED, RELEASED, frame
from ratlip_hf.training.config import TrainingConfig
from ratlip_hf.training.samples import load_training_data

SIZE = 224  # side of the training images
STORED = 266  # what they are cropped from: 76/64 of it
GPU_RATE = 500  # images per second that a GPU is taken to consume
_MEMORY_MARKS = 10
_FULL = 1000  # rows of a full shard


def original_rows(source: Path) -> Iterator[Row]:
    """The photographs of the training split as they were downloaded, in random order, without end."""
    records = [
        record for record in birds.read(open_source(source), SourceOptions()).records if record.split == "train"
    ]
    rng = np.random.default_rng(0)
    while True:
        for index in rng.permutation(len(records)):
            record = records[index]
            yield Row(record.image.read(), list(record.captions), list(record.bbox), int(index))


def shard_rows(folder: Path) -> Iterator[Row]:
    """The same from prepared shards."""
    rows = ShardRows(find_shards(str(folder)), Columns(), seed=0)
    return map(rows.row, count())


def rate(rows: Iterator[Row], images: int, variant: str) -> float:
    """Images per second of processor time: read, decode, crop to the bird, scale, crop at random, mirror."""
    rng = np.random.default_rng(0)
    next(rows)  # opens and indexes
    started = time.process_time()
    for row in islice(rows, images):
        frame(open_image(row.content), SIZE, row.box, variant, rng, mirror=bool(rng.integers(2)))
    return images / (time.process_time() - started)


def measure_speed(options: argparse.Namespace) -> None:
    """Alternate the loaders, so that whatever else the machine does falls on all of them."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        whole, cropped = Path(temporary) / "whole", Path(temporary) / "cropped"
        prepare("birds", options.source, whole, storage=Storage(size=options.store_size))
        prepare("birds", options.source, cropped, storage=Storage(size=STORED, crop=True))
        loaders: dict[str, tuple[Callable[[], Iterator[Row]], str]] = {
            "original JPEGs, released transform (Pillow alone)": (lambda: original_rows(options.source), RELEASED),
            "original JPEGs": (lambda: original_rows(options.source), ANTIALIASED),
            f"{options.store_size}-px shards": (lambda: shard_rows(whole), ANTIALIASED),
            f"{STORED}-px shards, cropped": (lambda: shard_rows(cropped), ANTIALIASED),
        }
        rates = {name: [] for name in loaders}
        for _ in range(options.rounds):
            for name, (rows, variant) in loaders.items():
                rates[name].append(rate(rows(), options.images, variant))
    middle = {name: float(np.median(values)) for name, values in rates.items()}
    released, *_ = middle.values()
    for name, value in middle.items():
        cores = f"{GPU_RATE / value:.1f} cores for {GPU_RATE}/s"
        print(f"{name}: {value:.0f} images/s per core, {cores}; {value / released:.2f}x the first")


def measure_profile(options: argparse.Namespace) -> None:
    """Processor time of each stage from a prepared shard to a training image; the stages take turns."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "prepared"
        size = STORED if options.store_crop else options.store_size
        prepare("birds", options.source, folder, storage=Storage(size=size, crop=options.store_crop))
        rows, rng = shard_rows(folder), np.random.default_rng(0)
        next(rows)
        spent = {"row of a shard": [], "JPEG to pixels": [], "crop, scale, mirror": []}
        for _ in range(options.images):
            stages = []
            started = time.process_time()
            row = next(rows)
            stages.append(time.process_time())
            image = open_image(row.content)
            stages.append(time.process_time())
            frame(image, SIZE, row.box, ANTIALIASED, rng, mirror=bool(rng.integers(2)))
            stages.append(time.process_time())
            for times, before, after in zip(spent.values(), [started, *stages], stages, strict=False):
                times.append(1000 * (after - before))
    means = {name: float(np.mean(times)) for name, times in spent.items()}
    for name, milliseconds in means.items():
        share = milliseconds / sum(means.values())
        print(f"{name}: {milliseconds:.2f} ms an image, {share:.0%}; alone {1000 / milliseconds:.0f} images/s")


def measure_memory(options: argparse.Namespace) -> None:
    """Resident memory while every synthetic bird of a dataset is streamed once through the training reader."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "prepared"
        prepare("synthetic-birds", None, folder, SourceOptions(num_images=options.images), workers=options.workers)
        data = load_training_data(TrainingConfig(train_data_dir=str(folder), streaming=True), 64, 100)
        print(f"{len(data):,} images, {len(data.rows.shards)} shards")
        step = len(data) // _MEMORY_MARKS
        for mark in range(_MEMORY_MARKS):
            for index in range(mark * step, (mark + 1) * step):
                data.rows.row(index)
            print(f"after {(mark + 1) * step:>7,}: {resident_megabytes():.0f} MB", flush=True)


def measure_scale(options: argparse.Namespace) -> None:
    """What a large dataset takes before the first step and between steps; links to one full shard stand for many."""
    with tempfile.TemporaryDirectory() as temporary:
        shards = link_shards(options.prepared, Path(temporary), options.shards)
        size = Path(shards[0]).stat().st_size
        print(f"{size / _FULL / 1e3:.1f} kB per image, {len(shards):,} shards of {size / 1e6:.1f} MB")
        before, started = resident_megabytes(), time.perf_counter()
        rows = ShardRows(shards, Columns(), seed=0, window=_FULL // ROW_GROUP)
        seconds, grown = time.perf_counter() - started, resident_megabytes() - before
        print(f"start of a stream of {len(rows):,} images: {seconds:.1f} s, {grown:.0f} MB")
        rows.row(0)
        seconds = [timed(lambda first=number * _FULL: rows.row(first)) for number in range(1, 20)]
        print(f"reading a shard: {np.median(seconds):.3f} s of a core")
    seconds = timed(lambda: np.random.default_rng(0).permutation(len(rows)))
    print(f"order of as many rows of a map-style dataset: {seconds:.1f} s of a core")
    measure_captions(options.captions)


def link_shards(prepared: Path, folder: Path, count: int) -> list[str]:
    """A shard of 1,000 rows, those of a dataset again and again, under many names."""
    table = pyarrow.parquet.read_table(find_shards(str(prepared))[0])
    table = pyarrow.concat_tables([table] * math.ceil(_FULL / len(table))).slice(0, _FULL)
    paths = [str(folder / f"train-{number}.parquet") for number in range(count)]
    pyarrow.parquet.write_table(table, paths[0], row_group_size=ROW_GROUP)
    for path in paths[1:]:
        os.link(paths[0], path)
    return paths


def measure_captions(count: int) -> None:
    """Reading the five captions of each row of a map-style dataset, and keeping them."""
    captions = [[f"a bird with {row} feathers, {number} of them red" for number in range(5)] for row in range(count)]
    dataset = datasets.Dataset.from_dict({"image": [b""] * count, "captions": captions})
    rows = MapRows(dataset.cast_column("image", datasets.Image(decode=False)), Columns(), seed=0)
    seconds = timed(lambda: sum(map(len, rows.captions(count))))
    before = resident_megabytes()
    kept = list(rows.captions(count))
    grown = resident_megabytes() - before
    print(f"captions of {len(kept):,} rows: {seconds:.2f} s of a core to read, {grown:.0f} MB to keep")


def timed(work: Callable[[], object]) -> float:
    """Seconds of processor time."""
    started = time.process_time()
    work()
    return time.process_time() - started


def resident_megabytes() -> float:
    """Memory of this process now (Linux) or at its highest (elsewhere)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    subcommands = parser.add_subparsers(required=True)
    speed = subcommands.add_parser("speed")
    speed.add_argument("source", type=Path, help="birds as for `ratlip data prepare birds`")
    speed.add_argument("--images", type=int, default=300, help="per measurement")
    speed.add_argument("--rounds", type=int, default=5, help="the median counts")
    speed.add_argument("--store_size", type=int, default=304)
    speed.set_defaults(run=measure_speed)
    profile = subcommands.add_parser("profile")
    profile.add_argument("source", type=Path, help="as for speed")
    profile.add_argument("--images", type=int, default=600)
    profile.add_argument("--store_size", type=int, default=304)
    profile.add_argument("--store_crop", action="store_true", help=f"shards of crops of {STORED} pixels instead")
    profile.set_defaults(run=measure_profile)
    memory = subcommands.add_parser("memory")
    memory.add_argument("--images", type=int, default=100_000)
    memory.add_argument("--workers", type=int, default=1)
    memory.set_defaults(run=measure_memory)
    scale = subcommands.add_parser("scale")
    scale.add_argument("prepared", type=Path, help="folder that `ratlip data prepare` has written")
    scale.add_argument("--shards", type=int, default=10_000)
    scale.add_argument("--captions", type=int, default=100_000, help="rows whose captions are read")
    scale.set_defaults(run=measure_scale)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
