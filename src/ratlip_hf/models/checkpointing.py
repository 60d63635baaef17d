"""Gradient checkpointing for networks with BatchNorm: recompute activations in the backward pass, statistics once.
Plain checkpointing would move the running statistics a second time during the recomputation."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_module(module: nn.Module, *args) -> torch.Tensor:
    """module(*args) with its activations recomputed in the backward pass; BatchNorm buffers move only once."""
    return checkpoint(
        module,
        *args,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _untracked_statistics(module)),
    )


@contextlib.contextmanager
def _untracked_statistics(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm compute as before but leave its buffers where they are."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked -= 1
