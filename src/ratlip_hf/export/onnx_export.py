"""A pipeline as two ONNX graphs, the text tower and generator with image tower, once they agree with it.

Inputs and outputs of the graphs are float32 and their first axis, the batch, is free; in between, the precision is
that of the export.
"""

import contextlib
import copy
import functools
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from ..clip import encode_text
from ..latents import prepare_latents
from ..models import RATLIPGenerator
from ..pipeline import RATLIPPipeline
from ..utils.errors import one_line
from ..utils.files import atomic_directory
from ..utils.tensors import evaluating
from . import onnx_runner, repository
from .onnx_runner import IMAGE_GRAPH, TEXT_GRAPH

PACKAGES = ("onnxruntime", "onnx")
_OPSET = 20
_READ_BY_ENCODE_TEXT = ("vocab_size", "max_position_embeddings", "eos_token_id")
_TRACED_ROWS = 2  # torch takes an axis of length 1 for a fixed one
_LARGEST_FILE = 2**31 - 2**24  # of a protobuf, less what is in it besides the weights
_CHECKED_BATCHES = (1, 5)
_CHECKED_PROMPTS = (
    "a small red bird with black wings",
    "a white bird",
    "this bird has a long yellow beak, a blue crown and a brown belly with grey spots",
    "flowers on a table",
    "",
)


@dataclass(frozen=True)
class Difference:
    """Between graph and network, divided by the network's largest value: the largest and the mean one."""

    largest: float
    mean: float

    def within(self, bound: "Difference") -> bool:
        return self.largest <= bound.largest and self.mean <= bound.mean  # False for NaN, too


# Against the float32 networks. Rounding the weights alone to half precision moves single pixels by several 1e-3.
BOUNDS = {"float32": Difference(1e-3, 1e-3), "float16": Difference(3e-2, 1e-3)}
DTYPES = tuple(BOUNDS)


def export_onnx(pipe: RATLIPPipeline, folder: str | os.PathLike, dtype: str = "float32") -> dict:
    """Write a pipeline as ONNX graphs, once they agree with it.

    A generator with the released recurrence is exported as the pipeline runs it: every image by itself.

    Args:
        pipe: a pipeline in float32 on the CPU, with all of its parts.
        folder: the folder to make; an earlier export in it is replaced.
        dtype: of weights and arithmetic, "float32" or "float16"; inputs and outputs are float32 in both.

    Returns:
        The record, as in the folder: configurations, versions, and how far the graphs are from PyTorch
        ([`Difference`] as a dict) for "embeddings" and "images".

    Raises:
        ValueError: for a folder with something else in it, an incomplete pipeline, or graphs that are not equal to
            the networks within [`BOUNDS`].
        ImportError: without the packages of the extra; the message names it.
        OSError: when the folder cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    onnx_runner.require(*PACKAGES)
    repository.refuse_other_folders(folder, repository.ONNX_RECORD)
    _check_pipeline(pipe)
    record = _describe(pipe, dtype)
    networks = (pipe.text_encoder, pipe.image_encoder, pipe.generator)
    with evaluating(*networks), atomic_directory(folder) as staged:
        _write_graphs(pipe, staged, getattr(torch, dtype))
        pipe.tokenizer.save_pretrained(staged / onnx_runner.TOKENIZER)
        text_graph = onnx_runner.OnnxTextEncoder(staged / TEXT_GRAPH, record["text_encoder"])
        image_graph = onnx_runner.OnnxGenerator(staged / IMAGE_GRAPH, record["generator"], record["couples_batch"])
        found = compare(pipe, text_graph, image_graph)
        refuse_differences(found, dtype)
        record["difference_to_torch"] = {what: vars(difference) for what, difference in found.items()}
        repository.write_record(staged, repository.ONNX_RECORD, record)
    return record


def _check_pipeline(pipe: RATLIPPipeline) -> None:
    networks = {name: getattr(pipe, name) for name in ("text_encoder", "image_encoder", "generator")}
    if missing := [name for name, part in {"tokenizer": pipe.tokenizer, **networks}.items() if part is None]:
        raise ValueError(f"the pipeline has no {', '.join(missing)}: an export needs all of its parts")
    for name, network in networks.items():
        if network.dtype != torch.float32 or network.device.type != "cpu":
            raise ValueError(f"the pipeline must be in float32 on the CPU, but {name} is {network.dtype} there")


def _describe(pipe: RATLIPPipeline, dtype: str) -> dict:
    return {
        "format": onnx_runner.FORMAT,
        "torch": torch.__version__,
        "dtype": dtype,
        "text_encoder": {name: getattr(pipe.text_encoder.config, name) for name in _READ_BY_ENCODE_TEXT},
        "generator": {name: value for name, value in pipe.generator.config.items() if not name.startswith("_")},
        "couples_batch": False,
        "one_by_one": pipe.generator.couples_batch,  # in this form, which is not that of its configuration
        "checked_batches": list(_CHECKED_BATCHES),
    }


# Writing the graphs


def _write_graphs(pipe: RATLIPPipeline, folder: Path, dtype: torch.dtype) -> None:
    text_encoder, image_encoder = pipe.text_encoder, pipe.image_encoder
    generator = one_by_one(pipe.generator)
    if dtype != torch.float32:
        parts = (text_encoder, image_encoder, generator)
        text_encoder, image_encoder, generator = (copy.deepcopy(part).to(dtype) for part in parts)
        for tower in (text_encoder, image_encoder):
            tower.set_attn_implementation("eager")  # torch writes the fused one's scale in float32, whatever the rest
    write_text_graph(folder / TEXT_GRAPH, text_encoder)
    write_image_graph(folder / IMAGE_GRAPH, generator, image_encoder)


def one_by_one(generator: RATLIPGenerator) -> RATLIPGenerator:
    """The same generator if its images are independent, else its form that makes each as a batch of one.

    That is how the pipeline runs the released recurrence, and the weights are the same in both forms.
    """
    if not generator.couples_batch:
        return generator
    alone = RATLIPGenerator.from_config({**generator.config, "recurrence": "per_layer"})
    alone.load_state_dict(generator.state_dict())
    return alone.to(generator.device, generator.dtype).eval()


class _TextGraph(nn.Module):
    """Token ids [B, L] (int64) -> raw projected text embeddings [B, D]."""

    def __init__(self, text_encoder: CLIPTextModelWithProjection):
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.text_encoder(input_ids=input_ids).text_embeds.float()


class _ImageGraph(nn.Module):
    """Noise [B, Z] and raw text embeddings [B, D] -> images [B, 3, S, S], nominally in [-1, 1], unclamped."""

    def __init__(self, generator: RATLIPGenerator, image_encoder: CLIPVisionModelWithProjection):
        super().__init__()
        self.generator, self.image_encoder = generator, image_encoder

    def forward(self, noise: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
        noise, prompt_embeds = (value.to(self.generator.dtype) for value in (noise, prompt_embeds))
        return self.generator(noise, prompt_embeds, self.image_encoder).sample.float()


def write_text_graph(path: Path, text_encoder: CLIPTextModelWithProjection) -> None:
    """Write `input_ids` [batch, L] -> `prompt_embeds` [batch, D], L being the tower's number of positions.

    Raises ValueError when torch cannot export the network, or the file would be too large for one protobuf.
    """
    config = text_encoder.config
    ids = torch.full((_TRACED_ROWS, config.max_position_embeddings), config.eos_token_id)
    _write(path, _TextGraph(text_encoder), {"input_ids": ids}, "prompt_embeds")


def write_image_graph(path: Path, generator: RATLIPGenerator, image_encoder: CLIPVisionModelWithProjection) -> None:
    """Write `noise` [batch, Z] and `prompt_embeds` [batch, D] -> `sample` [batch, 3, S, S].

    Raises ValueError for a generator that couples a batch, whose graph would not be what a pipeline runs, and as
    [`write_text_graph`].
    """
    if generator.couples_batch:
        raise ValueError("the images of a batch depend on each other; export the generator as `one_by_one` has it")
    config = generator.config
    inputs = {
        "noise": torch.zeros(_TRACED_ROWS, config.noise_dim),
        "prompt_embeds": torch.ones(_TRACED_ROWS, config.text_dim),
    }
    with _rows_by_number(generator):
        _write(path, _ImageGraph(generator, image_encoder), inputs, "sample")


@contextlib.contextmanager
def _rows_by_number(generator: RATLIPGenerator) -> Iterator[None]:
    """Nearest neighbours as runtimes cannot get them wrong, within the block.

    A runtime finds the row of the small map by dividing by a rounded factor, and the quotient may fall just below a
    whole number: from 14 to 16 px, row 8 becomes row 6 instead of 7. There, rows and columns are taken by number.
    Elsewhere they are not, because it takes ten times as long.
    """
    blocks = [block for block in generator.blocks if block.resizes_late]
    for block in blocks:
        block.resize = functools.partial(_nearest, block.size)
    try:
        yield
    finally:
        for block in blocks:
            del block.resize


def _nearest(size: int, x: torch.Tensor) -> torch.Tensor:
    side, places = int(x.shape[-1]), np.arange(size, dtype=np.float32)
    rows = np.floor(places * np.float32(side / size))  # as torch
    factor = np.float32(size / side)
    if all(np.array_equal(rows, np.floor(found)) for found in (places / factor, places * (1 / factor))):
        return F.interpolate(x, size=(size, size), mode="nearest")
    numbers = torch.from_numpy(rows.astype(np.int64))
    return x.index_select(2, numbers).index_select(3, numbers)


def _write(path: Path, network: nn.Module, inputs: dict[str, torch.Tensor], output: str) -> None:
    weights = sum(value.nbytes for value in (*network.parameters(), *network.buffers()))
    if weights > _LARGEST_FILE:
        raise ValueError(f"{path.name} would have {weights / 2**30:.1f} GiB of weights, and one ONNX file holds 2 GiB")
    try:
        with torch.no_grad(), _quiet_exporter():
            # The exporter by tracing: 4 seconds of processor time for the bundled model, where `dynamo=True` takes 80.
            # What a trace may get wrong, sizes that become constants, the comparison in two other batches finds.
            torch.onnx.export(
                network.eval(),
                tuple(inputs.values()),
                path,
                input_names=list(inputs),
                output_names=[output],
                dynamic_axes={name: {0: "batch"} for name in (*inputs, output)},
                opset_version=_OPSET,
                dynamo=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ValueError(f"torch cannot export {path.name}: {one_line(error)}") from error


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
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


# Comparing them with the networks


@torch.no_grad()
def compare(
    pipe: RATLIPPipeline, text_graph: nn.Module, image_graph: nn.Module, batches: Iterable[int] = _CHECKED_BATCHES
) -> dict[str, Difference]:
    """Differences over batches of these sizes, {"embeddings": ..., "images": ...}; `pipe` is in float32.

    Raises ValueError when a graph does not take one of the batches.
    """
    seeds = [torch.Generator().manual_seed(seed) for seed in range(max(_CHECKED_BATCHES))]
    noise = prepare_latents(len(seeds), pipe.generator.config.noise_dim, seeds)
    pairs = {"embeddings": [], "images": []}
    for batch in batches:
        z, prompts = noise[:batch], list(_CHECKED_PROMPTS[:batch])
        embeds = encode_text(pipe.tokenizer, pipe.text_encoder, prompts)
        pairs["embeddings"].append((encode_text(pipe.tokenizer, text_graph, prompts), embeds))
        pairs["images"].append((image_graph(z, embeds).sample, _images_of(pipe, z, embeds)))
    return {what: _difference(*map(torch.cat, zip(*found, strict=True))) for what, found in pairs.items()}


def _images_of(pipe: RATLIPPipeline, noise: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
    """As the pipeline makes them: where the images of a batch influence each other, one at a time."""
    size = 1 if pipe.generator.couples_batch else len(noise)
    pairs = zip(noise.split(size), embeds.split(size), strict=True)
    return torch.cat([pipe.generator(z, text, pipe.image_encoder).sample for z, text in pairs])


def _difference(graph: torch.Tensor, network: torch.Tensor) -> Difference:
    apart = (graph - network).abs() / network.abs().max()
    return Difference(apart.max().item(), apart.mean().item())


def refuse_differences(found: dict[str, Difference], dtype: str) -> None:
    """Raise ValueError when a graph is further from its network than the precision explains."""
    bound = BOUNDS[dtype]
    for what, difference in found.items():
        if not difference.within(bound):
            raise ValueError(
                f"the exported graphs are wrong: {what} differ from PyTorch's by {difference.largest:.1e} "
                f"(mean {difference.mean:.1e}) of the largest value, more than {bound.largest} (mean {bound.mean})"
            )
