"""Measure speed and memory on this machine: `ratlip benchmark`.
Owns the verb's options; what is measured is in `benchmark`."""

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch

from ..models import PRESETS
from ..utils.errors import UserError
from ..utils.files import append_line, check_appendable
from .options import find_device, quiet_libraries

PARTS = ("drawing", "diffusion", "training", "start_up")
_BATCH_SIZES = {"cpu": [1, 8], "cuda": [1, 16, 64, 256]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    # The authors' recurrence couples the images of a batch, so that batch sizes do not compare.
    presets = [name for name in PRESETS if name != "ratlip-released"]
    parser.add_argument("--preset", choices=presets, default="ratlip", help="random weights; default: %(default)s")
    parser.add_argument(
        "--batch_sizes", type=int, nargs="+", metavar="N", help="of drawing (default: 1 8, on GPUs more)"
    )
    parser.add_argument("--training_batch", type=int, default=4, metavar="N", help="default: %(default)s")
    parser.add_argument("--repetitions", type=int, default=5, help="of each path, in turns (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="default: torch's choice")
    parser.add_argument("--device", help="torch device (default: cuda where there is one, else cpu)")
    parser.add_argument("--output_file", type=Path, help="file to which the record is added, a line of JSON")


def run(options: argparse.Namespace) -> int:
    device = find_device(options.device)
    sizes = options.batch_sizes or _BATCH_SIZES.get(device.type)
    if sizes is None:
        raise UserError(f"--device must be a CPU or a CUDA GPU, not {options.device}")
    counts = {"batch_sizes": min(sizes), "repetitions": options.repetitions, "threads": options.threads or 1}
    for name, count in (counts | {"training_batch": options.training_batch - 1}).items():
        if count < 1:
            least = 2 if name == "training_batch" else 1  # mismatched captions are those of the next image
            raise UserError(f"--{name} must be at least {least}")
    if options.output_file:
        check_appendable(options.output_file)
    if options.threads:
        torch.set_num_threads(options.threads)
    quiet_libraries()
    record = _measure(options, device, tuple(sizes))
    if options.output_file:
        append_line(options.output_file, json.dumps(record))
    from ..benchmark.report import describe

    print(describe(record))
    return 0


def _command(options: argparse.Namespace, sizes: tuple[int, ...]) -> str:
    """What to type for the same, whatever was left to its default here and wherever the record went."""
    words = ["ratlip", "benchmark", "--parts", *options.parts, "--preset", options.preset]
    words += ["--batch_sizes", *map(str, sizes), "--training_batch", str(options.training_batch)]
    return shlex.join([*words, "--repetitions", str(options.repetitions), "--threads", str(torch.get_num_threads())])


def _measure(options: argparse.Namespace, device: torch.device, sizes: tuple[int, ...]) -> dict:
    try:
        from ..benchmark import inference, measuring, training_speed
    except ModuleNotFoundError as error:
        raise UserError(f"benchmarks need {error.name}: pip install 'ratlip_hf[train]'") from error
    steps = max(1, options.repetitions // 2)
    parts = {
        "start_up": lambda: measuring.measure_start_up(steps),
        "drawing": lambda: inference.measure(inference.Drawing(options.preset, sizes, options.repetitions, device)),
        "training": lambda: training_speed.measure(
            training_speed.Training(options.preset, options.training_batch, steps, device)
        ),
        "diffusion": lambda: inference.measure_diffusion(options.preset, steps, device),
    }
    record = {"command": _command(options, sizes), "machine": measuring.machine(device)}
    for name, measure in parts.items():
        if name in options.parts:
            print(f"measuring {name.replace('_', '-')} ...", file=sys.stderr, flush=True)
            record[name] = measure()
    return record
