"""Small helpers on tensors and networks: precision of sums and norms, eval mode for a while, hashes of weights."""

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import nn


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Half precision raised to float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@contextlib.contextmanager
def evaluating(*modules: torch.nn.Module) -> Iterator[None]:
    """Eval mode within the block; a training loop that samples from its own network gets it back as it was."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def weights_sha256(*networks: nn.Module) -> str:
    """Hash of the networks' names and values, one after the other; half precision counts by its values."""
    digest = hashlib.sha256()
    for network in networks:
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
