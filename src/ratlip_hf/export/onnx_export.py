"""Are exported graphs the networks they were made from? The same inputs through both, in batches of 1 and 5.
From a pipeline to a folder with its ONNX graphs, its tokenizer and a record."""

import copy
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from ..clip import encode_text
from ..pipeline import RATLIPPipeline, prepare_latents
from ..utils.files import atomic_directory
from ..utils.networks import evaluating
from .onnx_graphs import one_by_one, write_image_graph, write_text_graph
from .onnx_runner import (
    IMAGE_GRAPH,
    TEXT_GRAPH,
    TOKENIZER,
    OnnxGenerator,
    OnnxTextEncoder,
    refuse_other_folders,
    require,
    write_record,
)

BATCHES = (1, 5)
_SENTENCES = (
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


@torch.no_grad()
def compare(pipe: RATLIPPipeline, text_graph: OnnxTextEncoder, image_graph: OnnxGenerator) -> dict[str, Difference]:
    """Differences over the batches, {"sentences": ..., "images": ...}; `pipe` is in float32.

    Raises:
        ValueError: when a graph does not take one of the batches.
    """
    seeds = [torch.Generator().manual_seed(seed) for seed in range(max(BATCHES))]
    noise = prepare_latents(len(seeds), pipe.generator.config.noise_dim, seeds)
    pairs = {"sentences": [], "images": []}
    for batch in BATCHES:
        z, captions = noise[:batch], list(_SENTENCES[:batch])
        embeds = encode_text(pipe.tokenizer, pipe.text_encoder, captions)
        pairs["sentences"].append((encode_text(pipe.tokenizer, text_graph, captions), embeds))
        pairs["images"].append((image_graph(z, embeds).sample, _drawn(pipe, z, embeds)))
    return {what: _difference(*map(torch.cat, zip(*found, strict=True))) for what, found in pairs.items()}


def _drawn(pipe: RATLIPPipeline, noise: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
    """As the pipeline draws: where the images of a batch influence each other, one at a time."""
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


DTYPES = tuple(BOUNDS)
PACKAGES = ("onnxruntime", "onnx", "onnxscript")
_READ_BY_ENCODE_TEXT = ("vocab_size", "max_position_embeddings", "eos_token_id")


def export_onnx(pipe: RATLIPPipeline, folder: str | os.PathLike, dtype: str = "float32") -> dict:
    """Write a pipeline as ONNX graphs, once they agree with it.

    A generator with the released recurrence is exported as the pipeline draws: every image by itself.

    Args:
        pipe: a pipeline in float32 on the CPU, with all of its parts.
        folder: the folder to make; an earlier export in it is replaced.
        dtype: of weights and arithmetic, "float32" or "float16"; inputs and outputs are float32 in both.

    Returns:
        The record, as in the folder: configurations, versions, and how far the graphs are from PyTorch
        (`onnx_check.Difference` as a dict) for "sentences" and "images".

    Raises:
        ValueError: for a folder with something else in it, an incomplete pipeline, or graphs that are not equal to
            the networks within the bounds of `onnx_check`.
        ImportError: without the packages of the extra; the message names it.
        OSError: when the folder cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    require(*PACKAGES)
    refuse_other_folders(folder)
    _check_pipeline(pipe)
    record = _describe(pipe, dtype)
    networks = (pipe.text_encoder, pipe.image_encoder, pipe.generator)
    with evaluating(*networks), atomic_directory(folder) as staged:
        _write_graphs(pipe, staged, getattr(torch, dtype))
        pipe.tokenizer.save_pretrained(staged / TOKENIZER)
        found = compare(
            pipe,
            OnnxTextEncoder(staged / TEXT_GRAPH, record["text_encoder"]),
            OnnxGenerator(staged / IMAGE_GRAPH, record["generator"], record["couples_batch"]),
        )
        refuse_differences(found, dtype)
        record["difference_to_torch"] = {what: vars(difference) for what, difference in found.items()}
        write_record(staged, record)
    return record


def _write_graphs(pipe: RATLIPPipeline, folder: Path, dtype: torch.dtype) -> None:
    text_encoder, image_encoder = pipe.text_encoder, pipe.image_encoder
    generator = one_by_one(pipe.generator)
    if dtype != torch.float32:
        parts = (text_encoder, image_encoder, generator)
        text_encoder, image_encoder, generator = (copy.deepcopy(part).to(dtype) for part in parts)
    write_text_graph(folder / TEXT_GRAPH, text_encoder)
    write_image_graph(folder / IMAGE_GRAPH, generator, image_encoder)


def _check_pipeline(pipe: RATLIPPipeline) -> None:
    networks = {name: getattr(pipe, name) for name in ("text_encoder", "image_encoder", "generator")}
    if missing := [name for name, part in {"tokenizer": pipe.tokenizer, **networks}.items() if part is None]:
        raise ValueError(f"the pipeline has no {', '.join(missing)}: an export needs all of its parts")
    for name, network in networks.items():
        if network.dtype != torch.float32 or network.device.type != "cpu":
            raise ValueError(f"the pipeline must be in float32 on the CPU, but {name} is {network.dtype} there")


def _describe(pipe: RATLIPPipeline, dtype: str) -> dict:
    text = {name: getattr(pipe.text_encoder.config, name) for name in _READ_BY_ENCODE_TEXT}
    generator = {name: value for name, value in pipe.generator.config.items() if not name.startswith("_")}
    return {
        "torch": torch.__version__,
        "dtype": dtype,
        "text_encoder": text,
        "generator": generator,
        "couples_batch": False,
        "drawn_one_by_one": pipe.generator.couples_batch,  # in this form, which is not that of its configuration
        "checked_batches": list(BATCHES),
    }
