"""Plots what a training run has logged, with the healthy ranges shaded: log.jsonl, evaluations.jsonl, sample grids.
Usage: python examples/plot_run.py RUN_DIR --output_file PLOTS.png [--samples GRIDS.jpg]  (needs ratlip_hf[plots])"""

import argparse
import dataclasses
import json
import math
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from PIL import Image

from ratlip_hf.training.config import TrainingConfig
from ratlip_hf.training.monitor import WINDOW, Range, healthy_ranges

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#888888"
PANELS = (
    ("Logits of the discriminator", {"d_real": BLUE, "d_fake": ORANGE, "d_mismatch": GREEN}),
    ("Differences of its logits", {"d_real - d_fake": ORANGE, "d_real - d_mismatch": GREEN}),
    ("Loss of the discriminator", {"d_loss": BLUE}),
    ("Its gradient penalty", {"d_penalty": BLUE}),
    ("CLIP similarity of generated images", {"clip_similarity": BLUE}),
    ("Adversarial term of the generator", {"g_adversarial": BLUE}),
)
GRIDS, ROWS = 4, 3


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def read_config(run: Path) -> TrainingConfig:
    """The run's configuration; keys that this version does not know are left out."""
    known = {field.name for field in dataclasses.fields(TrainingConfig)}
    stored = json.loads((run / "config.json").read_text())
    return TrainingConfig(**{name: value for name, value in stored.items() if name in known})


def value_of(line: dict, metric: str) -> float:
    """A logged metric or the difference of two; NaN where it is missing."""
    return Range(metric).value(line)


def plot_metric(axes: Axes, lines: list[dict], metric: str, colour: str) -> None:
    """Single lines faint, the median over a window (which is what is judged) strong."""
    points = [(line["images"], value_of(line, metric)) for line in lines]
    points = [(images, value) for images, value in points if math.isfinite(value)]
    if not points:
        return
    images, values = zip(*points, strict=True)
    medians = [median(values[max(0, end - WINDOW) : end]) for end in range(1, len(values) + 1)]
    axes.plot(images, values, color=colour, alpha=0.18, linewidth=0.7)
    axes.plot(images, medians, color=colour, linewidth=1.8, label=metric)


def shade(axes: Axes, config: TrainingConfig, metrics: dict[str, str]) -> None:
    """Mark the ends of the healthy ranges of the panel's metrics."""
    for entry in healthy_ranges(config):
        if entry.label not in metrics:
            continue
        colour = metrics[entry.label] if len(metrics) > 1 else GREY
        for end in (entry.low, entry.high):
            if math.isfinite(end):
                axes.axhline(end, color=colour, linestyle=":", linewidth=1.4)


def plot_panel(axes: Axes, lines: list[dict], config: TrainingConfig, title: str, metrics: dict[str, str]) -> None:
    for metric, colour in metrics.items():
        plot_metric(axes, lines, metric, colour)
    if "d_penalty" in metrics:
        axes.set_yscale("log")
    shade(axes, config, metrics)
    if len(metrics) > 1:
        axes.legend(loc="best", fontsize=8, frameon=False)
    finish(axes, title)


def plot_evaluations(axes: Axes, lines: list[dict], score: str) -> None:
    points = [(line["images"], line["scores"].get(score)) for line in lines]
    points = [(images, value) for images, value in points if value is not None]
    axes.plot(*zip(*points, strict=True), "o-", color=BLUE, markersize=3)
    finish(axes, f"Quick evaluation: {score}")


def finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    axes.set_xlabel("real images seen", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def print_medians(run: Path) -> None:
    """Between which values the medians over full windows lay: the numbers in docs/healthy_run.md."""
    lines = read_lines(run / "log.jsonl")
    for metric in sorted({metric for _, metrics in PANELS for metric in metrics}):
        values = [value for value in (value_of(line, metric) for line in lines) if math.isfinite(value)]
        medians = [median(values[end - WINDOW : end]) for end in range(WINDOW, len(values) + 1)]
        if medians:
            print(f"{metric:22} {min(medians):8.2f} to {max(medians):.2f}")


def plot_metrics(run: Path, out: Path) -> None:
    lines, evaluations = read_lines(run / "log.jsonl"), read_lines(run / "evaluations.jsonl")
    config = read_config(run)
    scores = list(evaluations[0]["scores"]) if evaluations else []
    rows = math.ceil((len(PANELS) + len(scores)) / 3)
    figure, grid = plt.subplots(rows, 3, figsize=(12, 3 * rows), squeeze=False, layout="constrained")
    panels = iter(grid.flat)
    for title, metrics in PANELS:
        plot_panel(next(panels), lines, config, title, metrics)
    for score in scores:
        plot_evaluations(next(panels), evaluations, score)
    for spare in panels:
        spare.set_visible(False)
    figure.suptitle(f"faint: single lines; strong: median of {WINDOW}; dotted: end of the healthy range", fontsize=9)
    figure.savefig(out, dpi=90)
    # Curves need few colours, and the file becomes a third as large.
    Image.open(out).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(out, optimize=True)


def plot_samples(run: Path, out: Path) -> None:
    """The upper rows of a few of the run's sample grids, side by side: early ones closer together than late ones."""
    paths = sorted((run / "samples").glob("step-*.png"))
    chosen = [paths[round((len(paths) - 1) * (index / (GRIDS - 1)) ** 2)] for index in range(GRIDS)]
    per_step = {line["step"]: line["images"] for line in read_lines(run / "log.jsonl")}
    figure, grid = plt.subplots(1, GRIDS, figsize=(11, 2.4), layout="constrained")
    for axes, path in zip(grid, chosen, strict=True):
        image = Image.open(path)
        side = image.width // 8
        axes.imshow(image.crop((0, 0, 4 * side, ROWS * side)), interpolation="nearest")
        step = int(path.stem.removeprefix("step-"))
        axes.set_title(f"{per_step[step]:,} images" if step in per_step else f"step {step:,}", fontsize=10)
        axes.set_axis_off()
    figure.savefig(out, dpi=100, pil_kwargs={"quality": 90})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--output_file", type=Path, required=True, help="image of the plots")
    parser.add_argument("--samples", type=Path, help="image of sample grids over the run")
    options = parser.parse_args()
    plot_metrics(options.run_dir, options.output_file)
    print_medians(options.run_dir)
    if options.samples:
        plot_samples(options.run_dir, options.samples)


if __name__ == "__main__":
    main()
