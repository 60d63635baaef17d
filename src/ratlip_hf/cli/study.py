"""Run a table of the paper as an experiment, or print how to: trains its models, scores them, shows the table."""

import argparse
import shlex
from pathlib import Path

from ..study.plan import DATASETS, TABLES, Dataset, Table
from ..utils.errors import UserError
from .options import find_device, quiet_libraries


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("table", choices=TABLES, help="variants: single runs that no table of the paper has")
    add("--dataset", default=next(iter(DATASETS)), choices=DATASETS, help="default: %(default)s")
    add("--data", help="prepared folder of the dataset (default: that of its configuration)")
    add(
        "--output_dir",
        type=Path,
        default=Path("runs/study"),
        help="everything goes to OUTPUT_DIR/DATASET (default: runs/study)",
    )
    add("--variants", nargs="+", help="only these models of the table")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="a run of each model for each (0 1 2)")
    add("--jobs", type=int, default=1, help="runs trained at the same time (default: 1)")
    add("--images_dir", nargs="+", default=[], metavar="NAME=FOLDER", help="folders with images of other systems")
    add("--print", action="store_true", help="print the commands and run nothing")
    add("--eval_clip", help="a CLIP the models were not trained with: repository or folder")
    add("--inception", help="torch-fidelity's Inception weights, a file")
    add("--trainer_options", nargs=argparse.REMAINDER, default=[], help="passed to the trainer; last")


def run(options: argparse.Namespace) -> int:
    if options.jobs < 1 or min(options.seeds) < 0:
        raise UserError("--jobs must be at least 1 and --seeds must not be negative")
    table, dataset = TABLES[options.table], DATASETS[options.dataset]
    variants, systems = table.choose(options.variants), _systems(options.images_dir)
    try:
        from ..study import runs
    except ModuleNotFoundError as error:
        raise UserError(f"studies need {error.name}: pip install 'ratlip_hf[train]'") from error
    from ..study.results import describe_table

    study, extra = options.output_dir / dataset.name, tuple(options.trainer_options)
    planned = [
        runs.StudyRun(dataset, variant, seed, study, options.data, extra)
        for seed in options.seeds
        for variant in variants
    ]
    if options.print:
        _print_commands(options, table, dataset, planned)
        return 0
    quiet_libraries()
    scoring = runs.Scoring(study, dataset, options.data, options.inception, options.eval_clip)
    scoring.check(systems)  # before days of training
    unfinished = [run for run in planned if not run.is_finished()]
    print(f"{len(planned)} runs, {len(unfinished)} of them to train", flush=True)
    for run in runs.train_all(unfinished, options.jobs):
        print(f"trained {run.name}", flush=True)
    runs.write_curves(study, planned)
    for name in scoring.score(planned, systems, find_device(None)):
        print(f"scored {name}", flush=True)
    shown = {variant.name for variant in table.variants} | systems.keys()
    records = [record for record in runs.known_records(study) if record.candidate.get("variant") in shown]
    print(f"\n{table.title}, {dataset.name}\n\n{describe_table(records, table, dataset.scores)}")
    if table.remark:
        print(f"\n{table.remark}")
    return 0


def _systems(given: list[str]) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in given]
    if wrong := ["".join(pair) for pair in pairs if not all(pair)]:
        raise UserError(f"--images_dir takes NAME=FOLDER, not {wrong[0]!r}")
    return {name: folder for name, _, folder in pairs}


def _print_commands(options: argparse.Namespace, table: Table, dataset: Dataset, planned: list) -> None:
    print(f"# {table.title}, on {dataset.name}; protocol {dataset.protocol}, decided by {dataset.outcome}")
    if table.remark:
        print(f"# {table.remark}")
    for variant in table.variants:
        if value := table.published.get(variant.name, {}).get(dataset.name):
            print(f"# {variant.label}: published {value}")
    for run in planned:
        print(run.command())
    again = ["ratlip", "study", table.name, "--dataset", dataset.name, "--output_dir", str(options.output_dir)]
    again += ["--data", options.data] if options.data else []
    networks = "" if dataset.data else " --inception WEIGHTS.pth --eval_clip CLIP"
    print(f"{shlex.join(again)}{networks}  # trains what is missing, scores everything, shows the table")
