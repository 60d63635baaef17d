"""Exponential moving average of a network, weights and buffers: what is saved, sampled and evaluated.
A full copy of the module rather than a list of parameters, so that BatchNorm statistics are never forgotten."""

import copy

import torch
from torch import nn


class EMA:
    """Running average of `module`; `self.module` is an ordinary module in eval mode.

    The decay starts low, as (1 + n) / (10 + n) after n updates, so that the first weights are soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards the present state of `module`; integers (step counters) are copied."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        current = module.state_dict()
        for name, average in self.module.state_dict().items():
            value = current[name].to(average.device)
            if average.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)

    def state_dict(self) -> dict:
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]
