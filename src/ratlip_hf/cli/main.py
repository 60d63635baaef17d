"""Entry point of `ratlip`: finds the subcommand and runs it.
Subcommands are modules here with `add_arguments(parser)` and `run(options)`, imported when they are named."""

import importlib
import sys

from ..utils.errors import CommandParser, command_line
from ..version import __version__
from .options import add_subcommands

SUBCOMMANDS = {
    "generate": "generate images from prompts: one PNG per image, a grid and a manifest",
    "explore": "interpolate, edit, mix, invert, explain and compare: one labelled image each",
    "evaluate": "score a model, or any system's images, by a named protocol; or compare two records",
    "study": "run a table of the paper as an experiment, or print how to",
    "init": "write a training configuration that fits a CLIP",
    "data": "prepare, check, embed and publish captioned datasets for training",
    "convert": "convert a checkpoint of the original RATLIP or GALIP programs, or write one",
    "export": "write a pipeline for other programs: the Hub with code, ONNX, a page",
    "demo": "try a model by typing, in a browser on this machine",
    "benchmark": "measure speed and memory on this machine",
}


@command_line
def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    parser = CommandParser(prog="ratlip", description="Text-to-image with RATLIP.")
    parser.add_argument("--version", action="version", version=f"ratlip {__version__}")
    subparsers = add_subcommands(parser, "subcommand", "subcommand", SUBCOMMANDS)
    named = next((word for word in arguments if not word.startswith("-")), None)
    if named in subparsers:  # the options of the others, and what they import, are not needed
        module = importlib.import_module(f".{named}", __package__)
        module.add_arguments(subparsers[named])
    options = parser.parse_args(arguments)
    return module.run(options)


if __name__ == "__main__":
    sys.exit(main())
