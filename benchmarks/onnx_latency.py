"""How long a prompt takes to become an image on the CPU, in PyTorch and as ONNX graphs, by batch size.
`python benchmarks/onnx_latency.py --model synthetic-birds` prints it; exporting, which comes first, is left out.
A script and no part of `ratlip benchmark`, as it needs the extra "export"."""

import datetime
import shlex
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from ratlip_hf import bundled
from ratlip_hf.benchmark.measuring import device_name
from ratlip_hf.cli.options import load_pipeline
from ratlip_hf.export.onnx_export import DTYPES, export_onnx
from ratlip_hf.export.onnx_runner import OnnxRunner
from ratlip_hf.utils.errors import CommandParser, UserError, command_line

_HEAD = ("program", "batch", "median", "best", "images/s")
_PROMPT = "a small red bird with black wings"


def programs(options: Namespace, folder: Path) -> Iterator[tuple[str, Callable]]:
    """What is compared: the pipeline, then its exports, all with the same call."""
    pipe = load_pipeline(options.model)
    yield "PyTorch float32", pipe
    for dtype in options.dtypes:
        export_onnx(pipe, folder / dtype, dtype)
        yield f"ONNX {dtype}", OnnxRunner(folder / dtype)


def seconds(generate: Callable, batch: int, options: Namespace) -> list[float]:
    """Of each measured call, from prompt and seed to arrays."""
    taken = []
    for _ in range(options.warmup + options.repeats):
        seeds = [torch.Generator().manual_seed(seed) for seed in range(batch)]
        started = time.perf_counter()
        generate(_PROMPT, num_images_per_prompt=batch, generator=seeds, output_type="np")
        taken.append(time.perf_counter() - started)
    return taken[options.warmup :]


def parse(argv: list[str] | None) -> Namespace:
    parser = CommandParser(prog="onnx_latency.py", description=__doc__)
    parser.add_argument("--model", default=bundled.NAME, help="folder or repository of a pipeline")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8], metavar="N")
    parser.add_argument("--threads", type=int, help="of either program (default: torch's choice)")
    parser.add_argument("--repeats", type=int, default=30, help="the median counts")
    parser.add_argument("--warmup", type=int, default=3, help="calls before them")
    options = parser.parse_args(argv)
    if min(options.repeats, options.threads or 1, *options.batch_sizes) < 1 or options.warmup < 0:
        raise UserError("repeats, threads and batch sizes must be at least 1, and warmup must not be negative")
    return options


@command_line
def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"$ python benchmarks/onnx_latency.py {shlex.join(sys.argv[1:] if argv is None else argv)}\n")
    versions = f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    print(f"{datetime.date.today()}, {device_name('cpu')}, threads: {torch.get_num_threads()}, {versions}\n")
    print(f"| {' | '.join(_HEAD)} |\n|{'---|' * len(_HEAD)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, generate in programs(options, Path(folder)):
            for batch in options.batch_sizes:
                taken = seconds(generate, batch, options)
                median, best = float(np.median(taken)), min(taken)
                cells = (f"{median * 1e3:.1f} ms", f"{best * 1e3:.1f} ms", f"{batch / median:.3g}")
                print(f"| {' | '.join((name, str(batch), *cells))} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
