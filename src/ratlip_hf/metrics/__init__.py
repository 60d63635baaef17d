"""Scores of generated pictures as pure functions of features: no network and no picture appears here.
What the features are and how many pictures there were is the caller's protocol, to be recorded with the score."""

from .attribute_accuracy import AttributeAccuracy, attribute_accuracy
from .bootstrap import Interval, Spread, bootstrap_interval
from .clip_score import CLIPScore, clip_score
from .cmmd import cmmd, cmmd_with_error
from .evaluate_paths import EVALUATE_MODULES, evaluate_path
from .frechet import (
    FeatureStatistics,
    frechet_distance,
    frechet_distance_with_error,
    frechet_from_statistics,
)
from .kernel_distance import (
    kernel_distance,
    kernel_distance_of_subsets,
    kernel_distance_with_error,
)
from .precision_recall import PrecisionRecall, precision_recall, precision_recall_hits
from .prompt_diversity import PromptDiversity, prompt_diversity
from .r_precision import RPrecision, draw_mismatched, r_precision

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
