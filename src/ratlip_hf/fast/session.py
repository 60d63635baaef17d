"""`FastSession`: what an optimized pipeline holds, the fast networks and the embeddings of earlier prompts, both
renewed when the weights they were made from change."""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn
from transformers import CLIPVisionModelWithProjection

from ..models import RATLIPGenerator
from .networks import FastGenerator

CAPACITY = 1024  # prompts; 2 kB each for CLIP ViT-B/32
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
_KNOWN = ("torch.nn.modules.", "transformers.", "ratlip_hf.")


class FastSession:
    """Generates and encodes for a pipeline, always with its present weights. Threads may share one.

    Computes in `dtype`, or in the generator's if that is None; a dtype without a fast path raises ValueError. Without
    `keep_plain` the weights of the plain networks are freed, see [`FastGenerator`].
    """

    def __init__(self, dtype: torch.dtype | None = None, keep_plain: bool = True):
        if dtype is not None:
            check_dtype(dtype)
        self.dtype, self.keep_plain, self._lock = dtype, keep_plain, threading.Lock()
        self.fast: FastGenerator | None = None
        self.networks: Snapshot | None = None
        self.texts = self.text = self.tokenizer = None

    def prepare(self, generator: RATLIPGenerator, image_encoder: CLIPVisionModelWithProjection) -> FastGenerator:
        """The fast networks for these plain ones: the last ones as long as no weight has changed, else new ones.

        Raises ValueError for networks that are not plain, see [`check_plain`], or of another dtype.
        """
        with self._lock:
            if self.fast is None or not self.networks.still_holds(generator, image_encoder):
                self.fast = self.networks = None  # before there are new ones, for the sake of memory
                if not self.keep_plain and next(generator.parameters()).is_meta:
                    raise ValueError(
                        "the plain weights were freed by optimize(keep_plain=False): load the pipeline again"
                    )
                check_plain(generator, image_encoder)
                dtype = self.dtype or generator.dtype
                check_dtype(dtype)
                with torch.no_grad():
                    self.fast = FastGenerator(generator, image_encoder, dtype, self.keep_plain)
                self.networks = Snapshot(generator, image_encoder)
            return self.fast

    def encode(self, prompts: list[str], tokenizer: object, text_encoder: nn.Module, encode) -> torch.Tensor:
        """Embeddings [P, D] of the prompts; `encode(prompts)` makes those that are not kept."""
        with self._lock:
            holds = self.text is not None and self.tokenizer is tokenizer and self.text.still_holds(text_encoder)
            if not holds:
                self.texts, self.tokenizer, self.text = TextCache(), tokenizer, Snapshot(text_encoder)
            return self.texts(prompts, encode)

    def __reduce__(self):
        # Packed weights can be neither copied nor pickled; a copy makes its own.
        return type(self), (self.dtype, self.keep_plain)


def check_dtype(dtype: torch.dtype) -> None:
    """Raise ValueError for a dtype without a fast path; warn where it brings nothing."""
    if dtype not in DTYPES:
        names = ", ".join(str(known).removeprefix("torch.") for known in DTYPES)
        raise ValueError(f"optimize() computes in {names}, not {dtype!r}: pass dtype=torch.float32 or torch.bfloat16")
    if dtype == torch.bfloat16 and not _has_bfloat16():
        warnings.warn("this processor has no bfloat16 instructions: float32 will be faster", stacklevel=4)


def _has_bfloat16() -> bool:
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private to torch, so perhaps not there
    found = [getattr(torch.cpu, name) for name in names if hasattr(torch.cpu, name)]
    return not found or any(supported() for supported in found)


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
    if any(type(tensor) not in (torch.Tensor, nn.Parameter) for tensor in _own_tensors(module)):
        return "is quantized, or has tensors of another library: load the weights as they were saved in float32"
    if any(tensor.device.type != "cpu" for tensor in _own_tensors(module)):
        return "is not on the CPU: the faster path is written and measured for CPUs only; move the pipeline there"
    return None


def _foreign_forward(module: nn.Module):
    """What was put in the place of the class's `forward`: how accelerate and diffusers hook a module."""
    forward = vars(module).get("forward")
    return None if getattr(forward, "__func__", None) is type(module).forward else forward


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


class TextCache:
    """The embeddings of the last [`CAPACITY`] different prompts."""

    def __init__(self, capacity: int = CAPACITY):
        self.capacity = capacity
        self.rows: OrderedDict[str, torch.Tensor] = OrderedDict()

    def __call__(self, prompts: list[str], encode: Callable[[list[str]], torch.Tensor]) -> torch.Tensor:
        """Embeddings [P, D]; `encode` is asked once, for the prompts that are new."""
        rows = {prompt: self.rows[prompt] for prompt in prompts if prompt in self.rows}
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in rows]
        if new:
            rows |= {prompt: row.detach().clone() for prompt, row in zip(new, encode(new), strict=True)}
        for prompt in prompts:
            self.rows[prompt] = rows[prompt]
            self.rows.move_to_end(prompt)
        while len(self.rows) > self.capacity:
            self.rows.popitem(last=False)
        return torch.stack([rows[prompt] for prompt in prompts])
