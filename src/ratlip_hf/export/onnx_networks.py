"""Exported graphs as networks: they are called like the text tower and the generator they were made from.
Owns everything that touches onnxruntime; what is in a file is decided in `onnx_graphs`."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from ..models.generator import RATLIPGeneratorOutput
from ..utils.errors import one_line

DEFAULT_PROVIDERS = ("CPUExecutionProvider",)


def require(*packages: str) -> None:
    """Raise ImportError that names the extra unless the packages of an export are installed."""
    for package in packages:
        try:
            __import__(package)
        except ImportError as error:
            raise ImportError(f"ONNX needs {error.name or package}: pip install 'ratlip_hf[export]'") from error


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
        self, noise: torch.Tensor, prompt_embeds: torch.Tensor, image_encoder: None = None, return_dict: bool = True
    ) -> RATLIPGeneratorOutput | tuple[torch.Tensor]:
        sample = self.compute(noise=noise, prompt_embeds=prompt_embeds)
        return RATLIPGeneratorOutput(sample=sample) if return_dict else (sample,)
