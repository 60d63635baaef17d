"""Entry point of `ratlip`: finds the subcommand and runs it.
Subcommands are modules here with `add_arguments(parser)` and `run(options)`, imported when they are named."""

import importlib
import sys

from ..utils.errors import CommandParser, command_line
from ..version import __version__

SUBCOMMANDS = {
    "generate": "generate images from prompts: one PNG per image, a grid and a manifest",
    "evaluate": "score a model, or any system's images, by a named protocol; or compare two records",
    "study": "run a table of the paper as an experiment, or print how to",
    "data": "prepare, check, embed and publish captioned datasets for training",
    "convert": "convert a checkpoint of the original RATLIP or GALIP programs, or write one",
    "export": "write a pipeline for other programs: the Hub with code, ONNX",
    "benchmark": "measure speed and memory on this machine",
}


@command_line
def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    parser = CommandParser(prog="ratlip", description="Text-to-image with RATLIP.")
    parser.add_argument("--version", action="version", version=f"ratlip {__version__}")
    subparsers = parser.add_subparsers(dest="subcommand", required=True, metavar="subcommand")
    named = next((word for word in arguments if not word.startswith("-")), None)
    for name, summary in SUBCOMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name == named:  # the options of the others, and what they import, are not needed
            module = importlib.import_module(f".{name}", __package__)
            module.add_arguments(subparser)
    options = parser.parse_args(arguments)
    return module.run(options)


if __name__ == "__main__":
    sys.exit(main())
