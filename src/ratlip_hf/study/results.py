"""What the records of a study say: means over seeds, and differences paired by seed with their t intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from ..evaluation.records import ScoreRecord, compare_records
from ..utils.display import as_markdown
from .plan import Table

# Quantiles 0.975 of Student's t with 1, 2, ... degrees of freedom (any table).
_T = (12.706, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)


@dataclass(frozen=True)
class Contrast:
    """The difference of two variants in one score, by seed; `low` and `high` are NaN for a single seed."""

    better: str
    baseline: str
    by_seed: dict[int, float]
    low: float
    high: float

    @property
    def mean(self) -> float:
        return mean(self.by_seed.values())

    @property
    def verdict(self) -> str:
        """In the words of the plan."""
        if math.isnan(self.low):
            return "one seed: no verdict"
        if self.low > 0:
            return "an effect: higher"
        return "an effect: lower" if self.high < 0 else "inconclusive"

    def __str__(self) -> str:
        """One line: the difference, its interval, each seed's, and the verdict."""
        interval = "" if math.isnan(self.low) else f", 95 % interval [{self.low:+.3f}, {self.high:+.3f}]"
        seeds = ", ".join(f"{value:+.3f}" for value in self.by_seed.values())
        return f"{self.better} - {self.baseline}: {self.mean:+.3f}{interval} (by seed {seeds}): {self.verdict}"


def by_seed(records: Sequence[ScoreRecord], variant: str, score: str) -> dict[int, float]:
    """The score of a variant's runs, of each seed the latest."""
    found = [record for record in records if record.candidate.get("variant") == variant and score in record.scores]
    return {record.candidate["seed"]: record.scores[score]["value"] for record in found}


def contrast(records: Sequence[ScoreRecord], better: str, baseline: str, score: str) -> Contrast | None:
    """Differences between runs of equal seeds with a 95 % t interval; None where no seed has both."""
    first, second = (by_seed(records, variant, score) for variant in (better, baseline))
    differences = {seed: first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())}
    if not differences:
        return None
    count, centre = len(differences), mean(differences.values())
    if count == 1:
        return Contrast(better, baseline, differences, math.nan, math.nan)
    half = _T[min(count - 2, len(_T) - 1)] * stdev(differences.values()) / math.sqrt(count)
    return Contrast(better, baseline, differences, centre - half, centre + half)


def describe_table(records: Sequence[ScoreRecord], table: Table, scores: Sequence[str]) -> str:
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
    lines = [str(found) for pair in table.contrasts if (found := contrast(records, *pair, scores[0]))]
    text = as_markdown(["model", "parameters (M)", "seeds", *scores], body)
    return "\n".join([text, *([""] if lines else []), *lines])


def _mean_and_spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    digits = 3 if abs(mean(values)) < 10 else 1
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"
