"""Makes the figures of docs/study.md from the records in docs/records; needs ratlip_hf[plots].
Usage: python docs/figures.py, or `make figures`."""

import json
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from ratlip_hf.evaluation.records import ScoreRecord, read_records
from ratlip_hf.study.plan import TABLES, Variant
from ratlip_hf.study.results import by_seed

DOCS = Path(__file__).parent
RECORDS, IMAGES = DOCS / "records", DOCS / "images"
COLOURS = {"cat": "#888888", "rat": "#0072b2", "rat_sa": "#d55e00"}
PANELS = {
    "attribute_accuracy": "Colours right (the outcome)",
    "accuracy_crown": "crown",
    "accuracy_belly": "belly",
    "accuracy_wing": "wing",
    "fid_judge": "FID in judge features",
    "clip_score": "CLIP score, held-out CLIP",
}


def plot_points(axes: Axes, records: list[ScoreRecord], variants: tuple[Variant, ...], score: str) -> None:
    """Every seed a point, seeds joined by thin lines, means as bars."""
    seeds = defaultdict(list)
    for place, variant in enumerate(variants):
        found = by_seed(records, variant.name, score)
        if not found:
            continue
        colour = COLOURS.get(variant.name, "#009e73")
        axes.plot([place] * len(found), list(found.values()), "o", color=colour, markersize=7, zorder=3)
        mean = sum(found.values()) / len(found)
        axes.plot([place - 0.25, place + 0.25], [mean, mean], color=colour, linewidth=2.5)
        for seed, value in found.items():
            seeds[seed].append((place, value))
    for points in seeds.values():
        axes.plot(*zip(*points, strict=True), color="#bbbbbb", linewidth=0.8, zorder=1)
    axes.set_xticks(range(len(variants)), [variant.name for variant in variants])
    axes.set_xlim(-0.5, len(variants) - 0.5)
    axes.set_title(PANELS[score], fontsize=10)


def plot_outcomes() -> None:
    """`images/study.png`: outcome and side measures of every run."""
    records = read_records(RECORDS / "study_birds.jsonl")
    made = {record.candidate["variant"] for record in records}
    variants = tuple(variant for variant in TABLES["table3"].variants if variant.name in made)
    figure, panels = plt.subplots(2, 3, figsize=(10, 6), layout="constrained")
    for axes, score in zip(panels.flat, PANELS, strict=True):
        plot_points(axes, records, variants, score)
    figure.suptitle("One point per run, grey lines join equal seeds, bars are means", fontsize=10)
    figure.savefig(IMAGES / "study.png", dpi=110)


def plot_curves() -> None:
    """`images/study_curves.png`: quick evaluations along the runs."""
    lines = [json.loads(line) for line in (RECORDS / "study_birds_curves.jsonl").read_text().splitlines()]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for variant in TABLES["table3"].variants:
        runs = defaultdict(list)
        for line in lines:
            if line["variant"] == variant.name:
                runs[line["seed"]].append((line["images"], line["scores"]["attribute_accuracy"]))
        for number, points in enumerate(runs.values()):
            label = variant.label if not number else None
            axes.plot(*zip(*points, strict=True), color=COLOURS[variant.name], linewidth=1.4, alpha=0.8, label=label)
    axes.set_xlabel("real images seen")
    axes.set_ylabel("colours right, 256 held-out prompts")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(IMAGES / "study_curves.png", dpi=110)


if __name__ == "__main__":
    plot_outcomes()
    plot_curves()
