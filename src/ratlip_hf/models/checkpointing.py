"""Gradient checkpointing for networks with BatchNorm: recompute activations in the backward pass, statistics once.
Plain checkpointing would move the running statistics a second time during the recomputation."""

import contextlib
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_module(module: nn.Module, *args, call: Callable[..., torch.Tensor] | None = None) -> torch.Tensor:
    """module(*args), or what `call`, a part of it, gives, with its activations recomputed in the backward pass.

    BatchNorm buffers of the module move only once.
    """
    return checkpoint(
        call or module,
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
        self.counts = [norm.num_batches_tracked.clone() for norm in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *_) -> None:
        for norm, momentum, count in zip(self.norms, self.momenta, self.counts, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)  # not one less: perhaps only some of the norms were called
