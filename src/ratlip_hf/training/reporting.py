"""What a running training tells its owner: `log.jsonl`, trackers, a progress bar, and warnings about its health.
Owns the two growing files and how figures are written; what is healthy is said in `health`."""

import contextlib
import dataclasses
import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, is_wandb_available
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..utils.errors import UserError
from ..utils.files import atomic_write
from .config import TrainingConfig
from .health import Health

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
