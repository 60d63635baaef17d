"""What a running training tells: the log, the trackers, the bar, and the warnings about its health.
`records/healthy_log.jsonl` is the first third of the log of the run that made a synthetic-birds model."""

import json
import logging
import math
import runpy
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ratlip_hf.training import loop, monitor
from ratlip_hf.training.monitor import WINDOW, Health, Log, Report, healthy_ranges, tracker_arguments
from ratlip_hf.utils.errors import UserError, first_few

ROOT = Path(__file__).parents[1]
HEALTHY_LOG = ROOT / "tests" / "records" / "healthy_log.jsonl"
METRICS = {
    "d_loss": 1.1,
    "d_penalty": 0.06,
    "d_real": 0.8,
    "d_fake": -0.4,
    "d_mismatch": -1.1,
    "g_loss": -1.0,
    "g_adversarial": 1.2,
    "clip_similarity": 0.6,
}


def make_report(config, step: int = 0, seen: int = 0) -> Report:
    accelerator = Accelerator(cpu=True, mixed_precision="no", **tracker_arguments(config))
    return Report(Path(config.output_dir), accelerator, config, step, seen)


def strict(line: str) -> dict:
    """A line read by the letter of JSON, which has no NaN."""

    def refuse(word: str):
        raise ValueError(f"{word} is not JSON")

    return json.loads(line, parse_constant=refuse)


# The log


def test_metrics_that_are_not_finite_are_null_in_the_log(config):
    with make_report(config) as report:
        report.log(1, 4, {**METRICS, "g_grad_norm": float("inf"), "d_loss": float("nan")})
        report.evaluated(1, 4, {"kid": float("nan"), "clip_similarity": 0.5}, {"samples": 8})
    line = strict((Path(config.output_dir) / "log.jsonl").read_text())
    assert (line["g_grad_norm"], line["d_loss"], line["d_real"]) == (None, None, 0.8)
    line = strict((Path(config.output_dir) / "evaluations.jsonl").read_text())
    assert line == {
        "step": 1,
        "images": 4,
        "scores": {"kid": None, "clip_similarity": 0.5},
        "protocol": {"samples": 8},
    }


def test_both_logs_drop_what_lies_after_the_step_a_run_resumes_from(config):
    with make_report(config) as report:
        for step in (1, 2, 3):
            report.log(step, 4 * step, METRICS)
            report.evaluated(step, 4 * step, {"kid": 0.1}, {})
    for name in ("log.jsonl", "evaluations.jsonl"):
        with (Path(config.output_dir) / name).open("a") as file:
            file.write('{"step": 1, "scores": {"kid": 0.1}')  # cut by a kill
    make_report(config, step=2, seen=8).close()
    for name in ("log.jsonl", "evaluations.jsonl"):
        assert [line["step"] for line in Log(Path(config.output_dir) / name, 2).read()] == [1, 2]
    make_report(config).close()
    assert not (Path(config.output_dir) / "log.jsonl").read_text()


def test_a_run_logs_images_per_second(config):
    lines = Log(loop.train(config) / "log.jsonl", 99).read()
    assert [line["images"] for line in lines] == [4, 8, 12, 16]
    assert all(line["images_per_second"] > 0 for line in lines)


def test_a_lazy_penalty_is_logged_although_its_steps_are_not(config):
    config.penalty_interval = config.logging_steps = 2  # penalties at steps 1 and 3, lines after 2 and 4
    lines = Log(loop.train(config) / "log.jsonl", 99).read()
    assert [line["step"] for line in lines] == [2, 4]
    assert all(line["d_penalty"] > 0 for line in lines)


def test_small_metrics_keep_their_digits(config):
    """Rounded to so many decimals, small gradients would be none at all, and the health check would warn of them."""
    with make_report(config) as report:
        report.log(1, 4, {**METRICS, "g_grad_norm": 1.2345678e-5, "d_grad_norm": 1234.5678})
    (line,) = Log(Path(config.output_dir) / "log.jsonl", 1).read()
    assert (line["g_grad_norm"], line["d_grad_norm"]) == (1.2346e-5, 1234.5678)


# Trackers


def scalars(output_dir: str) -> EventAccumulator:
    return EventAccumulator(str(Path(output_dir) / "tensorboard")).Reload()


def test_tensorboard_gets_metrics_evaluations_and_configuration(config):
    config.report_to = "tensorboard"
    with make_report(config) as report:
        report.log(10, 40, METRICS)
        report.evaluated(10, 40, {"kid": 0.25}, {})
        report.accelerator.end_training()
    found = scalars(config.output_dir)
    event = found.Scalars("d_real")[0]
    assert (event.step, event.value) == (10, pytest.approx(0.8))
    assert found.Scalars("evaluation/kid")[0].value == 0.25
    assert found.Scalars("images")[0].value == 40
    options = next(Path(config.output_dir).glob("tensorboard/*/hparams.yml")).read_text()
    assert "train_batch_size: 4" in options
    assert "generator: '{" in options


def test_tensorboard_of_a_resumed_run_has_each_step_once(config):
    config.report_to = "tensorboard"
    for steps, start in (((1, 2, 3), 0), ((3, 4), 2)):
        with make_report(config, step=start, seen=4 * start) as report:
            for step in steps:
                report.log(step, 4 * step, {**METRICS, "d_real": start})
            report.accelerator.end_training()
    events = scalars(config.output_dir).Scalars("d_real")
    assert [(event.step, event.value) for event in events] == [(1, 0), (2, 0), (3, 2), (4, 2)]


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "comet_ml"])
def test_a_tracker_that_is_not_installed_is_one_line_before_anything_happens(config, tracker, monkeypatch):
    config.report_to = tracker
    monkeypatch.setattr(monitor, "get_available_trackers", list)
    with pytest.raises(UserError, match=f"pip install {tracker}$"):
        loop.train(config)
    assert not Path(config.output_dir).exists()


def test_a_tracker_that_does_not_start_is_one_line(config, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no account\nTraceback of somebody else's")

    config.report_to = "tensorboard"
    monkeypatch.setattr(Accelerator, "init_trackers", refuse)
    with pytest.raises(UserError, match=r"^the tracker tensorboard does not start: no account Traceback"):
        make_report(config)


OFFLINE = {
    "WANDB_MODE": "offline",
    "SWANLAB_MODE": "offline",
    "CLEARML_OFFLINE_MODE": "1",
    "MLFLOW_TRACKING_URI": "file:./mlruns",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "TRACKIO_DIR": "trackio",
}


@pytest.mark.slow
@pytest.mark.parametrize("tracker", sorted(set(LOGGER_TYPE_TO_CLASS) - {"tensorboard", "comet_ml"}))
def test_each_tracker_that_is_installed_takes_a_run(config, tracker, monkeypatch, tmp_path):
    """Without an account; comet_ml asks for one."""
    if tracker not in map(str, monitor.get_available_trackers()):
        pytest.skip(f"{tracker} is not installed")
    monkeypatch.chdir(tmp_path)
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    config.report_to = tracker
    with make_report(config) as report:
        report.log(10, 40, METRICS)
        report.evaluated(10, 40, {"kid": 0.25}, {})
        report.accelerator.end_training()


# The bar


def test_the_bar_counts_images_from_where_the_run_resumes(config, capsys):
    with make_report(config, step=2, seen=8) as report:
        report.advance(4)
        assert (report.bar.n, report.bar.initial, report.bar.total) == (12, 8, config.max_train_images)
        report.log(3, 12, METRICS)
        report.advance(8)  # beyond the end, where tqdm would give up the bar
        assert report.bar.n == 16
    last = capsys.readouterr().err.split("\r")[-1]
    assert "100%" in last
    assert "img/s" in last
    assert "real=0.80, fake=-0.40, mismatch=-1.10, penalty=0.06, clip=0.60" in last


def test_the_bar_is_not_repeated_in_a_file(config, capsys):
    config.max_train_images = 4000
    with make_report(config) as report:
        for step in range(1, 1001):
            report.advance(4)
            report.log(step, 4 * step, METRICS)
    assert capsys.readouterr().err.count("\r") <= 3


def test_messages_stand_on_lines_of_their_own_and_logging_is_handed_back(config, capsys, monkeypatch):
    handler = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    with pytest.raises(RuntimeError), make_report(config) as report:
        report.advance(4)
        logging.getLogger("ratlip_hf").warning("look here")
        raise RuntimeError
    assert logging.getLogger().handlers == [handler]
    assert "look here" in capsys.readouterr().err.replace("\r", "\n").split("\n")


# Health


def feed(health: Health, count: int, first: int = 0, interval: int = 1000, **metrics) -> list[str]:
    warnings = []
    for index in range(first, first + count):
        now = {name: value(index) if callable(value) else value for name, value in metrics.items()}
        warnings += health.update((index + 1) * interval, {**METRICS, **now})
    return warnings


def rising(index: int) -> float:
    return 0.7 * (1 - 0.9**index)


def test_a_real_healthy_run_does_not_warn(config):
    health = Health(config)
    lines = [json.loads(line) for line in HEALTHY_LOG.read_text().splitlines()]
    assert lines[-1]["images"] > 30_000
    assert [health.update(line["images"], line) for line in lines] == [[]] * len(lines)


UNHEALTHY = [
    ({"d_real": 3.0, "d_fake": -3.0, "d_mismatch": -2.0}, "d_real - d_fake is 6"),
    ({"d_loss": 0.05}, "d_loss is 0.05"),
    ({"d_real": 0.01, "d_fake": 0.0, "d_mismatch": -0.5}, "does not tell real from generated"),
    ({"d_real": 0.8, "d_mismatch": 0.79}, "ignores the text"),
    ({"d_penalty": 50.0}, "d_penalty is 50"),
    ({"clip_similarity": 0.2}, "does not follow the text"),
    ({"g_grad_norm": 0.0}, "the generator is not taught"),
    ({"d_grad_norm": 1e5}, "gradients explode"),
]


@pytest.mark.parametrize(("metrics", "message"), UNHEALTHY)
def test_an_unhealthy_run_is_warned_once(config, metrics, message):
    warnings = feed(Health(config), 200, **{"clip_similarity": rising, **metrics})
    assert len(warnings) == 1
    assert message in warnings[0]
    assert "docs/healthy_run.md" in warnings[0]


def test_a_discriminator_that_wins_in_the_middle_of_a_run_is_noticed_and_so_is_its_return(config):
    health = Health(config)
    assert feed(health, 100, clip_similarity=rising) == []
    assert len(feed(health, 100, first=100, d_real=4.0, d_fake=-4.0)) == 1
    assert feed(health, 100, first=200) == []
    assert len(feed(health, 100, first=300, d_real=4.0, d_fake=-4.0)) == 1


def test_outliers_gaps_and_the_first_steps_do_not_warn(config):
    health = Health(config)
    assert feed(health, 100, interval=40, d_loss=9.0, clip_similarity=0.1) == []  # 4,000 images
    health = Health(config)
    third = lambda value, usual: lambda index: value if index % 3 == 0 else usual  # noqa: E731
    broken = {"d_penalty": third(1e4, 0.06), "d_real": third(None, 0.8), "d_loss": third(float("nan"), 1.1)}
    assert feed(health, 100, clip_similarity=rising, **broken) == []


def test_bounds_follow_the_configuration(config):
    config.clip_loss_weight, config.penalty_weight = 0.0, 100.0
    assert feed(Health(config), 100, clip_similarity=0.1, d_penalty=50.0) == []
    config.clip_loss_weight, config.pretrained_model_name_or_path = 4.0, "birds"  # starts where others end
    assert feed(Health(config), 100, clip_similarity=0.6) == []
    assert len(feed(Health(config), 100, clip_similarity=lambda index: 0.6 - 0.1 * (index > 9))) == 1


def test_the_document_gives_the_same_ranges(config):
    text = (ROOT / "docs" / "healthy_run.md").read_text()
    for entry in healthy_ranges(config):
        row = next(line for line in text.splitlines() if line.startswith("| `") and entry.label in _first_cell(line))
        bounds = [bound for bound in (entry.low, entry.high) if math.isfinite(bound)]
        if entry.label != "d_penalty":  # given there as a formula
            assert all(f"{bound:g}" in row.split("|")[3] for bound in bounds), entry.label


def _first_cell(line: str) -> str:
    return line.split("|")[1].replace("`", "")


def test_a_run_is_plotted(config, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    config.evaluate_every, config.evaluation_samples = 8, 4
    run = loop.train(config)
    script = ROOT / "examples" / "plot_run.py"
    options = [run, "--output_file", tmp_path / "plots.png", "--samples", tmp_path / "grids.jpg"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in (script, *options)])
    runpy.run_path(str(script), run_name="__main__")
    assert Image.open(tmp_path / "plots.png").width > Image.open(tmp_path / "grids.jpg").height > 100


def test_a_resumed_run_knows_its_past(config, caplog):
    """The similarity at the start, and what has been said already, come from the log's lines."""
    with make_report(config) as report:
        for step in range(1, 31):
            report.log(step, 1000 * step, {**METRICS, "d_penalty": 9.0})
    assert caplog.text.count("d_penalty is 9") == caplog.text.count("clip_similarity since the start is 0") == 1
    caplog.clear()
    with make_report(config, step=30, seen=30_000) as report:
        for step in range(31, 31 + WINDOW):
            report.log(step, 1000 * step, {**METRICS, "d_penalty": 9.0, "clip_similarity": 0.7})
        assert not caplog.text
        for step in range(31 + WINDOW, 31 + 2 * WINDOW):
            report.log(step, 1000 * step, METRICS)
    assert caplog.text.count("clip_similarity since the start is 0") == 1


def test_messages_of_one_kind_fall_silent(caplog):
    log = logging.getLogger("a test of few messages")
    with first_few(log, 2):
        for number in range(5):
            log.warning("cut %d", number)
            log.warning("other")
    log.warning("cut %d", 5)
    assert [record.getMessage() for record in caplog.records] == [
        "cut 0",
        "other",
        "cut 1 (more like this are not shown)",
        "other (more like this are not shown)",
        "cut 5",
    ]
