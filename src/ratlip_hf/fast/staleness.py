"""Whether networks are still what the fast path was built from, and whether it can be built from them at all.
Compares tensors by identity, place and version, which costs well below a millisecond per call."""

import itertools

import torch
from torch import nn

_KNOWN = ("torch.nn.modules.", "transformers.", "ratlip_hf.")


class Snapshot:
    """Which tensors some networks hold, and in which state.

    In-place operations, `load_state_dict`, optimizer steps, `.to(...)`, replaced parameters and added adapters all
    show. Only writes through `tensor.data` and into inference tensors do not, for torch does not count those.
    """

    def __init__(self, *modules: nn.Module):
        self.tensors = _tensors(modules)  # held, so that no other tensor can come to lie in the same place
        self.states = [_state(tensor) for tensor in self.tensors]

    def still_holds(self, *modules: nn.Module) -> bool:
        """Whether the same call would give the same snapshot."""
        tensors = _tensors(modules)
        if len(tensors) != len(self.tensors):
            return False
        pairs = zip(tensors, self.tensors, self.states, strict=True)
        return all(now is then and _state(now) == state for now, then, state in pairs)


def check_plain(*modules: nn.Module) -> None:
    """Raise ValueError unless the networks are plain: on the CPU, without adapters, offloading or hooks.

    What such additions do happens in calls of inner modules, which the fast path never makes.
    """
    for name, module in itertools.chain.from_iterable(part.named_modules() for part in modules):
        what = None
        if not type(module).__module__.startswith(_KNOWN):
            what = f"is a {type(module).__module__}.{type(module).__name__}: merge adapters"
        elif hasattr(module, "_hf_hook") or module._forward_hooks or module._forward_pre_hooks:
            what = "has hooks or is offloaded: remove them"
        elif any(tensor.device.type != "cpu" for tensor in module.parameters(recurse=False)):
            what = "is not on the CPU: the faster path is written and measured for CPUs only; move the pipeline there"
        if what is not None:
            raise ValueError(
                f"optimize() needs plain networks, but {name or type(module).__name__} {what}, or do without"
            )


def _tensors(modules: tuple[nn.Module, ...]) -> list[torch.Tensor]:
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


def _state(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
