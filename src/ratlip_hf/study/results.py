"""What the records of a study say: means over seeds, differences paired by seed, and effects over four cells."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from ..evaluation.records import ScoreRecord, compare_records
from ..utils.display import as_markdown
from .effects import Effect, Factorial, fit_factorial, mean_effect, seeds_needed
from .plan import Dataset, Table, Variant

MOST_SEEDS = 12  # of each cell, however large the spread turns out (docs/study.md)


@dataclass(frozen=True)
class Contrast:
    """The difference of two variants in one score, by seed."""

    better: str
    baseline: str
    by_seed: dict[int, float]

    @property
    def mean(self) -> float:
        return mean(self.by_seed.values())

    @property
    def effect(self) -> Effect | None:
        """None for a single seed, which does not say how certain it is."""
        return mean_effect(list(self.by_seed.values())) if len(self.by_seed) > 1 else None

    @property
    def interval(self) -> tuple[float, float]:
        """Of 95 %; NaN for a single seed."""
        return self.effect.interval() if self.effect else (math.nan, math.nan)

    def describe(self, margin: float | None = None) -> str:
        """One line: the difference, its interval, each seed's, and the verdict."""
        seeds = ", ".join(f"{value:+.3f}" for value in self.by_seed.values())
        interval = f", 95 % interval {_between(self.interval)}" if self.effect else ""
        verdict = self.effect.verdict(margin) if self.effect else "one seed: no verdict"
        return f"{self.better} - {self.baseline}: {self.mean:+.3f}{interval} (by seed {seeds}): {verdict}"


def by_seed(records: Sequence[ScoreRecord], variant: str, score: str) -> dict[int, float]:
    """The score of a variant's runs, of each seed the latest."""
    found = [record for record in records if record.candidate.get("variant") == variant and score in record.scores]
    return {record.candidate["seed"]: record.scores[score]["value"] for record in found}


def contrast(records: Sequence[ScoreRecord], better: str, baseline: str, score: str) -> Contrast | None:
    """Differences between runs of equal seeds; None where no seed has both."""
    first, second = (by_seed(records, variant, score) for variant in (better, baseline))
    differences = {seed: first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())}
    return Contrast(better, baseline, differences) if differences else None


def describe_table(
    records: Sequence[ScoreRecord], table: Table, scores: Sequence[str], margin: float | None = None
) -> str:
    """The table and its contrasts in the first of the scores, as text; systems that are no variants come last.

    A row has label, generator's parameters in millions, number of seeds, and each score as mean ± standard deviation
    over seeds; variants without a record have none. Raises ValueError for records of different protocols, whose values
    do not belong into one table.
    """
    for record in records[1:]:
        compare_records(records[0], record)
    sizes = {record.candidate["variant"]: record.candidate.get("parameters") for record in records}
    labels = {variant.name: variant.label for variant in table.variants}
    body = []
    others = {name: name for name in sizes if name not in labels}
    for name, label in (labels | others).items():
        columns = [by_seed(records, name, score) for score in scores]
        if any(columns):
            size = f"{sizes[name] / 1e6:.2f}" if sizes[name] else "-"
            seeds = str(max(map(len, columns)))
            body.append([label, size, seeds, *(_mean_and_spread(list(column.values())) for column in columns)])
    found = (contrast(records, *pair, scores[0]) for pair in table.contrasts)
    lines = [each.describe(margin) for each in found if each]
    text = as_markdown(["model", "parameters (M)", "seeds", *scores], body)
    return "\n".join([text, *([""] if lines else []), *lines])


def describe_published(
    table: Table, dataset: Dataset, variants: Sequence[Variant], counts: Mapping[str, tuple[float, float]]
) -> str:
    """The paper's numbers beside the variants and systems that they are of, as a table.

    GPs and TPs are as in Table II: parameters in units of 2^20, of the generator with its CLIP tower and of both
    networks together; ours, by `counts`, and those of the paper.
    """
    names = {variant.name: variant.label for variant in variants} | {name: name for name in table.systems}
    body = []
    for name, label in names.items():
        row = table.published.get(name)
        ours = [f"{count:.2f}" for count in counts[name]] if name in counts else ["-", "-"]
        theirs = row.parameters if row and row.parameters and row.scores(dataset.name) else ("-", "-")
        said = row.scores(dataset.name) if row else ""
        body.append([label, name, *ours, *theirs, f'{said} ("{row.name}")' if said else "-"])
    return as_markdown(["model", "name", "GPs", "TPs", "GPs, paper", "TPs, paper", "published"], body)


def missing_runs(
    records: Sequence[ScoreRecord], table: Table, variants: Sequence[Variant], seeds: Sequence[int], score: str
) -> list[str]:
    """A line for each variant that lacks seeds, and for systems without images."""
    lines = []
    for variant in variants:
        found = by_seed(records, variant.name, score)
        if absent := [str(seed) for seed in seeds if seed not in found]:
            lines.append(f"No {score} of {variant.name} with seed {', '.join(absent)}.")
    if absent := [name for name in table.systems if not by_seed(records, name, score)]:
        lines.append(f"No {score} of {', '.join(absent)}: give images by --images_dir NAME=FOLDER.")
    return lines


def fit_table(records: Sequence[ScoreRecord], table: Table, score: str) -> Factorial:
    """The effects of a table's two factors on a score. Raises ValueError where too few runs are there."""
    return fit_factorial({cell: by_seed(records, cell, score) for cell in table.cells}, table.cells)


def describe_effects(records: Sequence[ScoreRecord], table: Table, score: str, margin: float | None) -> str:
    """The effects of a table's two factors with their verdicts, as text; or why there are none."""
    try:
        fit = fit_table(records, table, score)
    except ValueError as error:
        return f"No effects on {score}: {error}."
    runs = [by_seed(records, cell, score) for cell in table.cells]
    first, second = table.factors
    effects = {first: fit.first, second: fit.second, f"{first} x {second}": fit.interaction}
    body = []
    for name, effect in effects.items():
        intervals = [_between(effect.interval(level), 4) for level in (0.95, 0.90)]
        body.append([name, f"{effect.value:+.4f}", *intervals, effect.verdict(margin)])
    within = "" if margin is None else f", margin {margin}"
    lines = [
        f"Effects on {score}: {sum(map(len, runs))} runs, a run's standard deviation beyond seed and cell "
        f"{fit.deviation:.4f} ({fit.freedom} degrees of freedom){within}",
        "",
        as_markdown(["effect", "difference", "95 % interval", "90 % interval", "verdict"], body),
    ]
    complete = len(set.intersection(*(set(run) for run in runs)))
    if complete < table.seeds:
        lines += ["", f"{complete} seeds have all cells, of at least {table.seeds} planned: not the verdict yet."]
    return "\n".join(lines)


def describe_spread(records: Sequence[ScoreRecord], table: Table, score: str, margin: float) -> str:
    """How far runs of one cell differ and how many seeds that asks for, without a word on any effect."""
    try:
        fit = fit_table(records, table, score)
    except ValueError as error:
        return f"No spread of {score}: {error}."
    needed = seeds_needed(fit.deviation, margin, table.seeds, MOST_SEEDS)
    asks = f"{needed} seeds" if needed else f"more than {MOST_SEEDS} seeds: make {MOST_SEEDS}"
    return (
        f"A run's standard deviation of {score} beyond seed and cell: {fit.deviation:.4f} "
        f"({fit.freedom} degrees of freedom). A margin of {margin} asks for {asks} of each cell."
    )


def _between(ends: tuple[float, float], digits: int = 3) -> str:
    return f"[{ends[0]:+.{digits}f}, {ends[1]:+.{digits}f}]"


def _mean_and_spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    digits = 3 if abs(mean(values)) < 10 else 1
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"
