"""`ratlip export web`: a pipeline as a static folder, whose page makes the images in the visitor's browser.

The page and its libraries lie in `page/`; an export adds the pipeline's graphs and what the page says of the model.
"""

import gzip
import html
import json
import os
import shutil
from pathlib import Path
from string import Template

from .. import bundled
from ..export import onnx_export, onnx_runner, repository
from ..pipeline import RATLIPPipeline
from ..synthetic_birds.attributes import COLOURS, DIRECTIONS, SIZES
from ..utils.files import atomic_directory, read_json
from ..version import __version__

PAGE = Path(__file__).parent / "page"
_ONLY_IN_PACKAGE = shutil.ignore_patterns("package*.json")  # they say where the libraries come from
MODEL = "model"
MODEL_RECORD = f"{MODEL}/model.json"
WASM = "libraries/ort-wasm-simd-threaded.wasm.gz"
# For page and worker; the server sends it, too, as a worker takes it from its own file's headers only.
CSP = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; "
    "style-src 'self'; img-src 'self' blob:; base-uri 'none'; form-action 'none'"
)
EXAMPLES = (
    "a small red bird with black wings",
    "a yellow bird with a blue crown and green wings, on a rock",
    "a white bird with purple wings and an orange crown, at sunset",
    "a large blue bird in the snow, facing left",
)
# What the page offers to exchange. The phrases of a place are such as the captions of the synthetic birds use.
KINDS = {
    "colour": COLOURS,
    "size": SIZES,
    "direction": DIRECTIONS,
    "perch": ("on a branch", "on a rock", "on the grass", "on a post"),
    "place": ("against the sky", "in a meadow", "at sunset", "in the snow"),
}
_ADDED = ("perch", "place")  # what the page offers to add at the end of a prompt


def export_web(pipe: RATLIPPipeline, folder: str | os.PathLike, source: str | os.PathLike) -> dict:
    """Write a static folder that any web server can serve, or nothing.

    Args:
        pipe: a pipeline in float32 on the CPU, with all of its parts.
        folder: the folder to make; an untouched earlier export in it is replaced.
        source: the folder or repository that `pipe` was loaded from, for the lines of Python that the page shows; of
            a folder, the page gives the name alone.

    Returns:
        What the page is told of the model, as in `model/model.json`.

    Raises:
        ValueError, ImportError, OSError: as [`~export.onnx_export.export_onnx`].
    """
    folder = Path(os.path.abspath(folder))
    repository.refuse_other_folders(folder, repository.WEB_RECORD)
    with atomic_directory(folder) as staged:
        shutil.copytree(PAGE, staged, ignore=_ONLY_IN_PACKAGE, copy_function=shutil.copyfile, dirs_exist_ok=True)
        record = onnx_export.export_onnx(pipe, staged / MODEL)
        _fold(pipe, staged / MODEL, record)
        described = _describe(pipe, source, record)
        _arrange_model(staged / MODEL)
        described["downloads"] = {
            path: (staged / path).stat().st_size
            for path in (WASM, f"{MODEL}/{onnx_runner.TEXT_GRAPH}.gz", f"{MODEL}/{onnx_runner.IMAGE_GRAPH}.gz")
        }
        (staged / MODEL_RECORD).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        _fill_in(staged / "index.html", described)
        repository.write_record(staged, repository.WEB_RECORD, {"model": described["model"]})
    return described


def _fold(pipe: RATLIPPipeline, folder: Path, record: dict) -> None:
    """Fix the graphs' batch at the one image that the page makes at a time, and compute what is constant then.

    Half of the nodes go, and with them half of the time until the page can be used. `record` gets the new differences.
    """
    import onnx
    import onnxruntime

    for name in (onnx_runner.TEXT_GRAPH, onnx_runner.IMAGE_GRAPH):
        path = folder / name
        graph = onnx.load(path)
        for value in (*graph.graph.input, *graph.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1
        del graph.graph.value_info[:]  # shapes in between, with the free axis
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # ONNX's own operators
        options.optimized_model_filepath = os.fspath(path)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(graph.SerializeToString(), options)
        folded = onnx.load(path)
        used = {node.domain for node in folded.graph.node}
        domains = [entry for entry in folded.opset_import if entry.domain in used]
        del folded.opset_import[:]
        folded.opset_import.extend(domains)
        onnx.save(folded, path)
    text = onnx_runner.OnnxTextEncoder(folder / onnx_runner.TEXT_GRAPH, record["text_encoder"])
    image = onnx_runner.OnnxGenerator(folder / onnx_runner.IMAGE_GRAPH, record["generator"], couples_batch=False)
    found = onnx_export.compare(pipe, text, image, batches=(1,))
    onnx_export.refuse_differences(found, record["dtype"])
    record["difference_to_torch"] = {what: vars(difference) for what, difference in found.items()}


def _arrange_model(folder: Path) -> None:
    """Graphs packed, so that they are small on servers that do not pack; the tokenizer's two files beside them."""
    for name in (onnx_runner.TEXT_GRAPH, onnx_runner.IMAGE_GRAPH):
        graph = folder / name
        graph.with_name(f"{name}.gz").write_bytes(gzip.compress(graph.read_bytes(), mtime=0))
        graph.unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / onnx_runner.TOKENIZER / name).rename(folder / name)
    for left in (folder / onnx_runner.TOKENIZER).iterdir():
        left.unlink()
    (folder / onnx_runner.TOKENIZER).rmdir()
    (folder / repository.ONNX_RECORD).unlink()


def _describe(pipe: RATLIPPipeline, source: str | os.PathLike, record: dict) -> dict:
    own = Path(source) == bundled.model_dir()
    name = repository.public_name(source)
    return {
        "ratlip_hf": __version__,
        "model": name,
        "subject": "a bird" if own else "an image",
        "sample_size": pipe.generator.config.sample_size,
        "noise_dim": pipe.generator.config.noise_dim,
        "max_tokens": record["text_encoder"]["max_position_embeddings"],
        "pad_token_id": pipe.tokenizer.pad_token_id,
        "python_import": "RATLIPPipeline, bundled" if own else "RATLIPPipeline",
        "python_source": "bundled.model_dir()" if own else json.dumps(name),
        "examples": EXAMPLES if own else [],
        "kinds": [{"name": kind, "words": words, "added": kind in _ADDED and own} for kind, words in KINDS.items()],
        "difference_to_torch": record["difference_to_torch"],
    }


def _fill_in(index: Path, described: dict) -> None:
    values = {
        "csp": CSP,
        "subject": described["subject"],
        "model": described["model"],
        "facts": f"{described['sample_size']} x {described['sample_size']} pixels",
        "version": __version__,
    }
    escaped = {name: html.escape(value, quote=True) for name, value in values.items()}
    index.write_text(Template(index.read_text(encoding="utf-8")).substitute(escaped), encoding="utf-8")


def read_description(folder: str | os.PathLike) -> dict:
    """`model/model.json` of an export; ValueError where there is none."""
    try:
        return read_json(Path(folder) / MODEL_RECORD)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no web export: {error}") from error
