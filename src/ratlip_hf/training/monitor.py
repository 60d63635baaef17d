"""What a run reports while it trains: `log.jsonl`, trackers, a progress bar, and warnings about its health."""

import contextlib
import dataclasses
import json
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..utils.errors import UserError, one_line
from ..utils.files import atomic_write, split_lines
from .config import TrainingConfig

logger = logging.getLogger(__name__)

WINDOW = 20  # logged lines of which the median is judged, so that single outliers do not warn
_START = 3  # lines that say where a metric started; over more of them a similarity may have risen already
_CHECK_CAPTIONS = "check that captions belong to their images"
_POSTFIX = {
    "d_real": "real",
    "d_fake": "fake",
    "d_mismatch": "mismatch",
    "d_penalty": "penalty",
    "clip_similarity": "clip",
}


class Report(contextlib.ExitStack):
    """Everything that the main process reports while it trains; a context manager, so that an error ends the bar.

    `accelerator` is made with [`tracker_arguments`], and its trackers are started here; `step` and `seen` are 0 or
    what the run resumes from.
    """

    def __init__(self, output_dir: Path, accelerator: Accelerator, config: TrainingConfig, step: int, seen: int):
        super().__init__()
        self.accelerator = accelerator
        self.metrics = Log(output_dir / "log.jsonl", step)
        self.evaluations = Log(output_dir / "evaluations.jsonl", step)
        self.health = Health(config)
        for line in self.metrics.read():  # a resumed run knows its past, and does not repeat its warnings
            self.health.update(line["images"], line)
        _start_trackers(accelerator, config, step)
        self.bar = _make_bar(config.max_train_images, seen)
        self.enter_context(self.bar)
        self.enter_context(logging_redirect_tqdm())
        self.started, self.first = time.monotonic(), seen

    def advance(self, images: int) -> None:
        """Move the bar by so many real images; the last step may go beyond its end."""
        self.bar.update(min(images, self.bar.total - self.bar.n))

    def log(self, step: int, seen: int, metrics: Mapping[str, float]) -> None:
        """Write a line to `log.jsonl`, tell the trackers and the bar, and warn if a metric leaves its healthy range.

        `images_per_second` is added, over this process's lifetime.
        """
        per_second = (seen - self.first) / max(time.monotonic() - self.started, 1e-9)
        values = {**metrics, "images_per_second": per_second}
        rounded = {name: _shortened(value) for name, value in values.items()}
        rounded["images_per_second"] = round(values["images_per_second"], 1)
        self.metrics.write({"step": step, "images": seen, **rounded})
        self.accelerator.log({**values, "images": seen}, step=step)
        shown = {short: f"{values[name]:.2f}" for name, short in _POSTFIX.items() if name in values}
        self.bar.set_postfix(shown, refresh=False)
        for warning in self.health.update(seen, rounded):
            logger.warning("%s", warning)

    def evaluated(self, step: int, seen: int, scores: Mapping[str, float], protocol: Mapping) -> dict:
        """Write a line to `evaluations.jsonl`, tell the trackers and log them; returns the line's content."""
        record = {"step": step, "images": seen, "scores": dict(scores), "protocol": dict(protocol)}
        self.evaluations.write(record)
        self.accelerator.log({f"evaluation/{name}": value for name, value in scores.items()}, step=step)
        logger.info("evaluation at %d images: %s", seen, "  ".join(f"{k} {v:.4g}" for k, v in scores.items()))
        return record


class Log:
    """A file with a JSON object per line, each with its "step". Lines after `step`, where a run resumes, are dropped.

    Values that are not finite, for which JSON has no word, are written as null.
    """

    def __init__(self, path: Path, step: int):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            kept = [record for record in self.read() if record["step"] <= step]
            atomic_write(path, "".join(f"{json.dumps(record)}\n" for record in kept))

    def write(self, record: dict) -> None:
        """Append a line; values may be nested objects."""
        with self.path.open("a") as file:
            file.write(json.dumps(_finite(record), allow_nan=False) + "\n")

    def read(self) -> list[dict]:
        """All lines, without a last one that a kill has cut short: a run that resumes writes it again."""
        records = []
        for line in split_lines(self.path.read_text(errors="replace")) if self.path.is_file() else []:
            with contextlib.suppress(ValueError, RecursionError):
                records.append(json.loads(line))
        return [record for record in records if isinstance(record, dict) and _is_dated(record)]


def _is_dated(record: dict) -> bool:
    return all(isinstance(record.get(name), int) for name in ("step", "images"))


def tracker_arguments(config: TrainingConfig) -> dict:
    """Keyword arguments of `Accelerator` for `config.report_to`; empty without a tracker.

    Raises:
        UserError: for a tracker that accelerate does not know, or whose package is not installed.
    """
    if config.report_to is None:
        return {}
    if config.report_to not in LOGGER_TYPE_TO_CLASS:
        raise UserError(f"report_to must be one of {', '.join(LOGGER_TYPE_TO_CLASS)}, not {config.report_to!r}")
    if config.report_to not in map(str, get_available_trackers()):
        raise UserError(f"report_to {config.report_to} needs its package: pip install {config.report_to}")
    return {"log_with": config.report_to, "project_dir": config.output_dir}


def _start_trackers(accelerator: Accelerator, config: TrainingConfig, step: int) -> None:
    if config.report_to is None:
        return
    output_dir = Path(config.output_dir)
    options = {
        # Like the lines of the logs, events after the step a run resumes from are dropped.
        "tensorboard": {"purge_step": step + 1},
        "wandb": {"name": output_dir.resolve().name, "dir": config.output_dir},
    }
    # Accelerate's "project" is TensorBoard's folder below output_dir.
    project = "tensorboard" if config.report_to == "tensorboard" else "ratlip_hf"
    try:
        accelerator.init_trackers(project, _flat(config), {config.report_to: options.get(config.report_to, {})})
    except Exception as error:  # each has its own kinds: no account, another database, no connection
        raise UserError(f"the tracker {config.report_to} does not start: {one_line(error)}") from error


def _flat(config: TrainingConfig) -> dict[str, int | float | str | bool]:
    """The configuration in the only types that TensorBoard takes."""
    values = dataclasses.asdict(config).items()
    return {name: value if isinstance(value, int | float | str) else json.dumps(value) for name, value in values}


def _make_bar(total: int, seen: int) -> tqdm:
    """A bar in images. `miniters=1`, or tqdm would write more often than every `mininterval` into a file."""
    interval = 0.5 if sys.stderr.isatty() else 60.0  # seconds
    total = max(total, seen)
    return tqdm(
        total=total, initial=seen, unit=" img", unit_scale=True, mininterval=interval, miniters=1, dynamic_ncols=True
    )


def _shortened(value: float) -> float:
    """Four decimals; below one, five digits, for a gradient norm of 1e-5 is not none."""
    return round(value, 4) if abs(value) >= 1 else float(f"{value:.5g}")


def _finite(value):
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Range:
    """The healthy range of a logged metric, "d_real", or of a difference, "d_real - d_fake"."""

    metric: str  # where it is missing, nothing is judged
    low: float = -math.inf  # an infinite end is never left
    high: float = math.inf
    too_low: str = ""  # what it means to be beyond, and what to do
    too_high: str = ""
    after: int = 5_000  # real images to see before it is judged
    since_start: bool = False  # judge how much it has risen since the first lines

    @property
    def label(self) -> str:
        """What is judged, in words."""
        return f"{self.metric} since the start" if self.since_start else self.metric

    def value(self, line: Mapping[str, float | None]) -> float:
        """The metric in a line of the log; NaN where there is none."""
        values = [line.get(name) for name in self.metric.split(" - ")]
        return values[0] - sum(values[1:]) if all(isinstance(value, int | float) for value in values) else math.nan


def healthy_ranges(config: TrainingConfig) -> list[Range]:
    """The ranges for a run. Wide on purpose: a warning should be worth a look."""
    weaker = "lower discriminator_learning_rate or raise penalty_weight"
    stronger = "raise discriminator_learning_rate"
    ranges = [
        Range(
            "d_loss",
            low=0.2,
            high=2.5,
            too_low=f"the discriminator has won and hardly teaches any more; {weaker}",
            too_high=f"the discriminator is worse than a constant (2.0); {weaker}",
        ),
        Range(
            "d_real - d_fake",
            low=0.05,
            high=4.0,
            too_low=f"the discriminator does not tell real from generated; {stronger} or lower penalty_weight",
            too_high=f"the discriminator wins; {weaker}",
        ),
        Range(
            "d_real - d_mismatch",
            low=0.1,
            too_low=f"the discriminator ignores the text; {_CHECK_CAPTIONS}",
            after=20_000,
        ),
        Range(
            "d_penalty",
            high=max(config.penalty_weight, 0.1) * config.penalty_interval,
            too_high="the discriminator's gradients are longer than 1; lower discriminator_learning_rate",
        ),
    ]
    remedies = {"discriminator": stronger, "generator": "check generator_learning_rate and the precision"}
    for name, remedy in remedies.items():
        explode = f"the {name}'s gradients explode; lower {name}_learning_rate or set max_grad_norm"
        ranges.append(Range(f"{name[0]}_grad_norm", 1e-6, 1e3, f"the {name} is not taught; {remedy}", explode))
    if config.clip_loss_weight:
        # How high the similarity is depends on the CLIP; that it rises does not. A fine-tuned model may start high.
        low = 0.02 if config.pretrained_model_name_or_path is None else -0.05
        reason = f"the generator does not follow the text; {_CHECK_CAPTIONS}, or raise clip_loss_weight"
        ranges.append(Range("clip_similarity", low=low, too_low=reason, after=20_000, since_start=True))
    return ranges


class Health:
    """Warns once when the median of a metric over [`WINDOW`] lines leaves its range, and again after it came back.

    Nothing needs a checkpoint: fed with the lines of `log.jsonl` it is in the state it had when they were written.
    """

    def __init__(self, config: TrainingConfig):
        self.checks = [_Check(healthy) for healthy in healthy_ranges(config)]

    def update(self, images: int, line: Mapping[str, float | None]) -> list[str]:
        """Take in a logged line, where None or what is not finite is passed over; return the warnings it causes."""
        warnings = (check.update(images, check.healthy.value(line)) for check in self.checks)
        return [warning for warning in warnings if warning]


class _Check:
    """One range, the latest values of its metric, and whether they are outside."""

    def __init__(self, healthy: Range):
        self.healthy, self.values, self.start = healthy, deque(maxlen=WINDOW), []
        self.outside = False

    def update(self, images: int, value: float) -> str | None:
        if not math.isfinite(value):
            return None
        healthy = self.healthy
        self.values.append(value)
        if len(self.start) < _START:
            self.start.append(value)
        if len(self.values) < WINDOW or images < healthy.after:
            return None
        value = median(self.values) - (median(self.start) if healthy.since_start else 0.0)
        was, self.outside = self.outside, not healthy.low <= value <= healthy.high
        if was or not self.outside:
            return None
        low = value < healthy.low
        side, bound = ("below", healthy.low) if low else ("above", healthy.high)
        return (
            f"{healthy.label} is {value:.3g} at {images} images, {side} its healthy {bound:g}: "
            f"{healthy.too_low if low else healthy.too_high} (docs/healthy_run.md)"
        )
