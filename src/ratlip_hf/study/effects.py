"""How certain a difference between variants is: paired by seed, or as the effects of two factors over four cells, with
t intervals, a verdict that can also be "equivalent", and how many seeds that takes. Numbers only, no records."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np

from ..metrics import student_t


@dataclass(frozen=True)
class Effect:
    """A difference with its standard error, of so many degrees of freedom."""

    value: float
    error: float
    freedom: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Both ends of the t interval."""
        half = student_t(level, self.freedom) * self.error
        return self.value - half, self.value + half

    def verdict(self, margin: float | None) -> str:
        """One of "equivalent", "effect" and "inconclusive", in the words of the plan (docs/study.md).

        Equivalent is what two one-sided tests of 5 % each find within ± margin, that is, a 90 % interval inside
        (Schuirmann 1987), even where it leaves out zero: an effect too small to matter. Otherwise it is an effect if
        its 95 % interval excludes zero.
        """
        low, high = self.interval(0.90)
        if margin is not None and -margin < low and high < margin:
            return "equivalent"
        low, high = self.interval()
        return "effect" if low > 0 or high < 0 else "inconclusive"


def mean_effect(differences: Sequence[float]) -> Effect:
    """The mean of independent differences, at least two, one of each seed."""
    return Effect(mean(differences), stdev(differences) / math.sqrt(len(differences)), len(differences) - 1)


@dataclass(frozen=True)
class Factorial:
    """Effects of two factors: each one's own, averaged over the other, and how much the second changes the first.
    `deviation` is the standard deviation of a run beyond its seed and its cell, of `freedom` degrees."""

    first: Effect
    second: Effect
    interaction: Effect
    deviation: float
    freedom: int


def fit_factorial(values: Mapping[str, Mapping[int, float]], cells: Mapping[str, tuple[bool, bool]]) -> Factorial:
    """Least squares of value = seed + a x + b y + c x y, where x and y are 1/2 for cells with the factor, else -1/2.

    `values` are those of each cell by seed, of which some may be missing; `cells` says which factors a cell has. So a
    and b are differences averaged over the other factor, and c is the difference of the differences. With n seeds in
    all cells a and b have the standard error deviation / sqrt(n), c twice that, with 3 (n - 1) degrees of freedom.

    Raises:
        ValueError: if a cell has no run, or runs share too few seeds.
    """
    if empty := [cell for cell in cells if not values.get(cell)]:
        raise ValueError(f"the effects need runs of all cells; there is none of {', '.join(empty)}")
    points = [(cells[cell], seed, value) for cell in cells for seed, value in values[cell].items()]
    seeds = sorted({seed for _, seed, _ in points})
    levels = np.array([cell for cell, _, _ in points], dtype=float) - 0.5
    of_seed = np.array([[seed == other for other in seeds] for _, seed, _ in points], dtype=float)
    design = np.column_stack([levels, levels.prod(axis=1), of_seed])
    freedom = len(points) - design.shape[1]
    if np.linalg.matrix_rank(design) < design.shape[1] or freedom < 1:
        raise ValueError("the effects need more runs of equal seeds: two seeds in all four cells are enough")
    outcome = np.array([value for _, _, value in points])
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ outcome
    deviation = math.sqrt(np.square(outcome - design @ coefficients).sum() / freedom)
    errors = deviation * np.sqrt(np.diag(inverse))
    effects = [Effect(float(coefficients[i]), float(errors[i]), freedom) for i in range(3)]
    return Factorial(*effects, deviation, freedom)


def seeds_needed(deviation: float, margin: float, least: int, most: int) -> int | None:
    """Seeds in each of four cells, `least` to `most`, with which a factor without effect is found equivalent within
    ± `margin` four times in five, by the deviation of `fit_factorial`; None if `most` are too few.

    An effect as large as the margin is then found more often than that.
    """
    for count in range(least, most + 1):
        freedom = 3 * (count - 1)
        # Of the two one-sided tests of 5 %, each may fail one time in ten.
        reach = student_t(0.90, freedom) + student_t(0.80, freedom)
        if reach * deviation / math.sqrt(count) <= margin:
            return count
    return None
