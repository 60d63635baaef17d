"""Feature extractors: images [B, 3, H, W] in [-1, 1] to the vectors [B, d] that `metrics` compares.
Owns the networks' preprocessing and identity; each extractor tells its weights' hash, to be recorded with a score."""

from ..evaluation.features import BirdJudgeFeatures, CLIPFeatures, DINOv2Features, FeatureExtractor
from ..evaluation.inception import InceptionFeatures

__all__ = ["BirdJudgeFeatures", "CLIPFeatures", "DINOv2Features", "FeatureExtractor", "InceptionFeatures"]
