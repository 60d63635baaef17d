"""From a pipeline to a folder with its ONNX graphs, its tokenizer and a record.
Owns the order: refuse, write beside, compare with PyTorch, and only then put the folder in its place."""

import copy
import os
from pathlib import Path

import torch

from ..pipeline import RATLIPPipeline
from ..utils.evaluating import evaluating
from ..utils.files import atomic_directory
from .onnx_check import BATCHES, BOUNDS, compare, refuse_differences
from .onnx_folder import PICTURE_GRAPH, TEXT_GRAPH, TOKENIZER, refuse_other_folders, write_record
from .onnx_graphs import one_by_one, write_picture_graph, write_text_graph
from .onnx_networks import OnnxGenerator, OnnxTextEncoder, require

DTYPES = tuple(BOUNDS)
PACKAGES = ("onnxruntime", "onnx", "onnxscript")
_READ_BY_ENCODE_TEXT = ("vocab_size", "max_position_embeddings", "eos_token_id")


def export_onnx(pipe: RATLIPPipeline, folder: str | os.PathLike, dtype: str = "float32") -> dict:
    """Write a pipeline as ONNX graphs, once they agree with it.

    A generator with the released recurrence is exported as the pipeline draws: every picture by itself.

    Args:
        pipe: a pipeline in float32 on the CPU, with all of its parts.
        folder: the folder to make; an earlier export in it is replaced.
        dtype: of weights and arithmetic, "float32" or "float16"; inputs and outputs are float32 in both.

    Returns:
        The record, as in the folder: configurations, versions, and how far the graphs are from PyTorch
        (`onnx_check.Difference` as a dict) for "sentences" and "pictures".

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
            OnnxGenerator(staged / PICTURE_GRAPH, record["generator"], record["couples_batch"]),
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
    write_picture_graph(folder / PICTURE_GRAPH, generator, image_encoder)


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
