"""Run a table of the paper as an experiment, or print how to: trains its models, scores them, shows the table.
Owns the verb's options and what it prints; plan, runs and statistics are in `study`."""

import argparse
import logging
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ..study.plan import CORPORA, TABLES, Corpus, Table, choose_arms
from ..utils.errors import UserError, first_few
from .options import find_device, load_pipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", choices=TABLES, help="extras: single runs beside the tables")
    parser.add_argument("--corpus", default=next(iter(CORPORA)), choices=CORPORA, help="default: %(default)s")
    parser.add_argument("--data", help="prepared folder of the corpus (default: that of its configuration)")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/study"),
        help="everything goes to OUT/CORPUS (default: runs/study)",
    )
    parser.add_argument("--arms", nargs="+", help="only these models of the table")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="a run of each model for each (0 1 2)")
    parser.add_argument("--jobs", type=int, default=1, help="runs trained at the same time (default: 1)")
    parser.add_argument("--images_dir", nargs="+", default=[], metavar="NAME=FOLDER", help="images of other systems")
    parser.add_argument("--print", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--eval_clip", help="a CLIP the models were not trained with: repository or folder")
    parser.add_argument("--inception", help="torch-fidelity's Inception weights, a file")
    parser.add_argument("--trainer_options", nargs=argparse.REMAINDER, default=[], help="passed to the trainer; last")


def run(options: argparse.Namespace) -> int:
    if options.jobs < 1 or min(options.seeds) < 0:
        raise UserError("--jobs must be at least 1 and --seeds must not be negative")
    table, corpus = TABLES[options.table], CORPORA[options.corpus]
    arms, systems = choose_arms(table, options.arms), _systems(options.images_dir)
    try:
        from ..study import runs
    except ModuleNotFoundError as error:
        raise UserError(f"studies need {error.name}: pip install 'ratlip_hf[train]'") from error
    study, extra = options.output_dir / corpus.name, tuple(options.trainer_options)
    planned = [runs.StudyRun(corpus, arm, seed, study, options.data, extra) for seed in options.seeds for arm in arms]
    if options.print:
        _print_commands(options, table, corpus, planned)
        return 0
    scoring = _Scoring(study, corpus, options)
    scoring.check(systems)  # before days of training
    _train(planned, options.jobs)
    runs.write_curves(study, planned)
    scoring.score(planned, systems)
    _show(study, table, corpus, systems)
    return 0


def _print_commands(options: argparse.Namespace, table: Table, corpus: Corpus, planned: list) -> None:
    print(f"# {table.title}, on {corpus.name}; protocol {corpus.protocol}, decided by {corpus.outcome}")
    if table.remark:
        print(f"# {table.remark}")
    for arm in table.arms:
        if figure := table.published.get(arm.name, {}).get(corpus.name):
            print(f"# {arm.label}: published {figure}")
    for run in planned:
        print(run.command())
    again = ["ratlip", "study", table.name, "--corpus", corpus.name, "--output_dir", str(options.output_dir)]
    again += ["--data", options.data] if options.data else []
    networks = "" if corpus.data else " --inception WEIGHTS.pth --eval_clip CLIP"
    print(f"{shlex.join(again)}{networks}  # trains what is missing, scores everything, shows the table")


def _train(planned: list, jobs: int) -> None:
    left = [run for run in planned if not run.is_finished()]
    print(f"{len(planned)} runs, {len(left)} of them to train", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        for run, _ in zip(left, pool.map(lambda run: run.train(), left), strict=True):
            print(f"trained {run.name}", flush=True)


class _Scoring:
    """Scores what has no record yet, by the protocol of the corpus."""

    def __init__(self, study: Path, corpus: Corpus, options: argparse.Namespace):
        from ..evaluation.engine import Sources
        from ..evaluation.protocols import find_protocol
        from ..training.config import load_config

        self.study, self.device, self.protocol = study, find_device(None), find_protocol(corpus.protocol)
        self.data = options.data or corpus.data or load_config(["--config", corpus.config]).train_data_dir
        self.sources = Sources(options.inception, eval_clip=options.eval_clip)
        if not corpus.data and not options.eval_clip:
            raise UserError(f"--corpus {corpus.name} is decided by {corpus.outcome}: give a CLIP with --eval_clip")

    def check(self, systems: dict[str, str]) -> None:
        """Raise UserError or ValueError if data, networks or folders could not be used."""
        from ..evaluation.engine import load_networks
        from ..evaluation.inputs import Folder, load_eval_data

        load_networks(self.protocol, self.sources, torch.device("cpu"))
        load_eval_data(self.protocol, self.data)
        for folder in systems.values():
            Folder(folder)

    def score(self, planned: list, systems: dict[str, str]) -> None:
        """Add the records that are missing."""
        from ..evaluation.engine import Evaluation, load_networks
        from ..evaluation.inputs import Folder, Model, load_eval_data
        from ..study.runs import add_record, is_scored, known_records

        records = known_records(self.study)
        left = [run for run in planned if not is_scored(run.arm.name, run.seed, records)]
        folders = {name: folder for name, folder in systems.items() if not is_scored(name, 0, records)}
        if not left and not folders:
            return
        eval_data = load_eval_data(self.protocol, self.data)
        with first_few(logging.getLogger("ratlip_hf.clip")):
            networks = load_networks(self.protocol, self.sources, self.device)
            evaluation = Evaluation(self.protocol, eval_data, networks)
            for run in left:
                pipe = load_pipeline(str(run.folder / "pipeline")).to(self.device)
                candidate = Model(run.name, pipe, eval_data.prompts, self.protocol)
                add_record(self.study, run.arm.name, run.seed, evaluation.score(candidate))
                print(f"scored {run.name}", flush=True)
            for name, folder in folders.items():
                add_record(self.study, name, 0, evaluation.score(Folder(folder)))
                print(f"scored {name}", flush=True)


def _systems(given: list[str]) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in given]
    if wrong := ["".join(pair) for pair in pairs if not all(pair)]:
        raise UserError(f"--images_dir takes NAME=FOLDER, not {wrong[0]!r}")
    return {name: folder for name, _, folder in pairs}


def _show(study: Path, table: Table, corpus: Corpus, systems: dict[str, str]) -> None:
    from ..study.results import describe_table
    from ..study.runs import known_records

    names = {arm.name for arm in table.arms} | systems.keys()
    records = [record for record in known_records(study) if record.candidate.get("arm") in names]
    print(f"\n{table.title}, {corpus.name}\n")
    print(describe_table(records, table, corpus.scores))
    if table.remark:
        print(f"\n{table.remark}")
