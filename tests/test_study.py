"""Studies: variants that differ in one thing, runs that go on where they stopped, and honest readings of records."""

import dataclasses
import json
import math
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from ratlip_hf import RATLIPGenerator
from ratlip_hf.cli.main import main
from ratlip_hf.evaluation import ScoreRecord
from ratlip_hf.models import PRESETS
from ratlip_hf.study import plan, results, runs
from ratlip_hf.training.config import load_config
from ratlip_hf.utils.errors import UserError

PROTOCOL = {"name": "toy", "num_real": 10, "num_fake": 10}


def record(variant: str, seed: int, value: float, **protocol) -> ScoreRecord:
    candidate = {"variant": variant, "seed": seed, "parameters": 1_500_000}
    return ScoreRecord({**PROTOCOL, **protocol}, candidate, {"score": {"value": value}})


def records(**variants: list[float]) -> list[ScoreRecord]:
    return [record(variant, seed, value) for variant, values in variants.items() for seed, value in enumerate(values)]


def study_run(tmp_path, variant=plan.RAT, **changes) -> runs.StudyRun:
    return dataclasses.replace(runs.StudyRun(plan.DATASETS["synthetic-birds"], variant, 1, tmp_path), **changes)


@pytest.mark.parametrize("dataset", plan.DATASETS)
@pytest.mark.parametrize("table", plan.TABLES.values(), ids=plan.TABLES)
def test_every_run_has_a_valid_configuration_and_a_model(table, dataset, tmp_path):
    for variant in table.variants:
        run = runs.StudyRun(plan.DATASETS[dataset], variant, 0, tmp_path)
        config = load_config(run.trainer_options())
        assert config.generator == dict(variant.generator) and config.output_dir == str(run.folder)
        with torch.device("meta"):
            RATLIPGenerator(**{**PRESETS[config.preset]["generator"], **config.generator})
    assert {name for pair in table.contrasts for name in pair} <= {variant.name for variant in table.variants}


def test_variants_of_the_main_contrast_differ_in_one_thing_each():
    cat, rat, with_attention = (dict(variant.generator) for variant in plan.TABLES["table3"].variants)
    assert cat.pop("fusion") == "cat" and cat == rat
    assert set(rat.values()) == {"bn_act"} and set(with_attention.values()) == {"bn_act_sa"}
    assert rat.keys() == with_attention.keys() == {"bridge_conv", "image_conv"}
    configs = [
        load_config(["--config", "study_birds", "--generator", json.dumps(dict(variant.generator))])
        for variant in (plan.CAT, plan.RAT)
    ]
    assert dataclasses.replace(configs[0], generator={}) == dataclasses.replace(configs[1], generator={})


def test_unknown_variants_are_named():
    with pytest.raises(UserError, match="table3 has the variants cat, rat, rat_sa, not 'dog'"):
        plan.TABLES["table3"].choose(["dog"])


def test_a_paired_difference_and_its_interval():
    """By hand: differences .1, .2, .3 have the mean .2 and the standard error .1 / sqrt(3)."""
    found = results.contrast(records(a=[0.5, 0.8, 0.7], b=[0.4, 0.6, 0.4]), "a", "b", "score")
    half = 4.3027 * 0.1 / math.sqrt(3)
    assert found.mean == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.2 - half, 0.2 + half))
    assert found.verdict == "inconclusive"


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.20, 0.21, 0.19], "an effect: higher"),
        ([-0.20, -0.21, -0.19], "an effect: lower"),
        ([0.2, 0.21, -0.19], "inconclusive"),
        ([0.2], "one seed: no verdict"),
    ],
)
def test_verdicts(differences, verdict):
    found = results.contrast(records(a=differences, b=[0.0] * len(differences)), "a", "b", "score")
    assert found.verdict == verdict and verdict in str(found)


def test_seeds_are_paired_by_number_and_the_latest_record_counts():
    several = [record("a", 0, 1.0), record("a", 2, 5.0), record("b", 2, 1.0), record("b", 1, 0.0), record("a", 2, 2.0)]
    assert results.contrast(several, "a", "b", "score").by_seed == {2: 1.0}
    assert results.contrast(several, "a", "c", "score") is None


def test_the_table_has_means_and_spreads_and_one_protocol():
    table = dataclasses.replace(plan.TABLES["table3"], contrasts=(("rat", "cat"),))
    found = [*records(cat=[0.5, 0.7, 0.6], rat=[0.7, 0.7, 0.7]), record("AttnGAN", 0, 12.34)]
    text = results.describe_table(found, table, ["score"])
    assert "| CAT | 1.50 | 3 | 0.600 ± 0.100 |" in text and "| AttnGAN | 1.50 | 1 | 12.3 |" in text
    assert "attention" not in text
    assert "rat - cat: +0.100" in text and "inconclusive" in text
    with pytest.raises(ValueError, match="num_fake"):
        results.describe_table([*found, record("rat", 3, 0.1, num_fake=5)], table, ["score"])


def test_records_are_named_by_variant_and_seed(tmp_path):
    candidate = {"model": str(tmp_path / "rat-1" / "pipeline"), "weights_sha256": "12"}
    runs.add_record(tmp_path, "rat", 1, ScoreRecord(PROTOCOL, candidate, {"score": {"value": 1.0}}))
    (found,) = runs.known_records(tmp_path)
    assert found.candidate == {"variant": "rat", "seed": 1, "weights_sha256": "12"}
    assert runs.is_scored("rat", 1, [found]) and not runs.is_scored("rat", 2, [found])
    assert str(tmp_path) not in (tmp_path / runs.RECORDS).read_text()


def test_a_run_is_finished_when_it_has_seen_everything(tmp_path):
    run = study_run(tmp_path, options=("--max_train_images", "64"))
    assert not run.is_finished()
    for step, images in ((2, 32), (4, 64)):
        checkpoints = runs.Checkpoints(run.folder / "checkpoints", None)
        checkpoints.save(step, {"step": step, "images": images})
        (run.folder / "pipeline").mkdir(exist_ok=True)
        assert run.is_finished() == (images == 64)
    assert not study_run(tmp_path, options=("--max_train_images", "128")).is_finished()


def test_printed_commands_are_what_is_run(tmp_path, capsys):
    where = ["--dataset", "birds", "--data", "my birds", "--seeds", "5", "--output_dir", str(tmp_path)]
    assert main(["study", "table3", "--print", *where]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    run = runs.StudyRun(plan.DATASETS["birds"], plan.CAT, 5, tmp_path / "birds", "my birds")
    launcher, options = shlex.split(lines[0])[:4], shlex.split(lines[0])[4:]
    assert launcher == ["accelerate", "launch", "-m", "ratlip_hf.training"] and options == run.trainer_options()
    assert load_config(options).train_data_dir == "my birds"
    assert len(lines) == 4 and lines[3].startswith("ratlip study table3 --dataset birds")
    assert not any(tmp_path.iterdir())


def test_a_failing_run_says_why(tmp_path, monkeypatch):
    def fail(command, stdout, **_):
        stdout.write("a warning\nerror: train_batch_size must be at least 1\n")
        return subprocess.CompletedProcess(command, 2)

    monkeypatch.setattr(runs.subprocess, "run", fail)
    with pytest.raises(UserError, match="rat-1 failed: error: train_batch_size must be at least 1"):
        study_run(tmp_path).train()


def test_curves_are_gathered_by_variant_and_seed(tmp_path):
    run, without = study_run(tmp_path), study_run(tmp_path, variant=plan.CAT)
    run.folder.mkdir()
    lines = [{"images": images, "scores": {"kid": 0.5}, "protocol": {}} for images in (10, 20)]
    (run.folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs.write_curves(tmp_path, [run, without])
    curves = [json.loads(line) for line in (tmp_path / runs.CURVES).read_text().splitlines()]
    assert curves == [{"variant": "rat", "seed": 1, "images": images, "scores": {"kid": 0.5}} for images in (10, 20)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table4"], "table4"),
        (["table3", "--variants", "dog"], "has the variants"),
        (["table3", "--jobs", "0"], "--jobs"),
        (["table3", "--seeds", "-1"], "--seeds"),
        (["table1", "--images_dir", "AttnGAN"], "NAME=FOLDER"),
        (["table3", "--dataset", "mars"], "mars"),
        (["table3", "--dataset", "flowers", "--data", "flowers"], "give a CLIP with --eval_clip"),
        (["table1", "--images_dir", "AttnGAN=no-such-folder"], "no-such-folder"),
    ],
)
def test_mistakes_are_one_line_before_any_training(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(runs.StudyRun, "train", lambda run: pytest.fail("trained"))
    monkeypatch.chdir(tmp_path)
    assert main(["study", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not any(tmp_path.iterdir())


def test_studies_of_two_datasets_do_not_mix(tmp_path, capsys):
    folders = set()
    for dataset in ("birds", "flowers"):
        assert main(["study", "table3", "--print", "--dataset", dataset, "--output_dir", str(tmp_path)]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("accelerate")]
        folders |= {load_config(shlex.split(line)[4:]).output_dir for line in lines}
    assert len(folders) == 18 and {Path(folder).parent for folder in folders} == {
        tmp_path / "birds",
        tmp_path / "flowers",
    }


@pytest.mark.slow
def test_a_study_from_beginning_to_end(tmp_path, capsys):
    """Two short runs, trained, scored and shown; the second call finds everything done."""
    short = ["--max_train_images", "32", "--max_train_samples", "32", "--evaluation_samples", "2"]
    command = [
        "study",
        "table3",
        "--variants",
        "cat",
        "rat",
        "--seeds",
        "0",
        "--output_dir",
        str(tmp_path),
        "--trainer_options",
    ]
    assert main([*command, *short]) == 0
    first = capsys.readouterr().out
    assert "2 runs, 2 of them to train" in first and "rat - cat" in first
    assert main([*command, *short]) == 0
    again = capsys.readouterr().out
    assert "2 runs, 0 of them to train" in again and "scored" not in again
    assert again.splitlines()[-1] == first.splitlines()[-1]
