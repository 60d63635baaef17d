"""Running the ONNX graphs that `ratlip export onnx` writes, with the pipeline's call; needs onnxruntime only.

First the call, then the graphs as networks, then the folder of an export and its record.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import ImagePipelineOutput
from torch import nn
from transformers import CLIPTokenizer
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from ..models.generator import RATLIPGeneratorOutput
from ..pipeline import RATLIPPipeline
from ..utils.errors import one_line
from ..utils.files import check_recorded_hashes, read_json
from .repository import ONNX_RECORD

DEFAULT_PROVIDERS = ("CPUExecutionProvider",)
TEXT_GRAPH = "text_encoder.onnx"
IMAGE_GRAPH = "generator.onnx"
TOKENIZER = "tokenizer"
FORMAT = 1  # of the record: one that is not known is refused


class OnnxRunner:
    """Generates images with the graphs that `ratlip export onnx` writes.

    The call is that of [`RATLIPPipeline`], with the same arguments, checks and results: the same prompts and seeds
    give the same images, up to rounding. onnxruntime uses as many threads as torch (`torch.set_num_threads`).

    Args:
        folder: what was given to `ratlip export onnx`.
        providers: onnxruntime's execution providers, in order of preference; the CPU by default.

    Raises:
        ValueError: when there is no export in the folder, or onnxruntime cannot load its graphs.
        ImportError: without onnxruntime; the message names the extra.
    """

    def __init__(self, folder: str | os.PathLike, providers: Sequence[str] = DEFAULT_PROVIDERS):
        folder, self.record = Path(folder), read_record(folder)
        check_recorded_hashes(folder, ONNX_RECORD)
        text_encoder = OnnxTextEncoder(folder / TEXT_GRAPH, self.record["text_encoder"], providers)
        generator = OnnxGenerator(
            folder / IMAGE_GRAPH, self.record["generator"], self.record["couples_batch"], providers
        )
        try:
            tokenizer = CLIPTokenizer.from_pretrained(folder / TOKENIZER)
        except OSError as error:
            raise ValueError(f"{folder} has no tokenizer: {one_line(error)}") from error
        self._pipeline = _GraphPipeline(tokenizer, text_encoder, None, generator)

    @functools.wraps(RATLIPPipeline.encode_prompt)
    def encode_prompt(self, *args, **kwargs) -> tuple[torch.Tensor]:
        return self._pipeline.encode_prompt(*args, **kwargs)

    @functools.wraps(RATLIPPipeline.__call__)
    def __call__(self, *args, **kwargs) -> ImagePipelineOutput | tuple:
        return self._pipeline(*args, **kwargs)


class _GraphPipeline(RATLIPPipeline):
    """A pipeline whose image tower is inside the generator's graph."""

    _needed_for_images = ("generator",)


class _Graph(nn.Module):
    """A graph in an onnxruntime session; tensors come and go on the CPU, in float32."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, path: Path, config: dict, providers: Sequence[str] = DEFAULT_PROVIDERS):
        super().__init__()
        require("onnxruntime")
        import onnxruntime

        self.config = SimpleNamespace(**config)
        if unknown := set(providers) - set(onnxruntime.get_available_providers()):
            there = ", ".join(onnxruntime.get_available_providers())
            raise ValueError(f"this onnxruntime has no {', '.join(sorted(unknown))}; there are {there}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; they are raised as well
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=list(providers))
        except Exception as error:  # onnxruntime's exceptions have no common class of their own
            raise ValueError(f"onnxruntime cannot load {path}: {one_line(error)}") from error

    def compute(self, **inputs: torch.Tensor) -> torch.Tensor:
        """The graph's one output. Raises ValueError when onnxruntime cannot run it on these inputs."""
        try:
            (output,) = self.session.run(None, {name: value.cpu().numpy() for name, value in inputs.items()})
        except Exception as error:
            raise ValueError(f"onnxruntime cannot run the graph: {one_line(error)}") from error
        return torch.from_numpy(output)


class OnnxTextEncoder(_Graph):
    """Takes the place of a `CLIPTextModelWithProjection` in `encode_text`; `config` has the values that it reads."""

    def forward(self, input_ids: torch.Tensor) -> CLIPTextModelOutput:
        return CLIPTextModelOutput(text_embeds=self.compute(input_ids=input_ids))


class OnnxGenerator(_Graph):
    """Takes the place of a [`RATLIPGenerator`] in a pipeline; the CLIP image tower is inside the graph."""

    def __init__(self, path: Path, config: dict, couples_batch: bool, providers: Sequence[str] = DEFAULT_PROVIDERS):
        super().__init__(path, config, providers)
        self.couples_batch = couples_batch

    def forward(
        self,
        noise: torch.Tensor,
        prompt_embeds: torch.Tensor,
        image_encoder: None = None,
        return_dict: bool = True,
        style: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> RATLIPGeneratorOutput | tuple[torch.Tensor]:
        if style is not None:
            raise ValueError("an ONNX export reads one condition and mixes no styles: use the pipeline in PyTorch")
        sample = self.compute(noise=noise, prompt_embeds=prompt_embeds)
        return RATLIPGeneratorOutput(sample=sample) if return_dict else (sample,)


def require(*packages: str) -> None:
    """Raise ImportError that names the extra unless the packages of an export are installed."""
    for package in packages:
        try:
            __import__(package)
        except ImportError as error:
            raise ImportError(f"ONNX needs {error.name or package}: pip install 'ratlip_hf[export]'") from error


def read_record(folder: str | os.PathLike) -> dict:
    """The record of an export; ValueError when the folder holds none, or one that this version cannot read.

    "generator" is its configuration; "text_encoder" has vocab_size, max_position_embeddings and eos_token_id;
    "couples_batch" says whether images of one batch influence each other; the rest, what was exported with what.
    """
    path = Path(folder) / ONNX_RECORD
    try:
        record = read_json(path)
    except OSError as error:
        raise ValueError(f"{folder} holds no ONNX export: there is no {path.name} (see ratlip export onnx)") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{path} was not written by this version of ratlip export onnx: export the model again")
    if missing := {"generator", "text_encoder", "couples_batch"} - record.keys():
        raise ValueError(f"{path} is damaged: it lacks {', '.join(sorted(missing))}")
    for name, kind in {"generator": dict, "text_encoder": dict, "couples_batch": bool}.items():
        if not isinstance(record[name], kind) or (kind is dict and not record[name]):
            raise ValueError(f"{path} is damaged: {name} must be {kind.__name__}, not {record[name]!r}")
    return record
