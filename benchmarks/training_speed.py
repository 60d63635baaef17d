"""How fast training steps are and what memory they take, by preset, batch size and precision.
`python benchmarks/training_speed.py --preset ratlip --batch_sizes 8 16 32` prints it; data loading is left out."""

import datetime
import os
import platform
import resource
import shlex
import sys
import time
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import CLIPConfig, CLIPVisionModelWithProjection

from ratlip_hf import bundled
from ratlip_hf.models import PRESETS, RATLIPGenerator
from ratlip_hf.training.config import PRECISIONS, TrainingConfig
from ratlip_hf.training.ema import EMA
from ratlip_hf.training.loop import averaged
from ratlip_hf.training.optimization import Optimization
from ratlip_hf.training.preflight import as_size
from ratlip_hf.training.preparation import build_networks, load_frozen_clip, start_accelerator, wrap
from ratlip_hf.training.step import Networks, StepInputs, training_step
from ratlip_hf.utils.errors import CommandParser, UserError, command_line

_HEAD = ("preset", "batch", "precision", "checkpointing", "steps/s", "images/s", "peak memory")


@dataclass(frozen=True)
class Speed:
    """Median steps per second, and bytes at the peak: allocated on a GPU, or resident of the whole process."""

    steps_per_second: float
    peak: int


def measure(config: TrainingConfig, device: str, steps: int, warmup: int) -> Speed:
    """Take steps on random pictures. In a process of its own, for the peak is that of the process."""
    os.environ["ACCELERATE_USE_CPU"] = str(device == "cpu").lower()
    torch.manual_seed(0)
    nets, ema, inputs = set_up(config)
    seconds = []
    for number in range(warmup + steps):
        started = time.perf_counter()
        figures = training_step(nets, [inputs], penalise=number % config.penalty_interval == 0)
        averaged(figures, nets)  # as in the loop, this waits for the device
        ema.update(nets.bare(nets.generator))
        seconds.append(time.perf_counter() - started)
    return Speed(1 / float(np.median(seconds[warmup:])), peak_bytes(device))


def set_up(config: TrainingConfig) -> tuple[Networks, EMA, StepInputs]:
    """What a step needs, as the trainer puts it together, and one batch on the device."""
    accelerator = start_accelerator(config)
    device = accelerator.device
    generator, discriminator, _ = build_networks(config)
    image_encoder = build_image_encoder(config, device)
    ema = EMA(generator.to(device), config.ema_decay)
    nets = Networks(
        *wrap(generator, discriminator, image_encoder, accelerator, config),
        Optimization.adam(generator, config.generator_learning_rate, config, device.type),
        Optimization.adam(discriminator, config.discriminator_learning_rate, config, device.type),
        image_encoder,
        accelerator,
        config,
    )
    return nets, ema, random_inputs(config.train_batch_size, generator, device)


def build_image_encoder(config: TrainingConfig, device: torch.device) -> nn.Module:
    """The bundled CLIP's image tower for `tiny`; for the others a ViT-B/32 with random weights."""
    if config.clip:
        return load_frozen_clip(config, device).image_encoder
    return CLIPVisionModelWithProjection(CLIPConfig().vision_config).requires_grad_(False).eval().to(device)


def random_inputs(batch: int, generator: RATLIPGenerator, device: torch.device) -> StepInputs:
    """Pictures in [-1, 1], noise and two sets of embeddings that look like nothing."""
    sizes = generator.config
    images = torch.rand(batch, 3, sizes.sample_size, sizes.sample_size, device=device) * 2 - 1
    noise = torch.randn(batch, sizes.noise_dim, device=device)
    return StepInputs(images, noise, *torch.randn(2, batch, sizes.text_dim, device=device))


def peak_bytes(device: str) -> int:
    """The most memory that this process has had."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def row(config: TrainingConfig, options: Namespace) -> tuple[str, ...]:
    """One line of the table, measured in a fresh process; says so if there is not enough memory."""
    case = (
        config.preset,
        str(config.train_batch_size),
        config.mixed_precision,
        "yes" if config.gradient_checkpointing else "no",
    )
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        try:
            speed = fresh.submit(measure, config, options.device, options.steps, options.warmup).result()
        except (torch.OutOfMemoryError, BrokenProcessPool):
            return (*case, "-", "-", "does not fit")
    images = speed.steps_per_second * config.train_batch_size
    return (*case, f"{speed.steps_per_second:.3g}", f"{images:.3g}", as_size(speed.peak))


def device_name(device: str) -> str:
    """What the machine calls its GPU or its processor."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def make_configs(options: Namespace) -> list[TrainingConfig]:
    """One configuration per line, checked before anything is measured."""
    return [
        TrainingConfig(
            preset=options.preset,
            clip=bundled.NAME if options.preset == "tiny" else None,
            dataset_name="synthetic-birds",  # must be given, and is not read
            train_batch_size=batch,
            mixed_precision=precision,
            gradient_checkpointing=options.gradient_checkpointing,
        ).validate()
        for precision in options.mixed_precision
        for batch in options.batch_sizes
    ]


def parse(argv: list[str] | None) -> Namespace:
    parser = CommandParser(prog="training_speed.py", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8, 16, 32], metavar="N")
    parser.add_argument("--mixed_precision", choices=PRECISIONS, nargs="+", default=["no"])
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=20, help="the median counts")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them")
    options = parser.parse_args(argv)
    if options.steps < 1 or options.warmup < 0:
        raise UserError("steps must be at least 1, and warmup must not be negative")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no GPU: use --device cpu")
    return options


@command_line
def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    configs = make_configs(options)
    print(f"$ python benchmarks/training_speed.py {shlex.join(sys.argv[1:] if argv is None else argv)}\n")
    threads = f"threads: {torch.get_num_threads()}, " if options.device == "cpu" else ""
    print(f"{datetime.date.today()}, {device_name(options.device)}, {threads}torch {torch.__version__}\n")
    print(f"| {' | '.join(_HEAD)} |\n|{'---|' * len(_HEAD)}", flush=True)
    for config in configs:
        print(f"| {' | '.join(row(config, options))} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
