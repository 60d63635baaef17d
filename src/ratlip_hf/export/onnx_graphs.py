"""From networks to ONNX files: the text tower, and generator and image tower as one graph.
Owns inputs, outputs (float32) and the free axis of the graphs; in between, the precision is that of the networks."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from ..models import RATLIPGenerator
from ..utils.errors import one_line

_EXAMPLES = 2  # rows to trace with; torch takes an axis of length 1 for a fixed one
_LARGEST_FILE = 2**31 - 2**24  # of a protobuf, less what is in it beside the weights


class _TextGraph(nn.Module):
    """Token ids [B, L] (int64) -> raw projected sentence embeddings [B, D]."""

    def __init__(self, text_encoder: CLIPTextModelWithProjection):
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.text_encoder(input_ids=input_ids).text_embeds.float()


class _ImageGraph(nn.Module):
    """Noise [B, Z] and raw sentence embeddings [B, D] -> images [B, 3, S, S], nominally in [-1, 1], unclamped."""

    def __init__(self, generator: RATLIPGenerator, image_encoder: CLIPVisionModelWithProjection):
        super().__init__()
        self.generator, self.image_encoder = generator, image_encoder

    def forward(self, noise: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
        noise, prompt_embeds = (value.to(self.generator.dtype) for value in (noise, prompt_embeds))
        return self.generator(noise, prompt_embeds, self.image_encoder).sample.float()


def write_text_graph(path: Path, text_encoder: CLIPTextModelWithProjection) -> None:
    """Write `input_ids` [batch, L] -> `prompt_embeds` [batch, D], L being the tower's number of positions.

    Raises:
        ValueError: when torch cannot export the network, or the file would be too large for one protobuf.
    """
    config = text_encoder.config
    ids = torch.full((_EXAMPLES, config.max_position_embeddings), config.eos_token_id)
    _write(path, _TextGraph(text_encoder), {"input_ids": ids}, "prompt_embeds")


def write_image_graph(path: Path, generator: RATLIPGenerator, image_encoder: CLIPVisionModelWithProjection) -> None:
    """Write `noise` [batch, Z] and `prompt_embeds` [batch, D] -> `sample` [batch, 3, S, S].

    Raises:
        ValueError: for a generator that couples a batch, whose graph would not be what a pipeline draws; when torch
            cannot export the network, or the file would be too large for one protobuf.
    """
    if generator.couples_batch:
        raise ValueError("the images of a batch depend on each other; export the generator as `one_by_one` has it")
    config = generator.config
    inputs = {
        "noise": torch.zeros(_EXAMPLES, config.noise_dim),
        "prompt_embeds": torch.ones(_EXAMPLES, config.text_dim),
    }
    _write(path, _ImageGraph(generator, image_encoder), inputs, "sample")


def one_by_one(generator: RATLIPGenerator) -> RATLIPGenerator:
    """The same generator if its images are independent, else its form that draws each as a batch of one.

    That is how the pipeline draws with the released recurrence, and the weights are the same in both forms.
    """
    if not generator.couples_batch:
        return generator
    alone = RATLIPGenerator.from_config({**generator.config, "recurrence": "per_layer"})
    alone.load_state_dict(generator.state_dict())
    return alone.to(generator.device, generator.dtype).eval()


def _write(path: Path, network: nn.Module, inputs: dict[str, torch.Tensor], output: str) -> None:
    weights = sum(value.nbytes for value in (*network.parameters(), *network.buffers()))
    if weights > _LARGEST_FILE:
        raise ValueError(f"{path.name} would have {weights / 2**30:.1f} GiB of weights, and one ONNX file holds 2 GiB")
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    batch = torch.export.Dim("batch")
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                network.eval(),
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes={name: {0: batch} for name in inputs},
                dynamo=True,
                verbose=False,
            )
            ClearMetadataAndDocStringPass()(program.model)  # which name the exporting machine's files, node by node
            program.save(path, external_data=False)
    except torch.onnx.errors.OnnxExporterError as error:
        raise ValueError(f"torch cannot export {path.name}: {one_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of packages that nobody needs here and of its own use of other libraries."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
