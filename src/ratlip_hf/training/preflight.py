"""What can be known to go wrong before a run's first step: refused in one line, or, where it may be meant, warned of.
`--dry_run`: what a run would be, in figures, without taking a step and without leaving a file."""

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
from ..data.images import open_image
from ..data.read.rows import MixedRows, Row, Rows, ShardRows, naming_damage
from ..data.read.transforms import RELEASED, object_region
from ..models import RATLIPDiscriminator, RATLIPGenerator
from ..utils.display import as_size
from ..utils.errors import UserError
from .config import TrainingConfig
from .footprint import DiskUse, disk_use, memory_use
from .samples import CaptionedImages

logger = logging.getLogger(__name__)

SAMPLE = 64  # images that are looked at
_STREAM_CAPTIONS = 1000  # rows of a stream whose captions are looked at


def images_per_step(config: TrainingConfig, num_processes: int) -> int:
    """Real images that one step of all processes sees."""
    return config.train_batch_size * num_processes * config.gradient_accumulation_steps


def check_surroundings(config: TrainingConfig, num_processes: int, device: torch.device) -> None:
    """Check all that configuration and environment tell, before anything is loaded.

    Args:
        config: the validated configuration.
        num_processes: how many accelerate has found.
        device: what it trains on.

    Raises:
        UserError: for processes that do not know of each other, GPUs that are asked for but not there, a step of one
            image, a `train_data_dir` that is not there, or an `output_dir` that cannot be written.
    """
    _check_processes(num_processes)
    _check_gpus(device)
    per_step = images_per_step(config, num_processes)
    if per_step == 1:
        raise UserError(
            "a step of a single image has no mismatched captions: "
            "raise train_batch_size, gradient_accumulation_steps or the number of processes"
        )
    if rest := config.max_train_images % per_step:
        seen = config.max_train_images - rest + per_step
        logger.warning(
            "max_train_images %d is no multiple of a step's %d: %d will be seen",
            config.max_train_images,
            per_step,
            seen,
        )
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
    there = sum(_bytes_below(output_dir / name) for name in ("checkpoints", "pipeline", "discriminator", "best"))
    free = shutil.disk_usage(_existing(output_dir)).free
    if use.peak - there > free:
        raise UserError(
            f"{output_dir} needs {as_size(use.peak - there)} more for checkpoints of {as_size(use.checkpoint)} and "
            f"models of {as_size(use.models)}, but {as_size(free)} are free: lower checkpoints_total_limit (now "
            f"{config.checkpoints_total_limit or 'all are kept'}) or take another output_dir"
        )


def check_data(config: TrainingConfig, data: CaptionedImages, per_step: int) -> None:
    """Look through the captions, of a stream through the first ones, and at some images.

    Warns of a corpus smaller than a step, and of images that mostly have to be enlarged.

    Raises:
        UserError: for empty captions, damaged images among those looked at, or one caption for everything.
    """
    _check_captions(data.rows)
    if len(data) < per_step:
        logger.warning(
            "a step of %d images is larger than the dataset of %d: it shows some twice", per_step, len(data)
        )
    sides = [min(size) for size in sample_sizes(config, data)]
    small = sum(side < data.size for side in sides)
    if 2 * small > len(sides):
        logger.warning(
            "%d of %d images looked at are smaller than the %d pixels to be trained on (median of the shorter "
            "side: %d) and are enlarged: expect blurred results, or train on smaller ones (sample_size)",
            small,
            len(sides),
            data.size,
            statistics.median(sides),
        )


def sample_sizes(config: TrainingConfig, data: CaptionedImages) -> list[tuple[int, int]]:
    """Width and height of what can be shown of the first images, that is, of the object's region where there is one.

    Raises UserError for an image that cannot be opened.
    """
    return [_shown_size(data.rows.row(visit), config) for visit in range(min(SAMPLE, len(data)))]


def _check_processes(num_processes: int) -> None:
    """A launcher's processes that find no GPU each believe to be alone, and would write over each other's files."""
    launched = int(os.environ.get("WORLD_SIZE") or 1)
    if launched > 1 and num_processes == 1:
        raise UserError(
            f"{launched} processes were launched, but each finds itself alone, as it happens without GPUs: "
            "set ACCELERATE_USE_CPU=true to train on CPUs, or launch one process"
        )


def _check_gpus(device: torch.device) -> None:
    """Without a GPU accelerate takes the CPU and says nothing, and a run for a GPU would take weeks there."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    none = ("", "-1", "NoDevFiles")  # the last is Slurm's word
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
    counts = [min(len(part), _STREAM_CAPTIONS) if isinstance(part, ShardRows) else len(part) for part in parts]
    captions: set[str] = set()
    for part, count in zip(parts, counts, strict=True):
        for of_row in part.captions(count):
            if len(captions) < 2:  # of tens of millions no more need be kept
                captions.update(of_row)
    if len(captions) == 1 and sum(counts) == len(rows):
        raise UserError(
            f"all captions are {captions.pop()!r}: training needs pairs of images and captions that do not match"
        )


def _shown_size(row: Row, config: TrainingConfig) -> tuple[int, int]:
    with naming_damage(row):
        size = open_image(row.content).size
    if row.box is None:
        return size
    left, top, right, bottom = object_region(size, row.box, truncate=config.resize == RELEASED)
    return right - left, bottom - top


_LOOKED_AT = 1000  # rows of a stream or a mixture whose captions are counted


def describe_run(
    config: TrainingConfig,
    accelerator: Accelerator,
    generator: RATLIPGenerator,
    discriminator: RATLIPDiscriminator,
    clip: FrozenCLIP,
    data: CaptionedImages,
) -> str:
    """Parameters, memory, data, length and files of a run, a line each.

    Raises:
        UserError: for an image among the first that cannot be opened.
    """
    per_step = images_per_step(config, accelerator.num_processes)
    lines = {
        **_parameters(generator, discriminator, clip),
        "memory": _memory(config, accelerator, generator, discriminator, clip),
        **_data(config, data),
        "length": _length(config, data, per_step),
        "files": _files(config, disk_use(config, per_step, generator, discriminator, clip)),
    }
    return "\n".join(f"{name:<18}{text}" for name, text in lines.items()) + "\n"


def _parameters(generator, discriminator, clip: FrozenCLIP) -> dict[str, str]:
    modules = {
        "generator": generator,
        "discriminator": discriminator,
        "CLIP text tower": clip.text_encoder,
        "CLIP image tower": clip.image_encoder,
    }
    return {name: _count_parameters(module) for name, module in modules.items()}


def _count_parameters(module: nn.Module) -> str:
    total = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return f"{total:,} parameters, {trained:,} trained, {total - trained:,} frozen"


def _memory(config: TrainingConfig, accelerator: Accelerator, generator, discriminator, clip: FrozenCLIP) -> str:
    use = memory_use(config, accelerator, generator, discriminator, clip)
    return (
        f"about {as_size(use.total)} per process: weights and average {as_size(use.weights)}, gradients "
        f"{as_size(use.gradients)}, Adam {as_size(use.moments)}, activations of {config.train_batch_size} images "
        f"{as_size(use.activations)}; libraries come on top"
    )


def _data(config: TrainingConfig, data: CaptionedImages) -> dict[str, str]:
    looked_at = len(data) if not _is_costly(data) else min(len(data), _LOOKED_AT)
    per_row = [len(captions) for captions in data.rows.captions(looked_at)]
    count = sum(per_row)
    captions = f"{count:,} captions" if looked_at == len(data) else f"{count:,} captions of the first {len(per_row):,}"
    sizes = sample_sizes(config, data)
    (widths, heights), shorter = zip(*sizes, strict=True), statistics.median(map(min, sizes))
    return {
        "data": f"{len(data):,} images, {captions}, {count / len(per_row):.1f} per image",
        "images": f"trained at {data.size} x {data.size}; of {len(sizes)} looked at: {min(widths)} to {max(widths)} "
        f"wide, {min(heights)} to {max(heights)} high, median of the shorter side {shorter:.0f}",
        "captions": "; ".join(repr(caption) for caption in data.first_captions(3)),
    }


def _is_costly(data: CaptionedImages) -> bool:
    """Whether all captions cannot be had at once: those of a stream are far, those of a mixture come as drawn."""
    return isinstance(data.rows, ShardRows) or hasattr(data.rows, "parts")


def _length(config: TrainingConfig, data: CaptionedImages, per_step: int) -> str:
    steps = math.ceil(config.max_train_images / per_step)
    seen = steps * per_step
    return f"{steps:,} steps of {per_step:,} images are {seen:,} images, {seen / len(data):.2f} epochs"


def _files(config: TrainingConfig, use) -> str:
    kept = config.checkpoints_total_limit or "all"
    return (
        f"checkpoints of {as_size(use.checkpoint)} ({kept} kept), pipeline and discriminator {as_size(use.models)}, "
        f"at most {as_size(use.peak)} at a time"
    )
