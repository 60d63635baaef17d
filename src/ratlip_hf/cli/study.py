"""Run a table of the paper as an experiment, or print how to: trains its models, scores them, shows the table."""

import argparse
import shlex
from pathlib import Path

from ..study.plan import DATASETS, TABLES, Dataset, Table
from ..utils.errors import UserError
from .options import find_device, quiet_libraries


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("table", choices=TABLES, help="variants: further ones, that no table of the paper has")
    add("--dataset", default=next(iter(DATASETS)), choices=DATASETS, help="default: %(default)s")
    add("--data", help="prepared folder of the dataset (default: that of its configuration)")
    add(
        "--output_dir",
        type=Path,
        default=Path("runs/study"),
        help="everything goes to OUTPUT_DIR/DATASET (default: runs/study)",
    )
    add("--variants", nargs="+", help="only these models of the table")
    add("--seeds", nargs="+", type=int, help="a run of each model for each (default: 0 1 2; for table3 0 to 6)")
    add("--jobs", type=int, default=1, help="runs trained at the same time (default: 1)")
    add("--images_dir", nargs="+", default=[], metavar="NAME=FOLDER", help="folders with images of other systems")
    add("--print", action="store_true", help="print the commands and run nothing")
    add("--interim", action="store_true", help="of table3: train and score, then only say how many seeds it takes")
    add("--eval_clip", help="a CLIP the models were not trained with: repository or folder")
    add("--inception", help="torch-fidelity's Inception weights, a file")
    add("--trainer_options", nargs=argparse.REMAINDER, default=[], help="passed to the trainer; last")


def run(options: argparse.Namespace) -> int:
    table, dataset = TABLES[options.table], DATASETS[options.dataset]
    seeds = list(range(table.seeds)) if options.seeds is None else options.seeds
    if options.jobs < 1 or min(seeds) < 0:
        raise UserError("--jobs must be at least 1 and --seeds must not be negative")
    if options.interim and not (table.cells and dataset.margin):
        raise UserError("--interim goes with table3 on a dataset whose plan has a margin")
    variants, systems = table.choose(options.variants), _systems(options.images_dir)
    try:
        from ..study import runs
    except ModuleNotFoundError as error:
        raise UserError(f"studies need {error.name}: pip install 'ratlip_hf[train]'") from error

    study, extra = options.output_dir / dataset.name, tuple(options.trainer_options)
    planned = [
        runs.StudyRun(dataset, variant, seed, study, options.data, extra) for seed in seeds for variant in variants
    ]
    if options.print:
        _print_commands(options, table, dataset, planned)
        return 0
    quiet_libraries()
    scoring = runs.Scoring(study, dataset, options.data, options.inception, options.eval_clip)
    scoring.check(systems)  # before days of training
    runs.known_records(study)
    unfinished = [run for run in planned if not run.is_finished()]
    print(f"{len(planned)} runs, {len(unfinished)} of them to train", flush=True)
    for run in runs.train_all(unfinished, options.jobs):
        print(f"trained {run.name}", flush=True)
    runs.write_curves(study, planned)
    for name in scoring.score(planned, systems, find_device(None)):
        print(f"scored {name}", flush=True)
    _show(runs.known_records(study), table, dataset, seeds, options)
    return 0


def _show(records: list, table: Table, dataset: Dataset, seeds: list[int], options: argparse.Namespace) -> None:
    """What the records say; with --interim nothing but how far the seeds asked for differ."""
    from ..study import results

    if options.interim and dataset.margin:
        asked = [record for record in records if record.candidate.get("seed") in seeds]
        print(results.describe_spread(asked, table, dataset.outcome, dataset.margin))
        return
    shown = {variant.name for variant in table.variants} | set(table.systems) | _systems(options.images_dir).keys()
    records = [record for record in records if record.candidate.get("variant") in shown]
    text = results.describe_table(records, table, dataset.scores, dataset.margin)
    print(f"\n{table.title}, {dataset.name}\n\n{text}")
    if table.cells:
        print(f"\n{results.describe_effects(records, table, dataset.outcome, dataset.margin)}")
    if lines := results.missing_runs(records, table, table.choose(options.variants), seeds, dataset.outcome):
        print("", *lines, sep="\n")
    if table.remark:
        print(f"\n{table.remark}")


def _systems(given: list[str]) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in given]
    if wrong := ["".join(pair) for pair in pairs if not all(pair)]:
        raise UserError(f"--images_dir takes NAME=FOLDER, not {wrong[0]!r}")
    ours = {variant.name for table in TABLES.values() for variant in table.variants}
    if taken := [name for name, _, _ in pairs if name in ours]:
        raise UserError(f"--images_dir: {taken[0]} is the name of a model of ours, not of another system")
    return {name: folder for name, _, folder in pairs}


def _print_commands(options: argparse.Namespace, table: Table, dataset: Dataset, planned: list) -> None:
    from ..study import results, runs

    print(f"# {table.title}, on {dataset.name}; protocol {dataset.protocol}, decided by {dataset.outcome}")
    variants = table.choose(options.variants)
    counts = {variant.name: runs.parameter_counts(dataset, variant) for variant in variants}
    for line in results.describe_published(table, dataset, variants, counts).splitlines():
        print(f"# {line}")
    if not any(row.scores(dataset.name) for row in table.published.values()):
        print(f"# The paper has no numbers for {dataset.name}.")
    if table.remark:
        print(f"# {table.remark}")
    for run in planned:
        print(run.command())
    again = ["ratlip", "study", table.name, "--dataset", dataset.name, "--output_dir", str(options.output_dir)]
    again += ["--data", options.data] if options.data else []
    for name in ("variants", "seeds"):
        given = getattr(options, name)
        again += [f"--{name}", *map(str, given)] if given is not None else []
    networks = "" if dataset.data else " --inception WEIGHTS.pth --eval_clip CLIP"
    print(f"{shlex.join(again)}{networks}  # trains what is missing, scores everything, shows the table")
