"""`FastSession`: what an optimized pipeline holds: the fast networks and the text cache, renewed when weights change.
Never registered as a component, so saving and training know nothing of it."""

import threading
import warnings

import torch
from torch import nn
from transformers import CLIPVisionModelWithProjection

from ..models import RATLIPGenerator
from .generator import FastGenerator
from .staleness import Snapshot, check_plain
from .text_cache import TextCache

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


class FastSession:
    """Draws and encodes for a pipeline, always with its present weights. Threads may share one.

    Args:
        dtype: of the computation; None follows the generator.

    Raises:
        ValueError: for a dtype that has no fast path.
    """

    def __init__(self, dtype: torch.dtype | None = None):
        if dtype is not None:
            check_dtype(dtype)
        self.dtype, self._lock = dtype, threading.Lock()
        self.fast: FastGenerator | None = None
        self.networks: Snapshot | None = None
        self.texts = self.text = self.tokenizer = None

    def prepare(self, generator: RATLIPGenerator, image_encoder: CLIPVisionModelWithProjection) -> FastGenerator:
        """The fast networks for these plain ones: the last ones as long as no weight has changed, else new ones.

        Raises:
            ValueError: for networks that are not plain, see [`~fast.staleness.check_plain`], or of another dtype.
        """
        with self._lock:
            if self.fast is None or not self.networks.still_holds(generator, image_encoder):
                self.fast = self.networks = None  # before there are new ones, for the sake of memory
                check_plain(generator, image_encoder)
                dtype = self.dtype or generator.dtype
                check_dtype(dtype)
                with torch.no_grad():
                    self.fast = FastGenerator(generator, image_encoder, dtype)
                self.networks = Snapshot(generator, image_encoder)
            return self.fast

    def encode(self, prompts: list[str], tokenizer: object, text_encoder: nn.Module, encode) -> torch.Tensor:
        """Embeddings [P, D] of the prompts; `encode(prompts)` makes those that are not at hand."""
        with self._lock:
            holds = self.text is not None and self.tokenizer is tokenizer and self.text.still_holds(text_encoder)
            if not holds:
                self.texts, self.tokenizer, self.text = TextCache(), tokenizer, Snapshot(text_encoder)
            return self.texts(prompts, encode)

    def __reduce__(self):
        # Packed weights can be neither copied nor pickled; a copy makes its own.
        return type(self), (self.dtype,)


def check_dtype(dtype: torch.dtype) -> None:
    """Raise ValueError for a dtype without a fast path; warn where it brings nothing."""
    if dtype not in DTYPES:
        names = ", ".join(str(known).removeprefix("torch.") for known in DTYPES)
        raise ValueError(f"optimize() computes in {names}, not {dtype!r}: pass dtype=torch.float32 or torch.bfloat16")
    if dtype == torch.bfloat16 and not _has_bfloat16():
        warnings.warn("this processor has no bfloat16 instructions: float32 will be faster", stacklevel=4)


def _has_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
