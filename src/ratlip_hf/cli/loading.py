"""Options of device and precision, and the loading of a pipeline, with what can go wrong in one line each.
Shared by the verbs that draw."""

import argparse
from pathlib import Path

import diffusers
import torch
import transformers
from safetensors import SafetensorError

from .. import bundled
from ..pipeline import RATLIPPipeline
from ..utils.errors import UserError

DTYPES = ("float32", "float16", "bfloat16")


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="torch device (default: cuda where there is one, else cpu)")
    parser.add_argument("--dtype", default="float32", help=f"one of {', '.join(DTYPES)} (default: float32)")


def check_dtype(dtype: str) -> None:
    """Raises UserError for a name that is none of `DTYPES`."""
    if dtype not in DTYPES:
        raise UserError(f"--dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")


def find_device(name: str | None) -> torch.device:
    """The device of that name, or the default; raises UserError for one that is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()  # fails for devices that are absent or hold no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name} is not available here: {str(error).splitlines()[0]}") from error
    return device


def load_pipeline(model: str, device: torch.device, dtype: str) -> RATLIPPipeline:
    """The pipeline of a folder or repository, or the bundled one by its name; libraries keep quiet from here on."""
    for library in (diffusers.utils.logging, transformers.logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
    source = bundled.resolve(model)
    if Path(source).is_dir() and not (Path(source) / "model_index.json").is_file():
        raise UserError(f"--model {model} holds no pipeline: there is no model_index.json in it")
    try:
        pipe = RATLIPPipeline.from_pretrained(source, dtype=getattr(torch, dtype))
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"--model {model} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    return pipe.to(device)
