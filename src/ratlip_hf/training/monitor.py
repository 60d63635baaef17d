"""What a healthy run looks like, in numbers: the range of each figure, what leaving it means, what to do then.
What a running training tells its owner: `log.jsonl`, trackers, a progress bar, and warnings about its health."""

import contextlib
import dataclasses
import json
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, is_wandb_available
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..utils.errors import UserError
from ..utils.files import atomic_write
from .config import TrainingConfig

WINDOW = 20  # logged lines of which the median is judged, so that single outliers do not warn


@dataclass(frozen=True)
class Range:
    """The healthy range of one figure.

    Args:
        figure: what it is, in the words of the log.
        names: the logged figures it is computed from; where one is missing, nothing is judged.
        compute: their function.
        low, high: ends of the range; an infinite one is never left.
        too_low, too_high: what it means to be beyond, and what to do.
        after: real images to see before it is judged.
    """

    figure: str
    names: tuple[str, ...]
    low: float = -math.inf
    high: float = math.inf
    too_low: str = ""
    too_high: str = ""
    after: int = 5_000
    compute: Callable[..., float] = float
    since_start: bool = False


def healthy_ranges(config: TrainingConfig) -> list[Range]:
    """The table for a run. Bounds are wide: in two good runs on the synthetic birds no median came near one."""
    lower_d = "lower discriminator_learning_rate or raise penalty_weight"
    raise_d = "raise discriminator_learning_rate"
    check = "check that captions belong to their images"
    return [
        Range(
            "d_loss",
            ("d_loss",),
            low=0.2,
            high=2.5,
            too_low=f"the discriminator has won and hardly teaches any more; {lower_d}",
            too_high=f"the discriminator is worse than a constant (2.0); {lower_d}",
        ),
        Range(
            "d_real - d_fake",
            ("d_real", "d_fake"),
            compute=lambda real, fake: real - fake,
            low=0.05,
            high=4.0,
            too_low=f"the discriminator does not tell real from generated; {raise_d} or lower penalty_weight",
            too_high=f"the discriminator wins; {lower_d}",
        ),
        Range(
            "d_real - d_mismatch",
            ("d_real", "d_mismatch"),
            compute=lambda real, mismatch: real - mismatch,
            low=0.1,
            too_low=f"the discriminator ignores the text; {check}",
            after=20_000,
        ),
        Range(
            "d_penalty",
            ("d_penalty",),
            high=max(config.penalty_weight, 0.1) * config.penalty_interval,
            too_high="the discriminator's gradients are longer than 1; lower discriminator_learning_rate",
        ),
        *_similarity_range(config, check),
        Range(
            "d_grad_norm",
            ("d_grad_norm",),
            low=1e-6,
            high=1e3,
            too_low=f"the discriminator is not taught; {raise_d}",
            too_high="the discriminator's gradients explode; lower discriminator_learning_rate or set max_grad_norm",
        ),
        Range(
            "g_grad_norm",
            ("g_grad_norm",),
            low=1e-6,
            high=1e3,
            too_low="the generator is not taught; check generator_learning_rate and the precision",
            too_high="the generator's gradients explode; lower generator_learning_rate or set max_grad_norm",
        ),
    ]


def _similarity_range(config: TrainingConfig, check: str) -> list[Range]:
    """How high the similarity is depends on the CLIP; that it rises does not. A fine-tuned model may start high."""
    if not config.clip_loss_weight:
        return []
    fresh = config.pretrained_model_name_or_path is None
    return [
        Range(
            "clip_similarity since the start",
            ("clip_similarity",),
            low=0.02 if fresh else -0.05,
            too_low=f"the generator does not follow the text; {check}, or raise clip_loss_weight",
            after=20_000,
            since_start=True,
        )
    ]


class Health:
    """Watches a run's figures and warns once when the median over [`WINDOW`] lines leaves its range.

    It warns again only after the figure has come back. Nothing needs a checkpoint: fed with the lines of `log.jsonl`
    it is in the state it had when they were written.
    """

    def __init__(self, config: TrainingConfig):
        self.watches = [_Watch(entry) for entry in healthy_ranges(config)]

    def watch(self, images: int, figures: Mapping[str, float | None]) -> list[str]:
        """Take in one logged line and return the warnings it gives rise to, a sentence each.

        Args:
            images: real images seen.
            figures: numbers by name; None or what is not finite is passed over.
        """
        warnings = (watch.take(images, figures) for watch in self.watches)
        return [warning for warning in warnings if warning]


class _Watch:
    """One entry of the table, its latest values, and whether it is outside its range."""

    def __init__(self, entry: Range):
        self.entry, self.values = entry, deque(maxlen=WINDOW)
        self.start: list[float] = []
        self.outside = False

    def take(self, images: int, figures: Mapping[str, float | None]) -> str | None:
        entry = self.entry
        inputs = [figures.get(name) for name in entry.names]
        if any(value is None or not math.isfinite(value) for value in inputs):
            return None
        self.values.append(entry.compute(*inputs))
        if len(self.start) < 3:  # by more lines a similarity may have risen already
            self.start.append(self.values[-1])
        if len(self.values) < WINDOW or images < entry.after:
            return None
        value = median(self.values) - (median(self.start) if entry.since_start else 0.0)
        was, self.outside = self.outside, not entry.low <= value <= entry.high
        return self._warning(images, value) if self.outside and not was else None

    def _warning(self, images: int, value: float) -> str:
        entry = self.entry
        low = value < entry.low
        side, bound = ("below", entry.low) if low else ("above", entry.high)
        reason = entry.too_low if low else entry.too_high
        return (
            f"{entry.figure} is {value:.3g} at {images} images, {side} its healthy {bound:g}: {reason} "
            "(docs/healthy_run.md)"
        )


logger = logging.getLogger(__name__)

_PROJECT = "ratlip_hf"
_POSTFIX = {
    "d_real": "real",
    "d_fake": "fake",
    "d_mismatch": "mismatch",
    "d_penalty": "penalty",
    "clip_similarity": "clip",
}
_AVAILABLE = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
_PATIENCE = {True: 0.5, False: 60.0}  # seconds between states of the bar on a terminal and in a file


class Log:
    """A file with a JSON object per line, each with its "step". Lines after `step`, where a run resumes, are dropped.

    Figures that are not finite, for which JSON has no word, are written as null.
    """

    def __init__(self, path: Path, step: int):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            atomic_write(path, "".join(f"{json.dumps(record)}\n" for record in self._kept(step)))

    def write(self, record: dict) -> None:
        """Append a line; values may be nested objects."""
        with self.path.open("a") as file:
            file.write(json.dumps(_finite(record), allow_nan=False) + "\n")

    def read(self) -> list[dict]:
        """All lines."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.is_file() else []

    def _kept(self, step: int) -> list[dict]:
        kept = []
        for line in self.path.read_text().splitlines():
            # A kill may have cut the last line short; like all lines after `step` it is written again.
            with contextlib.suppress(json.JSONDecodeError):
                record = json.loads(line)
                kept += [record] if record["step"] <= step else []
        return kept


class Report:
    """Everything that the main process reports while it trains; a context manager, so that an error ends the bar.

    Args:
        output_dir: where `log.jsonl` and `evaluations.jsonl` grow.
        accelerator: made with [`tracker_arguments`]; its trackers are started here.
        config: the run's configuration.
        step, seen: how far the run is, 0 or what it resumes from.
    """

    def __init__(self, output_dir: Path, accelerator: Accelerator, config: TrainingConfig, step: int, seen: int):
        self.accelerator = accelerator
        self.figures = Log(output_dir / "log.jsonl", step)
        self.evaluations = Log(output_dir / "evaluations.jsonl", step)
        self.health = Health(config)
        for line in self.figures.read():  # a resumed run knows its past, and does not repeat its warnings
            self.health.watch(line["images"], line)
        _start_trackers(accelerator, config, step)
        self.bar = _make_bar(config.max_train_images, seen)
        self.open = contextlib.ExitStack()
        self.open.enter_context(self.bar)
        self.open.enter_context(logging_redirect_tqdm())
        self.started, self.first = time.monotonic(), seen

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def advance(self, images: int) -> None:
        """Move the bar by so many real images; the last step may go beyond its end."""
        self.bar.update(min(images, self.bar.total - self.bar.n))

    def log(self, step: int, seen: int, figures: Mapping[str, float]) -> None:
        """Write a line to `log.jsonl`, tell the trackers and the bar, and warn if a figure leaves its healthy range.

        Args:
            step, seen: steps and real images so far.
            figures: numbers or scalar tensors by name; `images_per_second` is added.
        """
        values = {name: float(value) for name, value in figures.items()}
        values["images_per_second"] = (seen - self.first) / max(time.monotonic() - self.started, 1e-9)
        rounded = {name: _shortened(value) for name, value in values.items()}
        rounded["images_per_second"] = round(values["images_per_second"], 1)
        self.figures.write({"step": step, "images": seen, **rounded})
        self.accelerator.log({**values, "images": seen}, step=step)
        shown = {short: f"{values[name]:.2f}" for name, short in _POSTFIX.items() if name in values}
        self.bar.set_postfix(shown, refresh=False)
        for warning in self.health.watch(seen, rounded):
            logger.warning("%s", warning)

    def evaluated(self, step: int, seen: int, scores: Mapping[str, float], protocol: Mapping) -> dict:
        """Write a line to `evaluations.jsonl`, tell the trackers, and say it; returns the line's content."""
        record = {"step": step, "images": seen, "scores": dict(scores), "protocol": dict(protocol)}
        self.evaluations.write(record)
        self.accelerator.log({f"evaluation/{name}": value for name, value in scores.items()}, step=step)
        logger.info("evaluation at %d images: %s", seen, "  ".join(f"{k} {v:.4g}" for k, v in scores.items()))
        return record

    def close(self) -> None:
        """End the bar and hand logging back; may be called twice."""
        self.open.close()


def tracker_arguments(config: TrainingConfig) -> dict:
    """Keyword arguments of `Accelerator` for `config.report_to`; empty without a tracker.

    Raises:
        UserError: when the tracker's package is not installed.
    """
    if config.report_to is None:
        return {}
    if not _AVAILABLE[config.report_to]():
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
    project = "tensorboard" if config.report_to == "tensorboard" else _PROJECT
    accelerator.init_trackers(project, _flat(config), {config.report_to: options[config.report_to]})


def _flat(config: TrainingConfig) -> dict[str, int | float | str | bool]:
    """The configuration in the only types that TensorBoard takes."""
    values = dataclasses.asdict(config).items()
    return {name: value if isinstance(value, int | float | str) else json.dumps(value) for name, value in values}


def _make_bar(total: int, seen: int) -> tqdm:
    """A bar in images. `miniters=1`, or tqdm would write more often than every `mininterval` into a file."""
    interval = _PATIENCE[sys.stderr.isatty()]
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
