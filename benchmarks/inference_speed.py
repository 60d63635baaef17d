"""How much faster `pipe.optimize()` draws than the plain path, how exact it is and what memory both take.
`python benchmarks/inference_speed.py` prints it for the paper's sizes, with random weights."""

import datetime
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from training_speed import device_name, peak_bytes
from transformers import CLIPConfig, CLIPVisionModelWithProjection

from ratlip_hf import RATLIPGenerator, RATLIPPipeline, bundled
from ratlip_hf.models import PRESETS
from ratlip_hf.training.preflight import as_size
from ratlip_hf.utils.errors import CommandParser, UserError, command_line

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_HEAD = ("batch", "path", "median s", "range s", "faster", "max error / range", "PSNR dB", "peak memory", "of plain")


def build_pipeline(preset: str) -> RATLIPPipeline:
    """Generator and image tower with random weights, every parameter off its start; no text half."""
    torch.manual_seed(0)
    generator = RATLIPGenerator.from_preset(preset).eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            scale = 0.5 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.add_(scale * torch.randn_like(parameter))
        for name, statistic in generator.named_buffers():
            if name.endswith("running_var"):
                statistic.uniform_(0.5, 1.5)
    if preset == "tiny":
        tower = CLIPVisionModelWithProjection.from_pretrained(bundled.model_dir() / "image_encoder")
    else:
        tower = CLIPVisionModelWithProjection(CLIPConfig().vision_config)
    return RATLIPPipeline(None, None, tower.requires_grad_(False).eval(), generator)


def drawer(pipe: RATLIPPipeline, batch: int) -> Callable[[], torch.Tensor]:
    """Draws the same batch at every call: unclamped pictures, without the postprocessing that all paths share."""
    config, rng = pipe.generator.config, torch.Generator().manual_seed(0)
    noise = torch.randn(batch, config.noise_dim, generator=rng)
    text = torch.randn(batch, config.text_dim, generator=rng)

    def draw() -> torch.Tensor:
        with torch.no_grad():
            if pipe._fast is None:
                return pipe.generator(noise, text, pipe.image_encoder).sample
            return pipe._fast.prepare(pipe.generator, pipe.image_encoder)(noise, text).float()

    return draw


def pipelines(options: Namespace) -> dict[str, RATLIPPipeline]:
    """The plain pipeline and one optimized for each precision, over the same components."""
    plain = build_pipeline(options.preset)
    fast = {name: RATLIPPipeline(**plain.components).optimize(dtype=_DTYPES[name]) for name in options.precision}
    return {"plain fp32": plain, **{f"optimized {name}": pipe for name, pipe in fast.items()}}


def interleaved(draws: dict[str, Callable], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each path, taken in turns, so that what else the machine does meets all of them."""
    seconds = {name: [] for name in draws}
    for _ in range(repetitions):
        for name, draw in draws.items():
            started = time.perf_counter()
            draw()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def peak(preset: str, precision: str | None, batch: int) -> int:
    """Bytes resident at the peak of a process that builds, perhaps optimizes, and draws twice."""
    pipe = build_pipeline(preset)
    draw = drawer(pipe if precision is None else pipe.optimize(dtype=_DTYPES[precision]), batch)
    draw(), draw()
    return peak_bytes("cpu")


def peaks(options: Namespace) -> dict[tuple[str, int], int]:
    """[`peak`] of every path and batch size, each in a process of its own.

    To be called while this process is still small: Linux counts what a parent held at the start as the child's peak.
    """
    found = {}
    for batch in options.batch_sizes:
        for name in ("plain fp32", *(f"optimized {precision}" for precision in options.precision)):
            precision = None if name == "plain fp32" else name.split()[1]
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                found[name, batch] = fresh.submit(peak, options.preset, precision, batch).result()
    return found


def print_batch(pipes: dict[str, RATLIPPipeline], batch: int, repetitions: int, memory: dict) -> None:
    """One line per path."""
    draws = {name: drawer(pipe, batch) for name, pipe in pipes.items()}
    pictures = {name: draw() for name, draw in draws.items()}  # the first call, too, is a warm-up
    seconds = interleaved(draws, repetitions)
    plain, plain_peak = pictures["plain fp32"], memory["plain fp32", batch]
    spread = plain.max() - plain.min()
    for name, times in seconds.items():
        median, base = np.median(times), np.median(seconds["plain fp32"])
        cells = [str(batch), name, f"{median:.3f}", f"{min(times):.3f}-{max(times):.3f}", f"{base / median:.2f}x"]
        if name == "plain fp32":
            cells += ["-", "-", as_size(plain_peak), "1.00"]
        else:
            difference = pictures[name] - plain
            used = memory[name, batch]
            psnr = -20 * torch.log10(difference.square().mean().sqrt() / spread)
            cells += [
                f"{difference.abs().max() / spread:.1e}",
                f"{psnr:.1f}",
                as_size(used),
                f"{used / plain_peak:.2f}",
            ]
        print(f"| {' | '.join(cells)} |", flush=True)


def print_floor(options: Namespace) -> None:
    """The rate of one large matrix product: no convolution or linear layer can be expected to do better."""
    for name in ("fp32", *(name for name in options.precision if name != "fp32")):
        one, other = (torch.randn(2048, 2048).to(_DTYPES[name]) for _ in range(2))
        seconds = interleaved({name: lambda one=one, other=other: one @ other}, 5)[name]
        print(f"matrix product 2048^3 in {name}: {2048**3 / min(seconds) / 1e9:.0f} G multiply-adds/s")


def print_operations(pipes: dict[str, RATLIPPipeline], batch: int) -> None:
    """Where the time of each path goes."""
    for name, pipe in pipes.items():
        draw = drawer(pipe, batch)
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as trace:
            draw()
        events = sorted(trace.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events)
        shares = ", ".join(f"{event.key} {event.self_cpu_time_total / total:.1%}" for event in events[:8])
        print(f"{name}, batch {batch}: {shares}")


def parse(argv: list[str] | None) -> Namespace:
    parser = CommandParser(prog="inference_speed.py", description=__doc__)
    parser.add_argument("--preset", choices=[name for name in PRESETS if name != "ratlip-released"], default="ratlip")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8], metavar="N")
    parser.add_argument("--precision", choices=_DTYPES, nargs="+", default=list(_DTYPES), help="of the optimized path")
    parser.add_argument("--repetitions", type=int, default=9, help="of each path, in turns; the median counts")
    options = parser.parse_args(argv)
    if options.repetitions < 1 or min(options.batch_sizes) < 1:
        raise UserError("repetitions and batch_sizes must be at least 1")
    return options


@command_line
def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    print(f"$ python benchmarks/inference_speed.py {shlex.join(sys.argv[1:] if argv is None else argv)}\n")
    machine = f"{device_name('cpu')}, threads: {torch.get_num_threads()}, torch {torch.__version__}"
    print(f"{datetime.date.today()}, {machine}, preset {options.preset}\n")
    memory = peaks(options)
    print_floor(options)
    print(f"\n| {' | '.join(_HEAD)} |\n|{'---|' * len(_HEAD)}", flush=True)
    pipes = pipelines(options)
    for batch in options.batch_sizes:
        print_batch(pipes, batch, options.repetitions, memory)
    print()
    print_operations(pipes, min(options.batch_sizes))


if __name__ == "__main__":
    sys.exit(main())
