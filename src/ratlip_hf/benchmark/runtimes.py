"""What a deployer might run instead of `pipe.optimize()`: Inductor with frozen weights, onnxruntime, OpenVINO."""

import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import CLIPVisionModelWithProjection

from ..export.onnx_export import write_image_graph
from ..models import RATLIPGenerator

# The precisions in which each is measured.
RUNTIMES = {"inductor": ("fp32",), "onnxruntime": ("fp32",), "openvino": ("fp32", "bf16")}
Run = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def installed() -> list[str]:
    """The runtimes that can be measured here: a C++ compiler for Inductor, packages for the others."""
    found = {"inductor": bool(shutil.which("g++") or shutil.which("clang++"))}
    found["onnxruntime"] = _is_there("onnxruntime") and _is_there("onnx")
    found["openvino"] = _is_there("openvino") and _is_there("onnx")
    return [name for name in RUNTIMES if found[name]]


def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def runtime_function(
    name: str, precision: str, generator: RATLIPGenerator, tower: CLIPVisionModelWithProjection
) -> Run:
    """(noise [B, Z], embeddings [B, D]) -> images [B, 3, S, S], by a runtime with torch's number of threads."""
    if name == "inductor":
        compiled = torch.compile(generator, options={"freezing": True})
        return lambda noise, embeds: compiled(noise, embeds, tower, return_dict=False)[0]
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "generator.onnx"
        write_image_graph(graph, generator, tower)
        run = {"onnxruntime": _by_onnxruntime, "openvino": _by_openvino}[name](graph, precision)
    return lambda noise, embeds: torch.from_numpy(run({"noise": noise.numpy(), "prompt_embeds": embeds.numpy()}))


def _by_onnxruntime(graph: Path, precision: str) -> Callable:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["sample"], inputs)[0]


def _by_openvino(graph: Path, precision: str) -> Callable:
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision], "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()
    model = core.compile_model(
        core.read_model(graph), "CPU", hints | {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    )
    return lambda inputs: model(inputs)["sample"].copy()
