"""Networks in eval mode for a while.
Owns that every part gets back the mode it had, also after an error."""

import contextlib
from collections.abc import Iterator

import torch


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
