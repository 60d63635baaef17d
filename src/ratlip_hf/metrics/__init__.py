"""Scores of generated images as pure functions of features: no network and no image appears here.
What the features are and how many images there were is the caller's protocol, to be recorded with the score."""

from .common import Interval, Spread, bootstrap_interval
from .evaluate_paths import EVALUATE_MODULES, evaluate_path
from .kernels import cmmd, cmmd_with_error, kernel_distance, kernel_distance_of_subsets, kernel_distance_with_error
from .prompts import (
    AttributeAccuracy,
    CLIPScore,
    PromptDiversity,
    RPrecision,
    attribute_accuracy,
    clip_score,
    draw_mismatched,
    prompt_diversity,
    r_precision,
)
from .sets import (
    FeatureStatistics,
    PrecisionRecall,
    frechet_distance,
    frechet_distance_with_error,
    frechet_from_statistics,
    precision_recall,
    precision_recall_hits,
)

__all__ = [
    "EVALUATE_MODULES",
    "AttributeAccuracy",
    "CLIPScore",
    "FeatureStatistics",
    "Interval",
    "PrecisionRecall",
    "PromptDiversity",
    "RPrecision",
    "Spread",
    "attribute_accuracy",
    "bootstrap_interval",
    "clip_score",
    "cmmd",
    "cmmd_with_error",
    "draw_mismatched",
    "evaluate_path",
    "frechet_distance",
    "frechet_distance_with_error",
    "frechet_from_statistics",
    "kernel_distance",
    "kernel_distance_of_subsets",
    "kernel_distance_with_error",
    "precision_recall",
    "precision_recall_hits",
    "prompt_diversity",
    "r_precision",
]
