"""Runs as real processes: killed and continued, alone and in company, on data in memory and streamed.
What is compared are all states of the last checkpoint, bit for bit where arithmetic allows it."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._pytree import tree_flatten_with_path

import several_processes
from ratlip_hf import RATLIPPipeline
from ratlip_hf.training import loop

STEPS, FEW_STEPS = 20, 6
# One thread like the reference in this process: sums depend on how they are cut.
ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def shards(tmp_path) -> Path:
    """Twenty images in five files."""
    rng = np.random.default_rng(0)
    for number in range(5):
        images = [Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)) for _ in range(4)]
        captions = [[f"a red bird {number} {index}", f"a bird {number} {index}"] for index in range(4)]
        rows = datasets.Dataset.from_dict({"image": images, "captions": captions})
        rows.to_parquet(tmp_path / "shards" / "data" / f"train-{number:05d}-of-00005.parquet")
    return tmp_path / "shards"


@pytest.fixture
def long(config):
    """A configuration of 20 steps with everything that has a state; epochs end in the middle of steps."""
    config.max_train_images = STEPS * config.train_batch_size
    config.evaluate_every, config.evaluation_samples = 16, 4
    config.mixed_precision, config.checkpoints_total_limit = "fp16", 1
    config.resume_from_checkpoint = "latest"
    return config


def arguments(config, folder: Path, **changes) -> list[str]:
    file = folder / "config.json"
    file.write_text(config.to_json())
    return ["--config", str(file), *(str(word) for name, value in changes.items() for word in (f"--{name}", value))]


def last_state(output_dir: Path, steps: int) -> dict[str, torch.Tensor | float]:
    """Every tensor and number of the last checkpoint, by its path."""
    folder = max((output_dir / "checkpoints").iterdir())
    assert folder.name == f"step-{steps:08d}"
    leaves, _ = tree_flatten_with_path(torch.load(folder / "state.pt", weights_only=True))
    return {"/".join(map(str, path)): leaf for path, leaf in leaves}


def assert_equal(found: Path, expected: Path, steps: int) -> None:
    found, expected = last_state(found, steps), last_state(expected, steps)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value
        assert same, name


def kill_after(command: list[str], reached) -> bool:
    """Start a command and kill it when `reached()`; False if it had ended before."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    while process.poll() is None and not reached():
        time.sleep(0.002)
    process.kill()
    return process.wait() == -signal.SIGKILL


def lines(file: Path) -> int:
    return file.read_text().count("\n") if file.is_file() else 0


@pytest.mark.slow  # the fast suite ends runs by signals, in test_faults_training
def test_a_killed_run_goes_on_as_if_nothing_had_happened(long, tmp_path):
    """SIGKILL in the middle of an epoch and between checkpoints; states of optimizers and loss scales included."""
    long.max_train_images = FEW_STEPS * long.train_batch_size
    expected = loop.train(long)
    long.output_dir = str(tmp_path / "killed")
    log = Path(long.output_dir) / "log.jsonl"
    assert kill_after(
        [sys.executable, "-m", "ratlip_hf.training", *arguments(long, tmp_path)], lambda: lines(log) >= 5
    )
    assert not (Path(long.output_dir) / "checkpoints" / f"step-{FEW_STEPS:08d}").exists()
    assert_equal(loop.train(long), expected, FEW_STEPS)
    assert lines(log) == lines(expected / "log.jsonl") == FEW_STEPS
    best, expected_best = (
        json.loads((folder / "best" / "best.json").read_text()) for folder in (log.parent, expected)
    )
    assert best == expected_best


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_killed_many_times_at_random_is_the_same_run(long, shards, tmp_path, seed, streaming):
    long.dataset_name, long.max_train_samples = None, None
    long.train_data_dir, long.streaming, long.checkpointing_steps = str(shards), streaming, 1
    expected = loop.train(long)
    long.output_dir = str(tmp_path / "killed")
    command = [sys.executable, "-m", "ratlip_hf.training", *arguments(long, tmp_path)]
    checkpoints, rng, kills = Path(long.output_dir) / "checkpoints", random.Random(seed), 0
    for _ in range(5):
        there = set(checkpoints.glob("step-*"))
        delay, moment = rng.uniform(0, 0.3), None

        def reached(there=there, delay=delay) -> bool:
            # From the first new checkpoint on, any moment: also while the next one is being written.
            nonlocal moment
            if moment is None and set(checkpoints.glob("step-*")) - there:
                moment = time.monotonic() + delay
            return moment is not None and time.monotonic() >= moment

        kills += kill_after(command, reached)
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    assert kills >= 2
    assert_equal(Path(long.output_dir), expected, STEPS)


@pytest.mark.parametrize("micro_batches", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_processes_reproduce_one(config, tmp_path, monkeypatch, micro_batches):
    """Half the batch each, over gloo: a few steps with statistics, gradients, penalty and metrics of the whole batch.

    With micro-batches also what goes with little memory: activations and statistics computed again, gradients averaged
    after the last of them only, a lazy penalty and clipping.

    In float64. In float32 they start alike, but Adam turns a rounding error of a gradient near zero into a step of
    full size, so that equal programs drift apart at once.
    """
    config.max_train_images, config.train_batch_size = FEW_STEPS * 8, 8 // micro_batches
    if micro_batches > 1:
        config.gradient_accumulation_steps, config.gradient_checkpointing = micro_batches, True
        config.penalty_interval, config.max_grad_norm = 2, 0.5
    config.checkpointing_steps, config.sample_every, config.augmentation = FEW_STEPS, 10**6, "color,cutout"
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    command = arguments(config, tmp_path, output_dir=two, train_batch_size=4 // micro_batches)
    several_processes.run_together(2, "file", several_processes.__file__, *command)
    several_processes.in_double(monkeypatch.setattr)
    try:
        loop.train(dataclasses.replace(config, output_dir=one))
    finally:
        torch.set_default_dtype(torch.float32)
    found, expected = last_state(Path(two), FEW_STEPS), last_state(Path(one), FEW_STEPS)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-9, msg=name)
    logs = [[json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()] for run in (one, two)]
    for first, second in zip(*logs, strict=True):
        del first["images_per_second"], second["images_per_second"]
        assert first == pytest.approx(second, rel=1e-4, abs=2e-4)
    assert len(logs[0]) == FEW_STEPS
    assert RATLIPPipeline.from_pretrained(Path(two) / "pipeline")
