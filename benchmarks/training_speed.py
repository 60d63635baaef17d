"""How fast training steps are and what memory they take, by preset, batch size and precision.
`python benchmarks/training_speed.py --preset ratlip --batch_sizes 8 16 32` prints it; data loading is left out.
A script next to `ratlip benchmark`, which compares the same steps at one batch size, in turns."""

import shlex
import sys
from argparse import Namespace

import torch

from ratlip_hf.benchmark.measuring import describe_machine, in_fresh_process, interleaved, machine, peak_bytes, summary
from ratlip_hf.benchmark.training_speed import Training, stepper
from ratlip_hf.models import PRESETS
from ratlip_hf.utils.display import as_size
from ratlip_hf.utils.errors import CommandParser, UserError, command_line

_HEAD = ("preset", "batch", "step", "steps/s", "images/s", "peak memory")


def measure(path: str, what: Training) -> tuple[float, int]:
    """Median seconds of a step, and bytes at the peak: allocated on a GPU, or resident of the whole process."""
    (seconds,) = interleaved({path: stepper(path, what)}, what.steps, what.device).values()
    return summary(seconds)["median_s"], peak_bytes(what.device)


def row(path: str, what: Training) -> tuple[str, ...]:
    """One line of the table, measured in a fresh process; says so if there is not enough memory."""
    case = (what.preset, str(what.batch), path)
    if (found := in_fresh_process(measure, path, what)) is None:
        return (*case, "-", "-", "does not fit")
    seconds, peak = found
    return (*case, f"{1 / seconds:.3g}", f"{what.batch / seconds:.3g}", as_size(peak))


def parse(argv: list[str] | None) -> Namespace:
    parser = CommandParser(prog="training_speed.py", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8, 16, 32], metavar="N")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=20, help="after one that does not count; the median counts")
    options = parser.parse_args(argv)
    if options.steps < 1 or min(options.batch_sizes) < 2:
        raise UserError("steps must be at least 1 and batch sizes at least 2")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no GPU: use --device cpu")
    return options


@command_line
def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    device = torch.device(options.device)
    print(f"$ python benchmarks/training_speed.py {shlex.join(sys.argv[1:] if argv is None else argv)}\n")
    print(f"{describe_machine(machine(device))}\n\n| {' | '.join(_HEAD)} |\n|{'---|' * len(_HEAD)}", flush=True)
    for batch in options.batch_sizes:
        what = Training(options.preset, batch, options.steps, device)
        for path in what.paths:
            print(f"| {' | '.join(row(path, what))} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
