"""Write a pipeline for other programs: `ratlip export hub|onnx`.
Finds the target; targets are modules with `add_arguments(parser)` and `run(options)`, like verbs."""

import argparse

from . import export_hub, export_onnx

TARGETS = {"hub": export_hub, "onnx": export_onnx}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    targets = parser.add_subparsers(dest="export_target", required=True, metavar="target")
    for name, module in TARGETS.items():
        summary = module.__doc__.splitlines()[0]
        module.add_arguments(targets.add_parser(name, help=summary, description=summary))


def run(options: argparse.Namespace) -> int:
    return TARGETS[options.export_target].run(options)
