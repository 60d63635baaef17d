"""Features of DINOv2, a network trained on pictures alone.
Owns its preprocessing and the choice of the class token."""

import os

import torch
import torch.nn.functional as F
from transformers import Dinov2Model
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..utils.precision import at_least_float32
from .extractor import FeatureExtractor, imagenet_normalized

_SIZE = 224


class DINOv2Features(FeatureExtractor):
    """The class token after the last LayerNorm, as for the Fréchet distance of Stein et al. (2023).

    Args:
        network: DINOv2.
        name: under which scores record it.
    """

    preprocessing = f"antialiased bicubic resize to {_SIZE}, ImageNet's mean and std"

    def __init__(self, network: Dinov2Model, name: str = "dinov2"):
        super().__init__(network, name, network.config.hidden_size)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, **kwargs) -> "DINOv2Features":
        """Load a repository, for example "facebook/dinov2-large", or a folder; `kwargs` are passed to transformers.

        Raises:
            ValueError: when nothing loadable lies there, or weights are missing.
        """
        try:
            network, info = Dinov2Model.from_pretrained(source, output_loading_info=True, **kwargs)
        except OSError as error:
            raise ValueError(
                f"no DINOv2 could be loaded from {str(source)!r}: {str(error).splitlines()[0]}"
            ) from error
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"{source} lacks {len(missing)} weight(s) of DINOv2, for example {missing[0]}")
        revision = getattr(network.config, "_commit_hash", None)
        return cls(network, f"dinov2:{source}" + (f"@{revision}" if revision else ""))

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        pixels = at_least_float32(images + 1) / 2
        if pixels.shape[-2:] != (_SIZE, _SIZE):
            pixels = F.interpolate(pixels, (_SIZE, _SIZE), mode="bicubic", align_corners=False, antialias=True)
        pixels = imagenet_normalized(pixels, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        return self.network(pixels.to(self.network.dtype)).last_hidden_state[:, 0]
