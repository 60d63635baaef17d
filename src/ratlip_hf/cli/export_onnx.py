"""Write a pipeline as two ONNX graphs, sentences and pictures, that agree with PyTorch.
Owns the target's options and what it prints; the work is done in `export.onnx_export`."""

import argparse
from pathlib import Path

from .. import bundled
from ..export.onnx_export import DTYPES, PACKAGES, export_onnx
from ..export.onnx_folder import PICTURE_GRAPH, TEXT_GRAPH, refuse_other_folders
from ..export.onnx_networks import require
from ..utils.errors import UserError
from .loading import load_pipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder to make; an earlier export in it is replaced")
    parser.add_argument(
        "--model", default=bundled.NAME, help="folder or repository of a pipeline (default: %(default)s, bundled)"
    )
    parser.add_argument("--dtype", default="float32", help=f"one of {', '.join(DTYPES)} (default: float32)")


def run(options: argparse.Namespace) -> int:
    if options.dtype not in DTYPES:
        raise UserError(f"--dtype must be one of {', '.join(DTYPES)}, not {options.dtype!r}")
    try:
        require(*PACKAGES)
    except ImportError as error:
        raise UserError(str(error)) from error
    refuse_other_folders(options.folder)  # before minutes of work
    pipe = load_pipeline(options.model)
    record = export_onnx(pipe, options.folder, options.dtype)
    print(_summary(options, record))
    return 0


def _summary(options: argparse.Namespace, record: dict) -> str:
    config = record["generator"]
    sizes = {name: (options.folder / name).stat().st_size / 2**20 for name in (TEXT_GRAPH, PICTURE_GRAPH)}
    lines = [
        f"model          {options.model}: {config['sample_size']} px, noise {config['noise_dim']}, "
        f"text {config['text_dim']}",
        f"graphs         {', '.join(f'{name} {size:.1f} MiB' for name, size in sizes.items())} ({record['dtype']})",
    ]
    for what, found in record["difference_to_torch"].items():
        lines.append(
            f"{what:<15}largest difference to PyTorch {found['largest']:.1e} of the largest value, mean "
            f"{found['mean']:.1e}; batches of {' and '.join(map(str, record['checked_batches']))}"
        )
    if record["drawn_one_by_one"]:
        lines.append(
            "recurrence     every picture by itself, as the pipeline draws it; in the networks, the pictures of a "
            "batch depend on each other"
        )
    return "\n".join([*lines, f"written        {options.folder}"])
