"""Gradient checkpointing for networks with BatchNorm: recompute activations in the backward pass, statistics once.
Plain checkpointing would move the running statistics a second time during the recomputation."""

import contextlib

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_module(module: nn.Module, *args) -> torch.Tensor:
    """module(*args) with its activations recomputed in the backward pass; BatchNorm buffers move only once."""
    return checkpoint(
        module,
        *args,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), untracked_statistics(module)),
    )


class untracked_statistics:
    """Lets BatchNorm compute as before but leaves its buffers where they are.

    May be entered again and again: a second backward pass (the gradient penalty's) recomputes once more.
    """

    def __init__(self, module: nn.Module):
        self.norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
        self.momenta = [norm.momentum for norm in self.norms]

    def __enter__(self) -> None:
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *_) -> None:
        for norm, momentum in zip(self.norms, self.momenta, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked -= 1
