"""The runs of a study, which can be interrupted: training them, scoring them, and the files of a study's folder.

`VARIANT-SEED/` holds a run, `records.jsonl` the scores, `curves.jsonl` the quick evaluations along all runs.
"""

import dataclasses
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ..bundled import WORLDS, resolve
from ..evaluation.engine import Evaluation, Sources, load_networks
from ..evaluation.inputs import Folder, Model, load_eval_data
from ..evaluation.protocols import find_protocol
from ..evaluation.records import ScoreRecord, append_record, check_place_for_records, read_records
from ..pipeline import RATLIPPipeline
from ..training.checkpoints import Checkpoints
from ..training.config import load_config
from ..training.run import build_networks
from ..utils.errors import UserError, first_few
from ..utils.files import atomic_write
from .plan import Dataset, Variant

RECORDS, CURVES = "records.jsonl", "curves.jsonl"


@dataclass(frozen=True)
class StudyRun:
    """One variant with one seed."""

    dataset: Dataset
    variant: Variant
    seed: int
    study: Path  # the study's folder
    data: str | None = None  # prepared folder of the dataset, where it is not the configuration's
    options: tuple[str, ...] = ()  # of the trainer, the same for all runs of a study

    @property
    def name(self) -> str:
        return f"{self.variant.name}-{self.seed}"

    @property
    def folder(self) -> Path:
        return self.study / self.name

    def trainer_options(self) -> list[str]:
        """Options of the trainer; with them a run goes on where it was interrupted."""
        options = ["--config", self.dataset.config, "--generator", json.dumps(dict(self.variant.generator))]
        options += ["--train_data_dir", self.data] if self.data and self.data != self.dataset.data else []
        options += ["--seed", str(self.seed), "--output_dir", str(self.folder), *self.options]
        return [*options, "--resume_from_checkpoint", "latest"]

    def command(self) -> str:
        """What to type for this run."""
        return shlex.join(["accelerate", "launch", "-m", "ratlip_hf.training", *self.trainer_options()])

    def is_finished(self) -> bool:
        """Whether the run has seen all its images and its pipeline is there."""
        found = Checkpoints(self.folder / "checkpoints", None).find("latest")
        target = load_config(self.trainer_options()).max_train_images
        return bool(found) and found[1]["images"] >= target and (self.folder / "pipeline").is_dir()

    def train(self) -> None:
        """Train, or go on; `train.log` in the run's folder is the log. Raises UserError with what the trainer says."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "train.log"
        command = [sys.executable, "-m", "accelerate.commands.launch", "-m", "ratlip_hf.training"]
        if _launched([*command, *self.trainer_options()], log):
            lines = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
            raise UserError(f"{self.name} failed: {lines[-1] if lines else f'see {log}'}")


_RUNNING: set[subprocess.Popen] = set()


def _launched(command: list[str], log: Path) -> int:
    """Run a program to its end, in a process group of its own; returns its exit code."""
    options = {"stderr": subprocess.STDOUT, "start_new_session": True}
    with log.open("a") as file, subprocess.Popen(command, stdout=file, **options) as process:
        _RUNNING.add(process)
        try:
            return process.wait()
        finally:
            _RUNNING.discard(process)


def parameter_counts(dataset: Dataset, variant: Variant) -> tuple[float, float]:
    """GPs and TPs of Table II in units of 2^20: parameters of the generator with its CLIP tower, and with the
    discriminator. As in the paper, the tower is counted without its last LayerNorm and its projection."""
    config = load_config(["--config", dataset.config, "--generator", json.dumps(dict(variant.generator))])
    folder = {"pretrained_model_name_or_path": resolve(config.clip), "subfolder": "image_encoder"}
    tower = CLIPVisionConfig.from_pretrained(**folder) if config.clip in WORLDS else CLIPVisionConfig()  # ViT-B/32
    with torch.device("meta"):
        generator, discriminator, _ = build_networks(config)
        vision = CLIPVisionModelWithProjection(tower).vision_model
    parts = (generator, vision.embeddings, vision.pre_layrnorm, vision.encoder), (discriminator,)
    with_clip, judging = (sum(sum(p.numel() for p in part.parameters()) for part in each) / 2**20 for each in parts)
    return with_clip, with_clip + judging


def train_all(runs: Sequence[StudyRun], jobs: int) -> Iterator[StudyRun]:
    """Train runs, `jobs` of them at the same time; yields each when it is done, in their order."""
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for run, _ in zip(runs, pool.map(StudyRun.train, runs), strict=True):
                yield run
        except BaseException:  # a failure or a signal: those that run save their state and end
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(_RUNNING):
                os.killpg(process.pid, signal.SIGTERM)
            raise


class Scoring:
    """Scores what has no record yet by the protocol of the dataset, with networks as in `ratlip evaluate`. `data` is a
    prepared folder, by default that of its configuration. Raises UserError where an evaluation CLIP is missing."""

    def __init__(self, study: Path, dataset: Dataset, data: str | None, inception: str | None, eval_clip: str | None):
        if not dataset.data and not eval_clip:
            raise UserError(f"--dataset {dataset.name} is decided by {dataset.outcome}: give a CLIP with --eval_clip")
        protocol = find_protocol(dataset.protocol)
        self.study, self.protocol = study, dataclasses.replace(protocol, passes=dataset.passes or protocol.passes)
        self.data = data or dataset.data or load_config(["--config", dataset.config]).train_data_dir
        self.sources = Sources(inception, eval_clip=eval_clip)

    def check(self, systems: Mapping[str, str]) -> None:
        """Raise UserError or ValueError if data, networks or folders (of other systems by name) cannot be used."""
        load_networks(self.protocol, self.sources, torch.device("cpu"))
        load_eval_data(self.protocol, self.data)
        for folder in systems.values():
            Folder(folder)

    def score(self, runs: Sequence[StudyRun], systems: Mapping[str, str], device: torch.device) -> Iterator[str]:
        """Add the records that are missing; yields the name of each."""
        records = known_records(self.study)
        runs = [run for run in runs if not is_scored(run.variant.name, run.seed, records)]
        systems = {name: folder for name, folder in systems.items() if not is_scored(name, 0, records)}
        if not runs and not systems:
            return
        eval_data = load_eval_data(self.protocol, self.data)
        with first_few(logging.getLogger("ratlip_hf.clip")):
            evaluation = Evaluation(self.protocol, eval_data, load_networks(self.protocol, self.sources, device))
            for run in runs:
                pipe = RATLIPPipeline.from_pretrained(run.folder / "pipeline").to(device)
                record = evaluation.score(Model(run.name, pipe, eval_data.prompts, self.protocol))
                add_record(self.study, run.variant.name, run.seed, record)
                yield run.name
            for name, folder in systems.items():
                add_record(self.study, name, 0, evaluation.score(Folder(folder)))
                yield name


def known_records(study: Path) -> list[ScoreRecord]:
    """The records of a study, oldest first; none if there is no file yet."""
    path = study / RECORDS
    if path.exists():
        check_place_for_records(path)
    return read_records(path) if path.exists() else []


def is_scored(variant: str, seed: int, records: Sequence[ScoreRecord]) -> bool:
    """Whether the record of a variant's run, or of another system, is among them."""
    return (variant, seed) in {(record.candidate.get("variant"), record.candidate.get("seed")) for record in records}


def add_record(study: Path, variant: str, seed: int, record: ScoreRecord) -> None:
    """Append to the study's records; named by variant and seed, not by where model or images lie."""
    facts = {name: value for name, value in record.candidate.items() if name not in ("model", "images")}
    candidate = {"variant": variant, "seed": seed, **facts}
    append_record(study / RECORDS, dataclasses.replace(record, candidate=candidate))


def write_curves(study: Path, runs: Sequence[StudyRun]) -> None:
    """Gather the quick evaluations along all runs in one file: variant, seed, images, scores."""
    lines = []
    for run in runs:
        log = run.folder / "evaluations.jsonl"
        for line in log.read_text().splitlines() if log.is_file() else ():
            try:
                entry = json.loads(line)
                facts = {"variant": run.variant.name, "seed": run.seed}
                facts |= {"images": entry["images"], "scores": entry["scores"]}
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # cut short by a kill
            lines.append(json.dumps(facts) + "\n")
    atomic_write(study / CURVES, "".join(lines))
