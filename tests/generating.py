"""What the pipeline tests have in common: generating with defaults, comparing images, reading off settings.
The components come from the fixtures in `shared_fixtures`."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from ratlip_hf import RATLIPGenerator, RATLIPPipeline
from ratlip_hf.export import onnx_export

PROMPT = "a red bird with a blue crown"
OTHER = "a small yellow bird on a branch"
TOO_LONG = 100 * "very long"
NOISE_DIM, TEXT_DIM = 100, 16
NETWORKS = ("text_encoder", "image_encoder", "generator")

needs_group_offloading = pytest.mark.skipif(
    tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 42) and not torch.cuda.is_available(),
    reason="diffusers before 0.42 offloads groups only where there is an accelerator",
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generate(pipe: RATLIPPipeline, **options) -> np.ndarray:
    """Images as an array; one of PROMPT from seed 0 unless told otherwise."""
    given = {"prompt": PROMPT} if "prompt_embeds" not in options else {}
    return pipe(**{**given, "generator": seeded(), "output_type": "np", **options}).images


def close(images: np.ndarray, others: np.ndarray, atol: float = 1e-5) -> bool:
    return images.shape == others.shape and np.allclose(images, others, rtol=0, atol=atol)


def dtypes(pipe: RATLIPPipeline) -> list[torch.dtype]:
    return [getattr(pipe, name).dtype for name in NETWORKS]


def settings(model: RATLIPGenerator) -> dict:
    """Configuration as it is stored, without the place that it was loaded from."""
    return {key: value for key, value in json.loads(model.to_json_string()).items() if key != "_name_or_path"}


def take_graphs(exported: Path, patch: pytest.MonkeyPatch) -> None:
    """Exports copy the graphs of an earlier one from now on."""

    def copy(path, *networks):
        path.write_bytes((exported / path.name).read_bytes())

    for name in ("write_text_graph", "write_image_graph"):
        patch.setattr(onnx_export, name, copy)
