"""`--dry_run`: what a run would be, in figures, without taking a step and without leaving a file.
Owns the report; the figures are counted in `footprint` and `preflight`."""

import math
import statistics

from accelerate import Accelerator
from torch import nn

from ..data.rows import ShardRows
from ..frozen_clip import FrozenCLIP
from ..models import RATLIPDiscriminator, RATLIPGenerator
from ..utils.shown import as_size
from .config import TrainingConfig
from .data import CaptionedImages
from .footprint import disk_use, memory_use
from .preflight import images_per_step, sample_sizes

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
        UserError: for a picture among the first that cannot be opened.
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
        "pictures": f"trained at {data.size} x {data.size}; of {len(sizes)} looked at: {min(widths)} to {max(widths)} "
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
