"""Features of the judges of the synthetic birds, which ship with the package and know nothing of any CLIP.
Owns the choice of the layer; the judges are in `synthetic_birds.judge`."""

import os

import torch

from .. import bundled
from ..synthetic_birds.judge import BirdJudge
from .extractor import FeatureExtractor


class BirdJudgeFeatures(FeatureExtractor):
    """What a judge's last linear layer reads: its maps [width, 4, 4], flattened. Pictures must be 64 x 64.

    Trained to read three colours off noisy and shifted birds, these features see colours and their places well, and
    are blind to part of what else a picture holds.

    Args:
        judge: the network.
        name: under which scores record it.
    """

    preprocessing = "none"

    def __init__(self, judge: BirdJudge, name: str = "bird-judge"):
        super().__init__(judge, name, judge.head.in_features)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike | None = None) -> "BirdJudgeFeatures":
        """Load a judge's folder; the first bundled one by default."""
        source = bundled.judge_dirs()[0] if source is None else source
        return cls(BirdJudge.from_pretrained(source), f"bird-judge:{os.path.basename(os.fspath(source))}")

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.features(images)
