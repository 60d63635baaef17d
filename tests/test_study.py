"""Studies: variants that differ in one thing, runs that go on where they stopped, and honest readings of records."""

import dataclasses
import json
import math
import shlex
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from ratlip_hf import RATLIPGenerator
from ratlip_hf.cli.main import main
from ratlip_hf.evaluation import ScoreRecord
from ratlip_hf.models import PRESETS
from ratlip_hf.study import paper_rows, plan, results, runs
from ratlip_hf.training.config import load_config
from ratlip_hf.utils.errors import UserError

ROOT = Path(__file__).parents[1]
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


def test_the_four_cells_differ_in_one_thing_each():
    table = plan.TABLES["table3"]
    cells = {variant.name: dict(variant.generator) for variant in table.variants}
    assert list(cells) == list(table.cells) and table.seeds == 7
    for name, (recurrent, attention) in table.cells.items():
        options = cells[name]
        assert options.pop("fusion", "rat") == ("rat" if recurrent else "cat")
        assert options == dict.fromkeys(("bridge_conv", "image_conv"), "bn_act_sa" if attention else "bn_act")
    configs = [
        load_config(["--config", "study_birds", "--generator", json.dumps(dict(variant.generator))])
        for variant in (plan.CAT, plan.RAT)
    ]
    assert dataclasses.replace(configs[0], generator={}) == dataclasses.replace(configs[1], generator={})


def test_unknown_variants_are_named():
    with pytest.raises(UserError, match="table3 has the variants cat, cat_sa, rat, rat_sa, not 'dog'"):
        plan.TABLES["table3"].choose(["dog"])


def test_arms_of_table_2_have_attention_as_in_the_paper():
    """The paper's h = 64 has the score of its RAT with attention; the row hide=0 is left out."""
    table = plan.TABLES["table2"]
    assert all(variant.generator["bridge_conv"] == "bn_act_sa" for variant in table.variants)
    assert (
        table.published["rat_sa"].clip_score["birds"] == plan.TABLES["table3"].published["rat_sa"].clip_score["birds"]
    )
    assert "cat" not in table.published and not any(row.name == "hide=0" for row in table.published.values())
    released = next(variant for variant in table.variants if variant.name == "rat_sa_released")
    assert released.generator["recurrence"] == "batch_as_time"


def test_no_model_has_two_published_values():
    values = defaultdict(set)
    for table in plan.TABLES.values():
        for name, row in table.published.items():
            for score, found in (("CLIP score", row.clip_score), ("FID", row.fid)):
                for dataset, value in found.items():
                    values[name, score, dataset].add(value)
    assert values and all(len(found) == 1 for found in values.values())


def test_published_numbers_are_those_of_the_method():
    """Every row of the three tables in docs/method.md, section 8, but hide=0."""
    text = (ROOT / "docs" / "method.md").read_text().split("## 8.")[1].split("## 9.")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    rows = {row[0]: row[1:] for row in rows}
    for name, row in paper_rows.TABLE_1.items():
        fids = [row.fid.get(dataset, "") for dataset in ("birds", "faces")]
        assert rows[name] == [*fids, *(row.clip_score.get(dataset, "") for dataset in ("birds", "flowers", "faces"))]
    sizes = paper_rows.TABLE_2
    assert list(map(int, rows["$h$"])) == [0, *sizes]
    assert rows["CLIP score"][1:] == [row.clip_score["birds"] for row in sizes.values()]
    assert rows["generator"][1:] == [row.parameters[0] for row in sizes.values()]
    assert rows["both networks"][1:] == [row.parameters[1] for row in sizes.values()]
    names = {"Baseline": "baseline (GALIP, CAT)", "RAT": "RAT", "RAT+ATT": "RAT + shuffle attention"}
    for name, row in paper_rows.TABLE_3.items():
        assert rows[names[name]] == [row.clip_score[dataset] for dataset in ("birds", "flowers", "faces")]


def test_parameters_are_counted_as_in_table_2():
    """The released recurrence has the paper's generator; its TPs also have two convolutions that nothing uses."""
    generator, both = runs.parameter_counts(plan.DATASETS["birds"], plan.RELEASED)
    assert abs(generator - 134.68) < 0.02 and abs(both + 1.13 - 164.06) < 0.02
    assert runs.parameter_counts(plan.DATASETS["synthetic-birds"], plan.RAT)[0] < 3


def test_a_paired_difference_and_its_interval():
    """By hand: differences .1, .2, .3 have the mean .2 and the standard error .1 / sqrt(3)."""
    found = results.contrast(records(a=[0.5, 0.8, 0.7], b=[0.4, 0.6, 0.4]), "a", "b", "score")
    half = 4.3027 * 0.1 / math.sqrt(3)
    assert found.mean == pytest.approx(0.2)
    assert found.interval == pytest.approx((0.2 - half, 0.2 + half), abs=1e-5)
    assert found.describe().endswith("inconclusive")


@pytest.mark.parametrize(
    ("differences", "margin", "verdict"),
    [
        ([0.20, 0.21, 0.19], None, "effect"),
        ([-0.20, -0.21, -0.19], 0.01, "effect"),
        ([0.2, 0.21, -0.19], 0.01, "inconclusive"),
        ([0.001, -0.001, 0.0], 0.01, "equivalent"),
        ([0.001, -0.001, 0.0], None, "inconclusive"),
        ([0.2], 0.01, "one seed: no verdict"),
    ],
)
def test_verdicts_of_pairs(differences, margin, verdict):
    found = results.contrast(records(a=differences, b=[0.0] * len(differences)), "a", "b", "score")
    assert found.describe(margin).endswith(f": {verdict}")


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


CELLS = {"cat": 0.5, "cat_sa": 0.54, "rat": 0.5, "rat_sa": 0.54}
NOISE = [0.001, -0.001, 0.0, 0.002, -0.002, 0.001, -0.001]


def cell_records(seeds: int = 7) -> list[ScoreRecord]:
    """Attention adds .04, recurrence nothing; each cell has its noise in another order, and seeds differ by .1."""
    return records(
        **{
            name: [value + 0.1 * seed + NOISE[(seed + shift) % 7] for seed in range(seeds)]
            for shift, (name, value) in enumerate(CELLS.items())
        }
    )


def test_effects_are_told_with_their_verdicts():
    text = results.describe_effects(cell_records(), plan.TABLES["table3"], "score", 0.01)
    rows = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    assert rows["| recurrence"].endswith("| equivalent |")
    assert "+0.04" in rows["| shuffle attention"] and rows["| shuffle attention"].endswith("| effect |")
    assert "| recurrence x shuffle attention" in rows
    assert "28 runs" in text and "18 degrees of freedom" in text and "not the verdict" not in text


def test_missing_runs_are_told():
    table, found = plan.TABLES["table3"], cell_records(4)
    assert "4 seeds have all cells" in results.describe_effects(found, table, "score", 0.01)
    lacking = [each for each in found if (each.candidate["variant"], each.candidate["seed"]) != ("rat_sa", 2)]
    assert "3 seeds have all cells" in results.describe_effects(lacking, table, "score", 0.01)
    lines = results.missing_runs(lacking, table, table.variants, [0, 1, 2, 3], "score")
    assert lines == ["No score of rat_sa with seed 2."]
    three = [each for each in found if each.candidate["variant"] != "cat_sa"]
    assert results.describe_effects(three, table, "score", 0.01).endswith("there is none of cat_sa.")
    assert "two seeds in all four cells" in results.describe_effects(cell_records(1), table, "score", 0.01)
    assert "none of cat, cat_sa, rat, rat_sa" in results.describe_effects([], table, "score", 0.01)
    (line,) = results.missing_runs([record("LAFITE", 0, 1.0)], plan.TABLES["table1"], (), [], "score")
    assert line == "No score of AttnGAN, DF-GAN: give images by --images_dir NAME=FOLDER."


def test_the_interim_look_says_nothing_of_effects():
    text = results.describe_spread(cell_records(4), plan.TABLES["table3"], "score", 0.01)
    assert text.endswith("A margin of 0.01 asks for 7 seeds of each cell.") and "9 degrees of freedom" in text
    assert "effect" not in text and "rat" not in text
    assert "more than 12 seeds" in results.describe_spread(cell_records(4), plan.TABLES["table3"], "score", 0.0001)
    assert "no score" not in results.describe_spread([], plan.TABLES["table3"], "score", 0.01).lower()


def test_published_rows_stand_beside_their_models():
    table, dataset = plan.TABLES["table1"], plan.DATASETS["faces"]
    lines = results.describe_published(table, dataset, table.variants, {"galip": (1.0, 2.5)}).splitlines()
    assert lines[-1] == '| DF-GAN | DF-GAN | - | - | - | - | FID 137.6, CLIP score 24.41 ("DF-GAN") |'
    assert '| galip | 1.00 | 2.50 | - | - | FID 94.45, CLIP score 27.95 ("GALIP") |' in lines[3]
    table = plan.TABLES["table2"]
    text = results.describe_published(table, plan.DATASETS["birds"], table.variants, {})
    assert '| rat_sa_h4 | - | - | 132.09 | 161.47 | CLIP score 30.81 ("hide=4") |' in text
    assert "hide" not in results.describe_published(table, dataset, table.variants, {})


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
    printed = capsys.readouterr().out
    assert '| CLIP score 31.62 ("RAT") |' in printed
    lines = [line for line in printed.splitlines() if not line.startswith("#")]
    run = runs.StudyRun(plan.DATASETS["birds"], plan.CAT, 5, tmp_path / "birds", "my birds")
    launcher, options = shlex.split(lines[0])[:4], shlex.split(lines[0])[4:]
    assert launcher == ["accelerate", "launch", "-m", "ratlip_hf.training"] and options == run.trainer_options()
    assert load_config(options).train_data_dir == "my birds"
    assert len(lines) == 5 and lines[4].startswith("ratlip study table3 --dataset birds")
    assert "--seeds 5 " in lines[4]
    assert not any(tmp_path.iterdir())


def test_a_failing_run_says_why(tmp_path, monkeypatch):
    def fail(command, log):
        log.write_text("a warning\nerror: train_batch_size must be at least 1\n")
        return 2

    monkeypatch.setattr(runs, "_launched", fail)
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
        (["table1", "--images_dir", "cat=folder"], "cat is the name of a model of ours"),
        (["table2", "--interim"], "--interim goes with table3"),
        (["table3", "--interim", "--dataset", "birds"], "--interim goes with table3"),
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
    assert len(folders) == 2 * 4 * 7 and {Path(folder).parent for folder in folders} == {
        tmp_path / "birds",
        tmp_path / "flowers",
    }


@pytest.mark.slow
def test_a_study_from_beginning_to_end(tmp_path, capsys, monkeypatch):
    """Two short runs, trained, scored by an image of each prompt and shown; the second call finds everything done."""
    quick = dataclasses.replace(plan.DATASETS["synthetic-birds"], passes=1)
    monkeypatch.setitem(plan.DATASETS, "synthetic-birds", quick)
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
    assert "there is none of cat_sa, rat_sa" in first
    assert main([*command, *short]) == 0
    again = capsys.readouterr().out
    assert "2 runs, 0 of them to train" in again and "scored" not in again
    assert again.splitlines()[-1] == first.splitlines()[-1]
