"""Turn an original RATLIP or GALIP checkpoint into a pipeline folder, or a pipeline back into such a file."""

import argparse
import sys
from pathlib import Path

from ..utils.errors import UserError, one_line, printable
from ..utils.locks import locked
from .options import find_pipeline, quiet_libraries

_ONLY_FROM_ORIGINAL = ("clip", "family", "coupled", "sample_size", "prompt_layers", "feature_layers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", help="original .pth; with --to_original, folder or repository of a pipeline")
    add("output", type=Path, help="folder to make; with --to_original, the .pth to make")
    add("--to_original", action="store_true", help="write an original checkpoint from a pipeline")
    add("--clip", help="folder or repository of the frozen CLIP (default: OpenAI's ViT-B/32)")
    add("--family", choices=("auto", "ratlip", "galip"), help="insist on a family (default: auto)")
    add(
        "--coupled",
        action="store_true",
        default=None,
        help="keep the released RATLIP's recurrence, in which the images of a batch influence each other",
    )
    add("--sample_size", type=int, help="side of the images where shapes leave a choice (224)")
    add("--prompt_layers", type=int, nargs="+", help="CLIP layers with a prompt token (1 2 ...)")
    add("--feature_layers", type=int, nargs="+", help="CLIP layers the discriminator reads (1 4 8)")
    add(
        "--without_tower",
        action="store_true",
        help="with --to_original: leave out the frozen CLIP tower, without which the originals do not load the file",
    )


def run(options: argparse.Namespace) -> int:
    from ..convert.folder import refuse_existing, save_conversion
    from ..convert.original import convert_original

    quiet_libraries()
    given = {name: value for name in _ONLY_FROM_ORIGINAL if (value := getattr(options, name)) is not None}
    if options.to_original:
        if given:
            raise UserError(f"--{next(iter(given))} means nothing with --to_original")
        return _to_original(options)
    if options.without_tower:
        raise UserError("--without_tower goes with --to_original only")
    with locked(options.output):
        refuse_existing(options.output)  # before minutes of work
        conversion = convert_original(options.source, **given)
        save_conversion(conversion, options.output)
    print("\n".join([*map(printable, conversion.summary()), f"written        {options.output}"]))
    _warn(conversion.warnings)
    return 0


def _to_original(options: argparse.Namespace) -> int:
    from ..convert.folder import save_original

    source = find_pipeline(options.source, options.source)
    try:
        with locked(options.output):
            remarks = save_original(source, options.output, with_tower=not options.without_tower)
    except (UserError, ValueError, OSError):
        raise
    except Exception as error:  # a damaged folder raises almost anything
        raise UserError(f"{options.source} cannot be loaded: {one_line(error)}") from error
    print(f"written        {options.output}")
    _warn(remarks)
    return 0


def _warn(lines: list[str]) -> None:
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)
