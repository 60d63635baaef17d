"""`ratlip evaluate`: score a model, or any system's images, by a named protocol and keep a record, or compare records.
The work is done in `evaluation`."""

import argparse
import dataclasses
import functools
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from .. import bundled
from ..evaluation.protocols import PROTOCOL_NAMES, find_protocol
from ..utils.errors import UserError, first_few, printable
from ..utils.files import atomic_write
from .options import add_device_arguments, check_dtype, find_device, load_pipeline

REAL_RENDERS = "real-renders"
_MOST = 10_000_000  # images
_LARGEST_SEED = 2**62  # image n has the seed + n, which must stay below 2^63


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, what = parser.add_argument, parser.add_mutually_exclusive_group()
    model = f"folder or repository of a pipeline (default: {bundled.NAME}), or {REAL_RENDERS}"
    what.add_argument("--model", help=model)
    what.add_argument("--images_dir", type=Path, help="images of any system, with a manifest.jsonl or not")
    what.add_argument("--compare", nargs=2, type=Path, metavar="RECORDS", help="two files; their last records")
    what.add_argument(
        "--verify_inception", type=Path, metavar="FILE", help="check Inception's weights against the published ones"
    )
    what.add_argument("--write_prompts", type=Path, help="write the prompts for the images of --images_dir, and end")
    protocols = ", ".join(PROTOCOL_NAMES)
    add("--protocol", default=bundled.NAME, help=f"one of {protocols} (default: %(default)s)")
    add("--data", default=bundled.NAME, help="dataset or prepared folder (default: %(default)s)")
    add("--split", default="test", help="of the data (default: test)")
    add("--output_file", type=Path, help="file to which the record is added, a line each")
    add("--eval_clip", help="a CLIP the model was not trained with: repository or folder")
    add("--inception", help="torch-fidelity's Inception weights, a file")
    add("--dinov2", default="facebook/dinov2-large", help="repository or folder (default: %(default)s)")
    add("--max_images", type=int, help="only the first so many prompts and real images")
    add("--batch_size", type=int, default=50, help="images at once (default: 50)")
    add("--seed", type=int, default=0, help="of noise and random choices (default: 0)")
    add_device_arguments(parser)


def run(options: argparse.Namespace) -> int:
    if options.compare:
        return _compare(*options.compare)
    if options.verify_inception:
        from ..evaluation.inception import verify

        verified, lines = verify(options.verify_inception)
        print("\n".join(lines))
        return 0 if verified else 1
    check_dtype(options.dtype)
    for name in ("max_images", "batch_size"):
        if (value := getattr(options, name)) is not None and not 1 <= value <= _MOST:
            raise UserError(f"--{name} must lie in 1..{_MOST}, not {value}")
    if not 0 <= options.seed < _LARGEST_SEED:
        raise UserError(f"--seed must be a non-negative 62-bit number, not {options.seed}")
    try:
        from ..evaluation.inputs import load_eval_data
    except ModuleNotFoundError as error:
        raise UserError(f"evaluating needs {error.name}: pip install 'ratlip_hf[eval]'") from error

    protocol = dataclasses.replace(find_protocol(options.protocol), seed=options.seed)
    eval_data = load_eval_data(protocol, options.data, options.split).first(options.max_images)
    if options.write_prompts:
        return _write_prompts(options.write_prompts, eval_data.prompts)
    return _evaluate(options, protocol, eval_data)


def _write_prompts(path: Path, prompts: list[str]) -> int:
    lines = (json.dumps({"file": f"{index:06d}.png", "prompt": text}) for index, text in enumerate(prompts))
    atomic_write(path, "".join(line + "\n" for line in lines))
    print(f"{len(prompts)} prompts in {path}; put it next to the images as manifest.jsonl")
    return 0


def _evaluate(options: argparse.Namespace, protocol, eval_data) -> int:
    from accelerate import PartialState

    from ..evaluation.engine import Evaluation, Sources, load_networks
    from ..evaluation.records import append_record, check_place_for_records

    if options.output_file:
        check_place_for_records(options.output_file)
    state = PartialState(cpu=options.device == "cpu")
    device = state.device if state.num_processes > 1 else find_device(options.device)
    candidate = _candidate(options, protocol, eval_data, device)
    sources = Sources(options.inception, options.dinov2, options.eval_clip)
    networks = load_networks(protocol, sources, device)
    with first_few(logging.getLogger("ratlip_hf.clip")):
        say = functools.partial(print, flush=True)
        evaluation = Evaluation(protocol, eval_data, networks, options.batch_size, say)
        record = evaluation.score(candidate)
    if state.is_main_process:
        if options.output_file:
            append_record(options.output_file, record)
        print(_as_text(record))
    return 0


def _candidate(options: argparse.Namespace, protocol, eval_data, device):
    from ..evaluation.inputs import Folder, Model

    if options.images_dir:
        return Folder(options.images_dir, options.max_images)
    if options.model == REAL_RENDERS:
        if not (world := bundled.find_world(protocol.name)):
            raise UserError(f"--model {REAL_RENDERS} goes with --protocol {' or '.join(bundled.WORLDS)} only")
        return world.fresh_renders(eval_data)
    model = options.model or bundled.NAME
    return Model(model, load_pipeline(model, check_dtype(options.dtype)).to(device), eval_data.prompts, protocol)


def _as_text(record) -> str:
    protocol = record.protocol
    head = f"protocol {protocol['name']}: {protocol['num_fake']} images against {protocol['num_real']} real ones"
    width = max(map(len, record.scores))
    rows = [f"  {name:<{width}}  {_score_as_text(score)}" for name, score in record.scores.items()]
    return "\n".join([head, *rows, *(f"note: {line}" for line in record.warnings())])


def _score_as_text(score: Mapping) -> str:
    interval = f"  [{score['low']:.4f}, {score['high']:.4f}]" if "low" in score else ""
    return f"{score['value']:10.4f}{interval}"


def _compare(first: Path, second: Path) -> int:
    from ..evaluation.records import compare_records, read_records

    records = []
    for path in (first, second):
        if not (found := read_records(path)):
            raise UserError(f"{path} holds no record")
        records.append(found[-1])
    shared = compare_records(*records)
    for path, record in zip((first, second), records, strict=True):
        print(printable(f"{path}: {json.dumps(dict(record.candidate))}"))
    width = max(map(len, shared))
    print(printable(f"protocol {records[0].protocol['name']}"))
    for name, pair in shared.items():
        print(
            f"  {printable(name):<{width}}  " + "   ".join(f"{_score_as_text(score):<34}" for score in pair).rstrip()
        )
    for line in dict.fromkeys(line for record in records for line in record.warnings()):
        print(f"note: {line}")
    return 0
