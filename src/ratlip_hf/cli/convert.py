"""Turn an original RATLIP or GALIP checkpoint into a pipeline folder, or a pipeline back into such a file.
Owns the verb's options and what it prints; the work is done in `convert`."""

import argparse
import sys
from pathlib import Path

from safetensors import SafetensorError

from .. import bundled
from ..convert.folder import refuse_existing, save_conversion, save_original
from ..convert.layout import FAMILIES
from ..convert.original import DEFAULT_CLIP, convert_original
from ..utils.errors import UserError, one_line
from .options import quiet_libraries

_ONLY_FROM_ORIGINAL = ("clip", "family", "coupled", "sample_size", "prompt_layers", "feature_layers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="original .pth; with --to_original, folder or repository of a pipeline")
    parser.add_argument("output", type=Path, help="folder to make; with --to_original, the .pth to make")
    parser.add_argument("--to_original", action="store_true", help="write an original checkpoint from a pipeline")
    parser.add_argument("--clip", help=f"folder or repository of the frozen CLIP (default: {DEFAULT_CLIP})")
    parser.add_argument("--family", choices=("auto", *FAMILIES), help="insist on a family (default: auto)")
    parser.add_argument(
        "--coupled",
        action="store_true",
        default=None,
        help="keep the released RATLIP's recurrence, in which the images of a batch influence each other",
    )
    parser.add_argument("--sample_size", type=int, help="side of the images where shapes leave a choice (224)")
    parser.add_argument("--prompt_layers", type=int, nargs="+", help="CLIP layers with a prompt token (1 2 ...)")
    parser.add_argument("--feature_layers", type=int, nargs="+", help="CLIP layers the discriminator reads (1 4 8)")
    parser.add_argument(
        "--without_tower",
        action="store_true",
        help="with --to_original: leave out the frozen CLIP tower, without which the originals do not load the file",
    )


def run(options: argparse.Namespace) -> int:
    quiet_libraries()
    if options.to_original:
        return _to_original(options)
    if options.without_tower:
        raise UserError("--without_tower goes with --to_original only")
    refuse_existing(options.output)  # before minutes of work
    given = {name: value for name in _ONLY_FROM_ORIGINAL if (value := getattr(options, name)) is not None}
    conversion = convert_original(options.source, **given)
    save_conversion(conversion, options.output)
    print("\n".join([*conversion.summary(), f"written        {options.output}"]))
    _warn(conversion.warnings)
    return 0


def _to_original(options: argparse.Namespace) -> int:
    for name in _ONLY_FROM_ORIGINAL:
        if getattr(options, name) is not None:
            raise UserError(f"--{name} means nothing with --to_original")
    source = bundled.resolve(options.source)
    if Path(source).is_dir() and not (Path(source) / "model_index.json").is_file():
        raise UserError(f"{options.source} holds no pipeline: there is no model_index.json in it")
    try:
        remarks = save_original(source, options.output, with_tower=not options.without_tower)
    except (AttributeError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{options.source} cannot be loaded: {one_line(error)}") from error
    print(f"written        {options.output}")
    _warn(remarks)
    return 0


def _warn(lines: list[str]) -> None:
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)
