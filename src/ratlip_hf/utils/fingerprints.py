"""Identity of weights and files by SHA-256, as recorded beside runs and scores.
Owns what goes into the digest of a network: names and values, no device, format or precision."""

import hashlib
import os

from torch import nn


def weights_sha256(*networks: nn.Module) -> str:
    """Hash of the networks' names and values, one after the other; half precision counts by its values."""
    digest = hashlib.sha256()
    for network in networks:
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def file_sha256(path: str | os.PathLike) -> str:
    """Hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
