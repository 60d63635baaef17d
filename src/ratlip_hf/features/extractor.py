"""What all feature extractors have in common: the check of the pictures, the call, and the identity.
Subclasses own a network, its preprocessing and the choice of its layer."""

import abc
from collections.abc import Sequence

import torch
from torch import nn

from ..utils.fingerprints import weights_sha256

# Half precision rounds 1 up by this much at most.
_OVERSHOOT = 1e-2


class FeatureExtractor(abc.ABC):
    """Callable on pictures [B, 3, H, W] in [-1, 1]; returns float32 features [B, dim] on the network's device.

    The network computes in the precision of its own weights, also within an autocast of the caller; whether a GPU may
    round to TF32 is left as torch has it set.

    Attributes:
        name: of the features; two extractors of one name may still have different weights.
        dim: width of the features.
        preprocessing: what happens to a picture before the network sees it, in words.
        network: in eval mode and without gradients.
    """

    preprocessing: str

    def __init__(self, network: nn.Module, name: str, dim: int):
        self.network, self.name, self.dim = network.requires_grad_(False).eval(), name, dim

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Raises ValueError for pictures of another shape, type or range: features of those mean nothing."""
        _check_images(images)
        with torch.autocast(self.device.type, enabled=False):
            return self._features(images.to(self.device).float()).float()

    @abc.abstractmethod
    def _features(self, images: torch.Tensor) -> torch.Tensor:
        """Features [B, dim] of float32 pictures on the network's device."""

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> "FeatureExtractor":
        """Move the network. Returns this object."""
        self.network.to(device)
        return self

    def fingerprint(self) -> str:
        """SHA-256 of the weights, independent of the file's format and the device."""
        return weights_sha256(self.network)

    def describe(self) -> dict[str, str | int]:
        """What a record keeps beside a score."""
        dtype = str(next(self.network.parameters()).dtype).removeprefix("torch.")
        facts = {"features": self.name, "dim": self.dim, "preprocessing": self.preprocessing, "dtype": dtype}
        return {**facts, "weights_sha256": self.fingerprint()}


def _check_images(images: torch.Tensor) -> None:
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        raise ValueError("pictures must be a tensor of floats in [-1, 1]; turn bytes into floats by x / 127.5 - 1")
    if images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        raise ValueError(f"pictures must be [B, 3, H, W], not {list(images.shape)}")
    low, high = images.aminmax()
    if not (low >= -1 - _OVERSHOOT and high <= 1 + _OVERSHOOT):  # written so that NaN is refused too
        raise ValueError(f"pictures must lie in [-1, 1], not in [{low:.4g}, {high:.4g}]; clamp generated ones")


def imagenet_normalized(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Pixels [B, 3, H, W] less `mean`, divided by `std`, per channel."""
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]
