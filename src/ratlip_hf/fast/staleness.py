"""Whether networks are still what the fast path was built from, and whether it can be built from them at all.
Compares modules and tensors by identity, place and version: a millisecond or so per call."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

_KNOWN = ("torch.nn.modules.", "transformers.", "ratlip_hf.")


class Snapshot:
    """Which modules, hooks and tensors some networks have, and in which state the tensors are.

    In-place operations, `load_state_dict`, optimizer steps, `.to(...)`, replaced parameters or modules, adapters and
    hooks all show. Writes through `tensor.data` and into inference tensors are not counted by torch; they show where
    they change the first number of a tensor, as those of diffusers' `EMAModel` do.
    """

    def __init__(self, *modules: nn.Module):
        self.state = _state(modules)
        self.held = [*_walk(modules), *_tensors(modules)]  # so that no other object can take one's identity
        self.places = [tensor.untyped_storage() for tensor in _tensors(modules)]  # nor another tensor its place
        self.firsts = [_first(tensor) for tensor in _tensors(modules)]
        self.numbers = self._numbers()

    def still_holds(self, *modules: nn.Module) -> bool:
        """Whether the same call would give the same snapshot."""
        return _state(modules) == self.state and self._numbers() == self.numbers

    def _numbers(self) -> list[bytes]:
        return [first.tobytes() for first in self.firsts]


def check_plain(*modules: nn.Module) -> None:
    """Raise ValueError unless the networks are plain: on the CPU, without adapters, offloading or hooks.

    What such additions do happens in calls of inner modules, which the fast path never makes.
    """
    for part in modules:
        for name, module in part.named_modules():
            if (what := _addition(module)) is not None:
                name = name or type(module).__name__
                raise ValueError(f"optimize() needs plain networks, but {name} {what}, or do without")


def _addition(module: nn.Module) -> str | None:
    if not type(module).__module__.startswith(_KNOWN):
        kind = type(module)
        return f"is a {kind.__module__}.{kind.__name__}: merge adapters, leave out torch.compile"
    if module._forward_hooks or module._forward_pre_hooks or _foreign_forward(module) is not None:
        return "has hooks or is offloaded: remove them"
    if any(tensor.device.type != "cpu" for tensor in _own_tensors(module)):
        return "is not on the CPU: the faster path is written and measured for CPUs only; move the pipeline there"
    return None


def _foreign_forward(module: nn.Module):
    """What was put in the place of the class's `forward`: how accelerate and diffusers hook a module."""
    forward = vars(module).get("forward")
    return None if getattr(forward, "__func__", None) is type(module).forward else forward


def _walk(modules: tuple[nn.Module, ...]) -> Iterator[nn.Module]:
    """All modules, one as often as it is used; several times as fast as `nn.Module.modules`."""
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        yield module
        waiting.extend(child for child in module._modules.values() if child is not None)


def _own_tensors(module: nn.Module) -> list[torch.Tensor]:
    return [tensor for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None]


def _tensors(modules: tuple[nn.Module, ...]) -> list[torch.Tensor]:
    return [tensor for module in _walk(modules) for tensor in _own_tensors(module)]


def _state(modules: tuple[nn.Module, ...]) -> list[tuple]:
    state = []
    for module in _walk(modules):
        state.append((id(module), _foreign_forward(module), *module._forward_hooks, *module._forward_pre_hooks))
        for tensor in _own_tensors(module):
            state.append((id(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version))
    return state


def _first(tensor: torch.Tensor) -> np.ndarray:
    """The bytes of a tensor's first number, seen in place; of none where they cannot be."""
    if not tensor.numel() or tensor.device.type != "cpu":
        return np.empty(0)
    return tensor.detach()[(0,) * tensor.ndim].reshape(1).view(torch.uint8).numpy()
