"""Before the first step: what can be known to go wrong is refused in one line, or, where it may be meant, warned of.
And `--dry_run`, which describes a run without taking a step or leaving a file."""

import logging
import math
import os
import shutil
import statistics
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from ..clip import FrozenCLIP
from ..data.images import object_region, open_image
from ..data.read.rows import MixedRows, Row, Rows, ShardRows, naming_damage
from ..data.read.transforms import RELEASED
from ..models import RATLIPDiscriminator, RATLIPGenerator
from ..utils.display import as_size
from ..utils.errors import UserError
from .config import TrainingConfig
from .footprint import MODELS, DiskUse, disk_use, memory_use
from .samples import CaptionedImages

logger = logging.getLogger(__name__)

_IMAGES = 64  # that are opened
_CAPTIONS = 1000  # that are read of a stream or a mixture, where reading all takes too long


def check_surroundings(config: TrainingConfig, num_processes: int, device: torch.device) -> None:
    """Check all that configuration and environment tell, before anything is loaded.

    Raises UserError for processes that do not know of each other, GPUs that are asked for but not there, a step of
    one image, a `train_data_dir` that is not there, or an `output_dir` that cannot be written.
    """
    _check_processes(num_processes)
    _check_gpus(device)
    per_step = config.images_per_step(num_processes)
    if per_step == 1:
        raise UserError(
            "a step needs at least two images: "
            "raise train_batch_size, gradient_accumulation_steps or the number of processes"
        )
    if rest := config.max_train_images % per_step:
        seen = config.max_train_images - rest + per_step
        counts = (config.max_train_images, per_step, seen)
        logger.warning("max_train_images %d is no multiple of a step's %d: %d will be seen", *counts)
    if config.mixed_precision == "fp16" and device.type == "cpu":
        logger.warning("fp16 on a CPU is slow and saves little: use mixed_precision bf16 or no")
    if config.train_data_dir and not Path(config.train_data_dir).is_dir():
        raise UserError(f"train_data_dir {config.train_data_dir} is not a folder (see ratlip data prepare)")
    _check_writable(Path(config.output_dir))


def check_disk(config: TrainingConfig, use: DiskUse) -> None:
    """Raise UserError unless the file system of `output_dir` has room for checkpoints and models.

    What a run that is resumed has written already counts as room, for it is replaced.
    """
    output_dir = Path(config.output_dir)
    there = sum(_bytes_below(output_dir / name) for name in ("checkpoints", "best", *MODELS))
    free = shutil.disk_usage(_existing(output_dir)).free
    if use.peak - there > free:
        raise UserError(
            f"{output_dir} needs {as_size(use.peak - there)} more for checkpoints of {as_size(use.checkpoint)} and "
            f"models of {as_size(use.models)}, but {as_size(free)} are free: lower checkpoints_total_limit (now "
            f"{config.checkpoints_total_limit or 'all are kept'}) or take another output_dir"
        )


def check_data(config: TrainingConfig, data: CaptionedImages, per_step: int) -> None:
    """Read the captions, of a stream the first ones, and open some images.

    Warns of a dataset smaller than a step, and of images that mostly have to be enlarged. Raises UserError for empty
    captions, damaged images among those opened, or one caption for everything.
    """
    _check_captions(data.rows)
    if len(data) < per_step:
        logger.warning(
            "a step of %d images is larger than the dataset of %d: it shows some twice", per_step, len(data)
        )
    sides = [min(size) for size in _image_sizes(config, data)]
    small = sum(side < data.size for side in sides)
    if 2 * small > len(sides):
        logger.warning(
            "%d of %d images looked at are smaller than the %d pixels to be trained on (median of the shorter "
            "side: %d) and are enlarged: expect blurred results, or train on smaller ones (sample_size)",
            *(small, len(sides), data.size, statistics.median(sides)),
        )


def describe_run(
    config: TrainingConfig,
    accelerator: Accelerator,
    generator: RATLIPGenerator,
    discriminator: RATLIPDiscriminator,
    clip: FrozenCLIP,
    data: CaptionedImages,
) -> str:
    """Parameters, memory, data, length and files of a run, a line each: what `--dry_run` prints.

    Raises UserError for an image among the first that cannot be opened.
    """
    per_step = config.images_per_step(accelerator.num_processes)
    steps = math.ceil(config.max_train_images / per_step)
    seen = steps * per_step
    memory = memory_use(config, accelerator, generator, discriminator, clip)
    disk = disk_use(config, per_step, generator, discriminator, clip)
    lines = {
        "generator": _count_parameters(generator),
        "discriminator": _count_parameters(discriminator),
        "CLIP text tower": _count_parameters(clip.text_encoder),
        "CLIP image tower": _count_parameters(clip.image_encoder),
        "memory": f"about {as_size(memory.total)} per process: weights and EMA {as_size(memory.weights)}, gradients "
        f"{as_size(memory.gradients)}, Adam {as_size(memory.moments)}, activations of {config.train_batch_size} "
        f"images {as_size(memory.activations)}; libraries come on top",
        **_describe_data(config, data),
        "length": f"{steps:,} steps of {per_step:,} images are {seen:,} images, {seen / len(data):.2f} epochs",
        "files": f"checkpoints of {as_size(disk.checkpoint)} ({config.checkpoints_total_limit or 'all'} kept), "
        f"pipeline and discriminator {as_size(disk.models)}, at most {as_size(disk.peak)} at a time",
    }
    return "\n".join(f"{name:<18}{text}" for name, text in lines.items()) + "\n"


def _check_processes(num_processes: int) -> None:
    """Without GPUs, each process of a launcher may believe to be the only one, and they would overwrite files."""
    launched = int(os.environ.get("WORLD_SIZE") or 1)
    if launched > 1 and num_processes == 1:
        raise UserError(
            f"{launched} processes were launched, but each finds itself alone, as it happens without GPUs: "
            "set ACCELERATE_USE_CPU=true to train on CPUs, or launch one process"
        )


def _check_gpus(device: torch.device) -> None:
    """Without a GPU accelerate takes the CPU and says nothing, and a run for a GPU would take weeks there."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    none = ("", "-1", "NoDevFiles")  # the last is what Slurm writes
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")
    if device.type == "cpu" and asked not in none and not on_cpu:
        raise UserError(
            f"CUDA_VISIBLE_DEVICES asks for GPU {asked}, but torch {torch.__version__} finds none: check the driver "
            "and torch's build, or set ACCELERATE_USE_CPU=true to train on the CPU"
        )


def _check_writable(output_dir: Path) -> None:
    existing = _existing(output_dir)
    if not existing.is_dir():
        raise UserError(f"output_dir {output_dir} cannot be a folder: {existing} is a file")
    try:
        # Tried, because permissions do not tell of read-only disks; the file has no name and leaves nothing.
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise UserError(f"output_dir {output_dir} cannot be written: {error.strerror}") from error


def _existing(path: Path) -> Path:
    """The path itself or the nearest of its parents that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if os.path.lexists(place))


def _bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _check_captions(rows: Rows) -> None:
    """Reading the captions refuses empty ones; what is left to see is whether they differ."""
    parts = rows.parts if isinstance(rows, MixedRows) else [rows]
    counts = [min(len(part), _CAPTIONS) if isinstance(part, ShardRows) else len(part) for part in parts]
    captions: set[str] = set()
    for part, count in zip(parts, counts, strict=True):
        for of_row in part.captions(count):
            if len(captions) < 2:  # of tens of millions no more need be kept
                captions.update(of_row)
    if len(captions) == 1 and sum(counts) == len(rows):
        raise UserError(
            f"all captions are {captions.pop()!r}: training needs pairs of images and captions that do not match"
        )


def _image_sizes(config: TrainingConfig, data: CaptionedImages) -> list[tuple[int, int]]:
    """Width and height of the first images, of the object's region where there is one; UserError for damaged ones."""
    return [_image_size(data.rows.row(index), config) for index in data.few(min(_IMAGES, len(data)))]


def _image_size(row: Row, config: TrainingConfig) -> tuple[int, int]:
    with naming_damage(row):
        size = open_image(row.content).size
    if row.box is None:
        return size
    left, top, right, bottom = object_region(size, row.box, truncate=config.resize == RELEASED)
    return right - left, bottom - top


def _count_parameters(module: nn.Module) -> str:
    total = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return f"{total:,} parameters, {trained:,} trained, {total - trained:,} frozen"


def _describe_data(config: TrainingConfig, data: CaptionedImages) -> dict[str, str]:
    partly = isinstance(data.rows, ShardRows | MixedRows)
    per_row = [len(captions) for captions in data.rows.captions(min(len(data), _CAPTIONS) if partly else len(data))]
    count = sum(per_row)
    captions = f"{count:,} captions" + (f" of the first {len(per_row):,}" if len(per_row) < len(data) else "")
    sizes = _image_sizes(config, data)
    (widths, heights), shorter = zip(*sizes, strict=True), statistics.median(map(min, sizes))
    return {
        "data": f"{len(data):,} images, {captions}, {count / len(per_row):.1f} per image",
        "images": f"trained at {data.size} x {data.size}; of {len(sizes)} looked at: {min(widths)} to {max(widths)} "
        f"wide, {min(heights)} to {max(heights)} high, median of the shorter side {shorter:.0f}",
        "captions": "; ".join(repr(caption) for caption in data.first_captions(3)),
    }
