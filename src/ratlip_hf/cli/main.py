"""Entry point of `ratlip`: finds the verb and runs it.
Verbs are modules with `add_arguments(parser)` and `run(options)`."""

import sys

from ..utils.errors import CommandParser, command_line
from ..version import __version__
from . import benchmark, convert, data, evaluate, export, generate, study

VERBS = {
    "generate": generate,
    "evaluate": evaluate,
    "study": study,
    "data": data,
    "convert": convert,
    "export": export,
    "benchmark": benchmark,
}


@command_line
def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(prog="ratlip", description="Text-to-image with RATLIP.")
    parser.add_argument("--version", action="version", version=f"ratlip {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    for name, module in VERBS.items():
        summary = module.__doc__.splitlines()[0]
        module.add_arguments(verbs.add_parser(name, help=summary, description=summary))
    options = parser.parse_args(argv)
    return VERBS[options.verb].run(options)


if __name__ == "__main__":
    sys.exit(main())
