"""`OnnxRunner`: the pipeline's call over exported graphs.
Prompts, noise, checks and pictures are the pipeline's own; only the networks are exchanged."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import ImagePipelineOutput
from transformers import CLIPTokenizer

from ..pipeline import RATLIPPipeline
from .onnx_folder import PICTURE_GRAPH, TEXT_GRAPH, TOKENIZER, read_record
from .onnx_networks import DEFAULT_PROVIDERS, OnnxGenerator, OnnxTextEncoder


class _GraphPipeline(RATLIPPipeline):
    """A pipeline whose image tower is inside the generator's graph."""

    _needed_to_draw = ("generator",)


class OnnxRunner:
    """Draws with the graphs that `ratlip export onnx` writes.

    The call is that of [`RATLIPPipeline`], with the same arguments, checks and results: the same prompts and seeds
    give the same pictures, up to rounding. onnxruntime uses as many threads as torch (`torch.set_num_threads`).

    Args:
        folder: what was given to `ratlip export onnx`.
        providers: onnxruntime's execution providers, in order of preference; the CPU by default.

    Raises:
        ValueError: when there is no export in the folder, or onnxruntime cannot load its graphs.
        ImportError: without onnxruntime; the message names the extra.
    """

    def __init__(self, folder: str | os.PathLike, providers: Sequence[str] = DEFAULT_PROVIDERS):
        folder, self.record = Path(folder), read_record(folder)
        text_encoder = OnnxTextEncoder(folder / TEXT_GRAPH, self.record["text_encoder"], providers)
        generator = OnnxGenerator(
            folder / PICTURE_GRAPH, self.record["generator"], self.record["couples_batch"], providers
        )
        try:
            tokenizer = CLIPTokenizer.from_pretrained(folder / TOKENIZER)
        except OSError as error:
            raise ValueError(f"{folder} has no tokenizer: {str(error).splitlines()[0]}") from error
        self._pipeline = _GraphPipeline(tokenizer, text_encoder, None, generator)

    @functools.wraps(RATLIPPipeline.encode_prompt)
    def encode_prompt(self, *args, **kwargs) -> tuple[torch.Tensor]:
        return self._pipeline.encode_prompt(*args, **kwargs)

    @functools.wraps(RATLIPPipeline.__call__)
    def __call__(self, *args, **kwargs) -> ImagePipelineOutput | tuple:
        return self._pipeline(*args, **kwargs)
