"""What a healthy run looks like, in numbers: the range of each figure, what leaving it means, what to do then.
Owns that table and the watch over it; `docs/healthy_run.md` explains the same in words."""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

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
    check = "check that captions belong to their pictures"
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
    if not config.similarity_weight:
        return []
    fresh = config.pretrained_model_name_or_path is None
    return [
        Range(
            "clip_similarity since the start",
            ("clip_similarity",),
            low=0.02 if fresh else -0.05,
            too_low=f"the generator does not follow the text; {check}, or raise similarity_weight",
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
