"""Feature extractors: images [B, 3, H, W] in [-1, 1] to the vectors [B, d] that `metrics` compares. Each knows its
preprocessing and the hash of its weights; here are CLIP and DINOv2, `inception.py` has the network of FID."""

import abc
import os

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPModel, CLIPVisionModelWithProjection, Dinov2Model
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..clip import image_features_and_embeds, load_clip
from ..utils.errors import one_line
from ..utils.tensors import at_least_float32, weights_sha256

_OVERSHOOT = 1e-2  # half precision rounds 1 up by this much at most
_DINOV2_SIZE = 224


class FeatureExtractor(abc.ABC):
    """Callable on images [B, 3, H, W] in [-1, 1]; returns float32 features [B, dim] on the network's device.

    The network computes in the precision of its own weights, also within an autocast of the caller; whether a GPU may
    round to TF32 is left as torch has it set.

    Attributes:
        name: of the features; two extractors of one name may still have different weights.
        dim: width of the features.
        preprocessing: what happens to an image before the network sees it, in words.
        network: in eval mode and without gradients.
    """

    preprocessing: str

    def __init__(self, network: nn.Module, name: str, dim: int):
        self.network, self.name, self.dim = network.requires_grad_(False).eval(), name, dim

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Raises ValueError for images of another shape, type or range: features of those mean nothing."""
        _check_images(images)
        with torch.autocast(self.device.type, enabled=False):
            return self._features(images.to(self.device).float()).float()

    @abc.abstractmethod
    def _features(self, images: torch.Tensor) -> torch.Tensor:
        """Features [B, dim] of float32 images on the network's device."""

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> "FeatureExtractor":
        """Move the network. Returns this object."""
        self.network.to(device)
        return self

    def describe(self) -> dict[str, str | int]:
        """What a record keeps with a score."""
        dtype = str(next(self.network.parameters()).dtype).removeprefix("torch.")
        facts: dict[str, str | int] = {
            "features": self.name,
            "dim": self.dim,
            "preprocessing": self.preprocessing,
            "dtype": dtype,
        }
        return {**facts, "weights_sha256": weights_sha256(self.network)}


def _check_images(images: torch.Tensor) -> None:
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        raise ValueError("images must be a tensor of floats in [-1, 1]; turn bytes into floats by x / 127.5 - 1")
    if images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        raise ValueError(f"images must be [B, 3, H, W], not {list(images.shape)}")
    low, high = images.aminmax()
    if not (low >= -1 - _OVERSHOOT and high <= 1 + _OVERSHOOT):  # written so that NaN is refused too
        raise ValueError(f"images must lie in [-1, 1], not in [{low:.4g}, {high:.4g}]; clamp generated ones")


class CLIPFeatures(FeatureExtractor):
    """Projected image embeddings of a CLIP, not normalised: for CMMD, CLIP score, KID and FID in its space. Scores
    record it under its name."""

    preprocessing = "antialiased bicubic resize to the tower's size, CLIP's mean and std"

    def __init__(self, image_encoder: CLIPVisionModelWithProjection, name: str = "clip"):
        super().__init__(image_encoder, name, image_encoder.config.projection_dim)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike | CLIPModel, **kwargs) -> "CLIPFeatures":
        """The image tower of what [`~ratlip_hf.clip.load_clip`] loads, with its arguments and errors."""
        clip = load_clip(source, **kwargs)
        return cls(clip.image_encoder, f"clip:{clip.source}" + (f"@{clip.revision}" if clip.revision else ""))

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return image_features_and_embeds(self.network, images, layers=(0,))[1]


class DINOv2Features(FeatureExtractor):
    """The class token after the last LayerNorm, as for the Fréchet distance of Stein et al. (2023)."""

    preprocessing = f"antialiased bicubic resize to {_DINOV2_SIZE}, ImageNet's mean and std"

    def __init__(self, network: Dinov2Model, name: str = "dinov2"):
        super().__init__(network, name, network.config.hidden_size)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, **kwargs) -> "DINOv2Features":
        """Load a repository, for example "facebook/dinov2-large", or a folder; `kwargs` are passed to transformers.
        Raises ValueError when nothing loadable lies there, or weights are missing."""
        try:
            network, info = Dinov2Model.from_pretrained(source, output_loading_info=True, **kwargs)
        except OSError as error:
            raise ValueError(f"no DINOv2 could be loaded from {str(source)!r}: {one_line(error)}") from error
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"{source} lacks {len(missing)} weight(s) of DINOv2, for example {missing[0]}")
        revision = getattr(network.config, "_commit_hash", None)
        return cls(network, f"dinov2:{source}" + (f"@{revision}" if revision else ""))

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        pixels, size = at_least_float32(images + 1) / 2, (_DINOV2_SIZE, _DINOV2_SIZE)
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=True)
        mean, std = (pixels.new_tensor(x)[:, None, None] for x in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        dtype = next(self.network.parameters()).dtype
        return self.network(((pixels - mean) / std).to(dtype)).last_hidden_state[:, 0]
