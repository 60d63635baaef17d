"""Image embeddings of any CLIP.
Owns the choice of the embedding; loading is in `frozen_clip`, preprocessing in `models.clip`."""

import os

import torch
from transformers import CLIPModel, CLIPVisionModelWithProjection

from ..frozen_clip import load_clip
from ..models.clip import image_features_and_embeds
from .extractor import FeatureExtractor


class CLIPFeatures(FeatureExtractor):
    """Projected image embeddings of a CLIP, not normalised: for CMMD, CLIP score, KID and FID in its space.

    Args:
        image_encoder: the tower.
        name: under which scores record it.
    """

    preprocessing = "antialiased bicubic resize to the tower's size, CLIP's mean and std"

    def __init__(self, image_encoder: CLIPVisionModelWithProjection, name: str = "clip"):
        super().__init__(image_encoder, name, image_encoder.config.projection_dim)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike | CLIPModel, **kwargs) -> "CLIPFeatures":
        """The image tower of what [`~ratlip_hf.frozen_clip.load_clip`] loads, with its arguments and errors."""
        clip = load_clip(source, **kwargs)
        return cls(clip.image_encoder, f"clip:{clip.source}" + (f"@{clip.revision}" if clip.revision else ""))

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return image_features_and_embeds(self.network, images, layers=(0,))[1]
