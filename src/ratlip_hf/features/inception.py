"""Features of the Inception-v3 that the Fréchet inception distance is defined by.
Owns the weight file's identity, its loading, and the way from a picture to the network's input."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download

from ..utils.fingerprints import file_sha256
from .extractor import FeatureExtractor
from .inception_network import InceptionNetwork, resize_like_tensorflow1

WEIGHTS_NAME = "weights-inception-2015-12-05-6726825d.pth"
# The first digits of the file's SHA-256, which torch-fidelity's releases put into its name.
WEIGHTS_SHA256 = "6726825d"

_SIZE = 299


class InceptionFeatures(FeatureExtractor):
    """Pooled features [B, 2048] of the network of 2015 whose weights torch-fidelity distributes.

    Pictures are rounded to bytes first, as if they had been saved, then resized to 299 x 299 bilinearly the way of
    TensorFlow 1 and scaled by (x - 128) / 128.

    The graph was written from its description (Szegedy et al. 2016 and the published FID graph: average pooling that
    does not count padding, maximum pooling in the last block, 1008 classes). With random weights it agrees with
    torch-fidelity 0.4.0. With the real weights, which could not be had offline, agreement has not been verified.

    Args:
        network: with its weights.
        name: under which scores record it.
        released: what the authors' evaluation does instead (method section 7b, pytorch-fid): unrounded pictures,
            torch's bilinear resize, [-1, 1].
    """

    def __init__(self, network: InceptionNetwork, name: str = "inception-2015-12-05", released: bool = False):
        super().__init__(network, name, network.fc.in_features)
        self.released = released

    @property
    def preprocessing(self) -> str:
        if self.released:
            return f"bilinear resize to {_SIZE}, [-1, 1]"
        return f"rounded to bytes, bilinear resize to {_SIZE} as in TensorFlow 1, (x - 128) / 128"

    @classmethod
    def from_file(
        cls, path: str | os.PathLike, sha256: str = WEIGHTS_SHA256, released: bool = False
    ) -> "InceptionFeatures":
        """Load torch-fidelity's weight file.

        Args:
            path: of the file, named `WEIGHTS_NAME` where torch-fidelity publishes it.
            sha256: the file's SHA-256 or its first digits; a file with another is not opened.
            released: see the class.

        Raises:
            ValueError: for no file, a file of other content, or weights that do not fit the network.
        """
        if not Path(path).is_file():
            raise ValueError(f"{path} is no file; {WEIGHTS_NAME} is to be had from torch-fidelity's releases")
        found = file_sha256(path)
        if not sha256 or not found.startswith(sha256.lower()):
            raise ValueError(f"{path} is not the file that is wanted: its SHA-256 is {found}, not {sha256 or 'given'}")
        network = InceptionNetwork()
        _load(network, torch.load(path, map_location="cpu", weights_only=True), path)
        return cls(network, released=released)

    @classmethod
    def from_hub(
        cls, repo_id: str, filename: str = WEIGHTS_NAME, sha256: str = WEIGHTS_SHA256, **kwargs
    ) -> "InceptionFeatures":
        """Load the file from a repository on the Hub or from its cache; `kwargs` as of `hf_hub_download`.

        Raises:
            ValueError: as [`from_file`], and when there is no such file.
        """
        try:
            path = hf_hub_download(repo_id, filename, **kwargs)
        except OSError as error:
            raise ValueError(f"{repo_id} gives no {filename}: {str(error).splitlines()[0]}") from error
        return cls.from_file(path, sha256)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        if self.released:
            return self.network(F.interpolate(images, (_SIZE, _SIZE), mode="bilinear", align_corners=False))
        pixels = ((images + 1) * 127.5).round().clamp(0, 255)
        return self.network((resize_like_tensorflow1(pixels, _SIZE) - 128) / 128)


def _load(network: InceptionNetwork, weights: Mapping[str, torch.Tensor], path: str | os.PathLike) -> None:
    # Counters of training steps, which older files lack and no feature depends on.
    wanted = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    given = {name for name in weights if not name.endswith("num_batches_tracked")}
    if wrong := sorted(wanted ^ given):
        raise ValueError(f"{path} does not fit the network: {len(wrong)} weights differ, for example {wrong[0]}")
    for name, value in network.state_dict().items():
        if name in wanted and value.shape != weights[name].shape:
            shapes = f"{list(weights[name].shape)}, not {list(value.shape)}"
            raise ValueError(f"{path} does not fit the network: {name} has shape {shapes}")
    network.load_state_dict({name: weights[name] for name in wanted}, strict=False)
