"""How one network is moved: optimizer, learning rate, loss scale, gradient clipping.
And the exponential moving average (EMA) of the generator, which is what gets saved, sampled and evaluated."""

import copy

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..utils.errors import UserError
from .config import TrainingConfig


class Optimization:
    """Everything between a loss and moved weights, with a state that a checkpoint holds.

    The optimizer comes at its full learning rate. Losses are scaled if float16 is in use (`half`); gradients are
    clipped to `max_grad_norm` unless it is None.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, half: bool = False, max_grad_norm: float | None = None):
        self.optimizer, self.max_grad_norm = optimizer, max_grad_norm
        group = optimizer.param_groups[0]
        self.scaler = torch.amp.GradScaler(group["params"][0].device.type, enabled=half)
        self.lr = group["lr"]

    @classmethod
    def adam(cls, network: nn.Module, lr: float, config: TrainingConfig) -> "Optimization":
        """Adam as configured, over the parameters that require gradients; the network is on its device already."""
        moving = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(moving, lr, (config.adam_beta1, config.adam_beta2), config.adam_epsilon)
        return cls(optimizer, config.mixed_precision == "fp16", config.max_grad_norm)

    def set_lr_factor(self, factor: float) -> None:
        """Set the learning rate to this share of the full one."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss."""
        self.scaler.scale(loss).backward()

    def step(self) -> torch.Tensor:
        """Move the weights, clear the gradients and return the gradients' norm before clipping.

        With float16 an overflow skips the move and halves the scale; once that is below one, UserError is raised.
        """
        self.scaler.unscale_(self.optimizer)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.max_grad_norm is not None:
            clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            raise UserError("float16 gradients overflow at every loss scale: use bf16, or lower the learning rates")
        return norm

    def state_dict(self) -> dict:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Go on with the moments and the loss scale of `state`, but with the present settings of the optimizer."""
        groups = self.optimizer.param_groups
        settings = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        if state["scaler"]:  # empty where float16 was not in use
            self.scaler.load_state_dict(state["scaler"])


def lr_factor(config: TrainingConfig, step: int, seen: int) -> float:
    """Share of the full learning rate after `step` steps and `seen` images.

    A linear rise over the first `lr_warmup_steps`, then constant, and over the last third of the images a linear fall
    towards `final_learning_rate_factor`.
    """
    rise = min(1.0, (step + 1) / config.lr_warmup_steps) if config.lr_warmup_steps else 1.0
    late = max(0.0, 3 * seen / config.max_train_images - 2)
    return rise * (1 - late * (1 - config.final_learning_rate_factor))


class EMA:
    """Moving average of weights and buffers; `self.module` is an ordinary module in eval mode.

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
