"""The runs of a study: the command of each, whether it is finished, and its record.
Owns the folders `ARM-SEED`, `records.jsonl` and `curves.jsonl` of a study, which can be interrupted."""

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..evaluation.records import Record, append_record, read_records
from ..training.checkpoints import Checkpoints
from ..training.config import load_config
from ..utils.errors import UserError
from ..utils.files import atomic_write
from .plan import Arm, Corpus

RECORDS, CURVES = "records.jsonl", "curves.jsonl"


@dataclass(frozen=True)
class StudyRun:
    """One arm with one seed.

    Attributes:
        corpus, arm, seed: which.
        study: the study's folder.
        data: prepared folder of the corpus, where it is not the configuration's.
        options: further options of the trainer, the same for all runs of a study.
    """

    corpus: Corpus
    arm: Arm
    seed: int
    study: Path
    data: str | None = None
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.arm.name}-{self.seed}"

    @property
    def folder(self) -> Path:
        return self.study / self.name

    def trainer_options(self) -> list[str]:
        """Options of the trainer; with them a run goes on where it was interrupted."""
        options = ["--config", self.corpus.config, "--generator", json.dumps(dict(self.arm.generator))]
        options += ["--train_data_dir", self.data] if self.data and self.data != self.corpus.data else []
        options += ["--seed", str(self.seed), "--output_dir", str(self.folder), *self.options]
        return [*options, "--resume_from_checkpoint", "latest"]

    def command(self) -> str:
        """What to type for this run."""
        return shlex.join(["accelerate", "launch", "-m", "ratlip_hf.training", *self.trainer_options()])

    def is_finished(self) -> bool:
        """Whether the run has seen all its images and its pipeline is there."""
        found = Checkpoints(self.folder / "checkpoints", None).find("latest")
        wanted = load_config(self.trainer_options()).max_train_images
        return bool(found) and found[1]["images"] >= wanted and (self.folder / "pipeline").is_dir()

    def train(self) -> None:
        """Train, or go on; the log goes to `train.log` in the run's folder.

        Raises:
            UserError: with the end of the log when the trainer fails.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "train.log"
        command = [sys.executable, "-m", "accelerate.commands.launch", "-m", "ratlip_hf.training"]
        with log.open("a") as file:
            done = subprocess.run([*command, *self.trainer_options()], stdout=file, stderr=subprocess.STDOUT)
        if done.returncode:
            lines = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
            raise UserError(f"{self.name} failed: {lines[-1] if lines else f'see {log}'}")


def known_records(study: Path) -> list[Record]:
    """The records of a study, oldest first; none if there is no file yet."""
    path = study / RECORDS
    return read_records(path) if path.is_file() else []


def is_scored(arm: str, seed: int, records: Sequence[Record]) -> bool:
    """Whether the record of an arm's run, or of another system, is among them."""
    return any((record.candidate.get("arm"), record.candidate.get("seed")) == (arm, seed) for record in records)


def add_record(study: Path, arm: str, seed: int, record: Record) -> None:
    """Append to the study's records; named by arm and seed, not by where model or images lie."""
    facts = {name: value for name, value in record.candidate.items() if name not in ("model", "images")}
    append_record(study / RECORDS, dataclasses.replace(record, candidate={"arm": arm, "seed": seed, **facts}))


def write_curves(study: Path, runs: Sequence[StudyRun]) -> None:
    """Gather the quick evaluations along all runs in one file: arm, seed, images, scores."""
    lines = []
    for run in runs:
        log = run.folder / "evaluations.jsonl"
        for line in log.read_text().splitlines() if log.is_file() else ():
            entry = json.loads(line)
            facts = {"arm": run.arm.name, "seed": run.seed, "images": entry["images"], "scores": entry["scores"]}
            lines.append(json.dumps(facts) + "\n")
    atomic_write(study / CURVES, "".join(lines))
