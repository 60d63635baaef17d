"""Measure speed and memory on this machine: inference, one-step diffusion, training steps, start-up."""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

from ..utils.errors import UserError
from ..utils.files import append_line, check_appendable
from .options import find_device, quiet_libraries

PARTS = ("inference", "diffusion", "training", "start_up")
# Not `ratlip-released`, whose recurrence couples the images of a batch, so that batch sizes do not compare.
PRESETS = ("ratlip", "galip", "tiny")
_RUNTIMES = ("inductor", "onnxruntime", "openvino")
_BATCH_SIZES = {"cpu": [1, 8], "cuda": [1, 16, 64, 256]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    add("--preset", choices=PRESETS, default="ratlip", help="random weights; default: %(default)s")
    add("--batch_sizes", type=int, nargs="+", metavar="N", help="of inference (default: 1 8, on GPUs more)")
    text = "measured beside ours on CPUs (default: those that are installed)"
    add("--runtimes", nargs="*", choices=_RUNTIMES, metavar="NAME", help=f"of {', '.join(_RUNTIMES)}, {text}")
    add("--training_batch", type=int, default=4, metavar="N", help="default: %(default)s")
    add("--repetitions", type=int, default=5, help="of each path, in turns (default: %(default)s)")
    add("--threads", type=int, help="default: torch's choice")
    add("--device", help="torch device (default: cuda where there is one, else cpu)")
    add("--output_file", type=Path, help="file to which the record is added, a line of JSON")


def run(options: argparse.Namespace) -> int:
    import torch

    device = find_device(options.device)
    sizes = options.batch_sizes or _BATCH_SIZES.get(device.type)
    if sizes is None:
        raise UserError(f"--device must be a CPU or a CUDA GPU, not {options.device}")
    counts = {"batch_sizes": min(sizes), "repetitions": options.repetitions, "threads": options.threads or 1}
    for name, count in (counts | {"training_batch": options.training_batch - 1}).items():
        if count < 1:
            least = 2 if name == "training_batch" else 1  # mismatched captions are those of the next image
            raise UserError(f"--{name} must be at least {least}")
    if options.threads and options.threads > (most := 8 * (os.cpu_count() or 1)):
        raise UserError(f"--threads must be at most {most} on this machine")
    if options.output_file:
        check_appendable(options.output_file)
    if options.threads:
        torch.set_num_threads(options.threads)
    quiet_libraries()
    record = _measure(options, device, tuple(sizes))
    if options.output_file:
        append_line(options.output_file, json.dumps(record))
    print(describe(record))
    return 0


def _measure(options: argparse.Namespace, device, sizes: tuple[int, ...]) -> dict:
    import torch

    try:
        from ..benchmark import inference, measuring, runtimes, training_speed
    except ModuleNotFoundError as error:
        raise UserError(f"benchmarks need {error.name}: pip install 'ratlip_hf[train]'") from error
    preset, repetitions = options.preset, options.repetitions
    if options.runtimes is None:
        options.runtimes = runtimes.installed() if device.type == "cpu" else []
    others = tuple(options.runtimes)
    steps = max(1, repetitions // 2)
    parts = {
        "start_up": lambda: inference.measure_start_up(steps),
        "inference": lambda: inference.measure(inference.Inference(preset, sizes, repetitions, device, others)),
        "training": lambda: training_speed.measure(
            training_speed.Training(preset, options.training_batch, steps, device)
        ),
        "diffusion": lambda: inference.measure_diffusion(preset, steps, device),
    }
    record = {"command": _command(options, sizes, torch.get_num_threads()), "machine": measuring.machine(device)}
    for name, measure in parts.items():
        if name in options.parts:
            print(f"measuring {name.replace('_', '-')} ...", file=sys.stderr, flush=True)
            record[name] = measure()
    return record


def _command(options: argparse.Namespace, sizes: tuple[int, ...], threads: int) -> str:
    """What to type for the same, whatever was left to its default here and wherever the record went."""
    words = ["ratlip", "benchmark", "--parts", *options.parts, "--preset", options.preset]
    words += ["--batch_sizes", *map(str, sizes), "--runtimes", *options.runtimes]
    words += ["--training_batch", str(options.training_batch)]
    return shlex.join([*words, "--repetitions", str(options.repetitions), "--threads", str(threads)])


def describe(record: dict) -> str:
    """The whole record as text."""
    from ..benchmark import inference, measuring, training_speed

    texts = [measuring.describe_machine(record["machine"])]
    for part, title, tables in (
        ("inference", "Inference", (inference.inference_table, inference.roofline_table, inference.operations_table)),
        ("diffusion", "Compared with one-step diffusion", (inference.diffusion_table,)),
        ("training", "Training steps", (training_speed.training_table,)),
        ("start_up", "Start-up", (inference.start_up_table,)),
    ):
        if part in record:
            texts += [title, *(table(record[part]) for table in tables)]
    return "\n\n".join(texts)
