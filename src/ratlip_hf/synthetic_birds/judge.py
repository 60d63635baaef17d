"""Judges: small networks that tell the attributes of a synthetic bird from its image, trained apart from every CLIP
(by examples/synthetic_birds/train_judge.py)."""

import os

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from .. import bundled
from ..evaluation.features import FeatureExtractor
from .attributes import FIELD_VOCABULARIES, PARTS

_SIZE = 64
_STRIDES = (2, 2, 1, 2, 2)


class BirdJudge(ModelMixin, ConfigMixin):
    """Convolutional classifier of images [B, 3, S, S] in [-1, 1]: logits [B, words of the field] for each field.

    S is 64, or a multiple of it: then the network reads means of squares of pixels. `reads` are fields of
    `BirdAttributes`; words stand in the order of their vocabularies. The default is colours.
    Raises `ValueError` for images of another shape.
    """

    @register_to_config
    def __init__(self, widths: tuple[int, ...] = (24, 48, 64, 96, 96), reads: tuple[str, ...] = PARTS):
        super().__init__()
        layers, before = [], 3
        for width, stride in zip(widths, _STRIDES, strict=True):
            convolution = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.layers = nn.Sequential(*layers)
        self.words = [len(FIELD_VOCABULARIES[name]) for name in reads]
        self.head = nn.Linear(before * 16, sum(self.words))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.head(self.features(images)).split(self.words, dim=1)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What the last layer reads, [B, 16 * widths[-1]]."""
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or images.shape[3] % _SIZE:
            raise ValueError(
                f"the judge reads images [B, 3, S, S] with S a multiple of {_SIZE}; got {list(images.shape)}"
            )
        if (ratio := images.shape[3] // _SIZE) > 1:
            images = F.avg_pool2d(images, ratio)
        return self.layers(images).flatten(1)

    @torch.no_grad()
    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Return the most likely words [B, fields] of images [B, 3, S, S] in [-1, 1], as indices."""
        parts = [[logits.argmax(1) for logits in self(part)] for part in images.split(256)]
        return torch.cat([torch.stack(words, dim=1) for words in parts])


class BirdJudgeFeatures(FeatureExtractor):
    """What a judge's last linear layer reads: its maps [width, 4, 4], flattened; for images as it reads them.

    Trained to tell three colours on noisy and shifted birds, these features hold colours and their places well, and
    little of what else an image shows.

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
