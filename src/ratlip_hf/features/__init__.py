"""Feature extractors: pictures [B, 3, H, W] in [-1, 1] to the vectors [B, d] that `metrics` compares.
Owns the networks' preprocessing and identity; each extractor tells its weights' hash, to be recorded with a score."""

from .clip import CLIPFeatures
from .dinov2 import DINOv2Features
from .extractor import FeatureExtractor
from .inception import InceptionFeatures
from .judge import BirdJudgeFeatures

__all__ = ["BirdJudgeFeatures", "CLIPFeatures", "DINOv2Features", "FeatureExtractor", "InceptionFeatures"]
