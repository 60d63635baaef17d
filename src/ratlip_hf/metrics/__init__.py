"""Scores of generated images as pure functions of features: no network appears here.
What the features are and how many images there were is the caller's protocol, to be recorded with the score."""

# ruff: noqa: F401  what is imported is what the package offers
from pathlib import Path

from .common import Interval, Spread, clustered_mean, interval, student_t
from .kernels import (
    Origins,
    cmmd,
    cmmd_with_error,
    kernel_distance,
    kernel_distance_of_subsets,
    kernel_distance_with_error,
)
from .pixels import BANDS, power_by_band, steps_at_joints, steps_by_place
from .prompts import (
    UNNAMED,
    attribute_accuracy,
    attribute_hits,
    clip_score,
    prompt_diversity,
    r_precision,
    sample_mismatched,
    words_right,
)
from .sets import (
    FeatureStatistics,
    frechet_distance,
    frechet_distance_with_error,
    frechet_from_statistics,
    precision_recall,
    precision_recall_hits,
)

_MODULES = Path(__file__).parents[1] / "evaluate_modules"
EVALUATE_MODULES = tuple(sorted(path.stem for path in _MODULES.glob("*/*.py")))  # for the `evaluate` library


def evaluate_path(name: str) -> str:
    """Path of one of `EVALUATE_MODULES`, for `evaluate.load(evaluate_path("fid"))`, which then needs no network.
    Raises ValueError for another name."""
    if name not in EVALUATE_MODULES:
        raise ValueError(f"there is no evaluate module {name!r}; there are {', '.join(EVALUATE_MODULES)}")
    return str(_MODULES / name)
