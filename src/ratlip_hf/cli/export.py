"""Write a pipeline for other programs: `ratlip export hub|onnx`."""

import argparse
import shlex
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

from .. import bundled
from ..export.onnx_export import DTYPES, PACKAGES, export_onnx
from ..export.onnx_runner import IMAGE_GRAPH, TEXT_GRAPH, require
from ..export.onnx_runner import refuse_other_folders as refuse_other_onnx_folders
from ..export.repository import CODE, export_hub
from ..export.repository import refuse_other_folders as refuse_other_hub_folders
from ..utils.errors import UserError
from .options import load_pipeline


def add_hub_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder to make; an earlier export in it is replaced")
    parser.add_argument(
        "--model", default=bundled.NAME, help="folder or repository of a pipeline (default: %(default)s, bundled)"
    )
    parser.add_argument(
        "--with_code",
        action="store_true",
        help="write the code as well, so that diffusers alone can load the repository with trust_remote_code=True",
    )
    parser.add_argument("--repo_id", help="name on the Hub that the card gives (default: user/ and the folder's name)")


def run_hub(options: argparse.Namespace) -> int:
    refuse_other_hub_folders(options.folder)  # before minutes of work
    repository = _repository(options)
    pipe = load_pipeline(options.model)
    files = export_hub(pipe, options.folder, repository, bundled.resolve(options.model), options.with_code)
    config = pipe.generator.config
    size = sum((options.folder / path).stat().st_size for path in files) / 2**20
    code = f"{', '.join(CODE)}: loads without ratlip_hf, with trust_remote_code=True"
    print(
        f"model          {options.model}: {config.sample_size} px, noise {config.noise_dim}, text {config.text_dim}\n"
        f"discriminator  {'in discriminator/' if 'discriminator/config.json' in files else 'none with this model'}\n"
        f"code           {code if options.with_code else 'none: loads with ratlip_hf'}\n"
        f"written        {options.folder}: {len(files)} files, {size:.1f} MiB\n"
        f"to publish     hf upload {repository} {shlex.quote(str(options.folder))}"
    )
    return 0


def _repository(options: argparse.Namespace) -> str:
    repository = options.repo_id or f"user/{options.folder.resolve().name}"
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"--repo_id must be user/name as the Hub allows it, not {repository!r}: {error}") from error
    if repository.count("/") != 1:
        raise UserError(f"--repo_id must be user/name, not {repository!r}")
    return repository


def add_onnx_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder to make; an earlier export in it is replaced")
    parser.add_argument(
        "--model", default=bundled.NAME, help="folder or repository of a pipeline (default: %(default)s, bundled)"
    )
    parser.add_argument("--dtype", default="float32", help=f"one of {', '.join(DTYPES)} (default: float32)")


def run_onnx(options: argparse.Namespace) -> int:
    if options.dtype not in DTYPES:
        raise UserError(f"--dtype must be one of {', '.join(DTYPES)}, not {options.dtype!r}")
    try:
        require(*PACKAGES)
    except ImportError as error:
        raise UserError(str(error)) from error
    refuse_other_onnx_folders(options.folder)  # before minutes of work
    pipe = load_pipeline(options.model)
    record = export_onnx(pipe, options.folder, options.dtype)
    print(_summary(options, record))
    return 0


def _summary(options: argparse.Namespace, record: dict) -> str:
    config = record["generator"]
    sizes = {name: (options.folder / name).stat().st_size / 2**20 for name in (TEXT_GRAPH, IMAGE_GRAPH)}
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
            "recurrence     every image by itself, as the pipeline draws it; in the networks, the images of a "
            "batch depend on each other"
        )
    return "\n".join([*lines, f"written        {options.folder}"])


_HUB = "write a folder that is ready for the Hub, on request with the code that loads it without ratlip_hf"
_ONNX = "write two ONNX graphs, text and images, that agree with PyTorch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    targets = parser.add_subparsers(dest="export_target", required=True, metavar="target")
    add_hub_arguments(targets.add_parser("hub", help=_HUB, description=_HUB))
    add_onnx_arguments(targets.add_parser("onnx", help=_ONNX, description=_ONNX))


def run(options: argparse.Namespace) -> int:
    return {"hub": run_hub, "onnx": run_onnx}[options.export_target](options)
