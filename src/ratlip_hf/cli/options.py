"""What subcommands share: options of device, precision and seeds, and loading the pipeline that `--model` names.
Libraries are imported when they are needed, so that help texts come at once."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .. import bundled
from ..utils.errors import UserError, one_line

if TYPE_CHECKING:
    import torch

    from ..pipeline import RATLIPPipeline

DTYPES = ("float32", "float16", "bfloat16")


def add_subcommands(parser: argparse.ArgumentParser, dest: str, metavar: str, summaries: dict[str, str]) -> dict:
    """A parser for each name; its summary is a line of this parser's help, and a sentence at the top of its own."""
    subparsers = parser.add_subparsers(dest=dest, required=True, metavar=metavar)
    return {
        name: subparsers.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        for name, text in summaries.items()
    }


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--model`."""
    text = "folder or repository of a pipeline (default: %(default)s, bundled)"
    parser.add_argument("--model", default=bundled.NAME, help=text)


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--device` and `--dtype`."""
    parser.add_argument("--device", help="torch device (default: cuda where there is one, else cpu)")
    parser.add_argument("--dtype", default="float32", help=f"one of {', '.join(DTYPES)} (default: float32)")


def check_dtype(dtype: str) -> torch.dtype:
    """The dtype of that name. Raises UserError for a name that is none of `DTYPES`."""
    import torch

    if dtype not in DTYPES:
        raise UserError(f"--dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    return getattr(torch, dtype)


def find_device(name: str | None) -> torch.device:
    """The device of that name, or the default; raises UserError for one that is not there."""
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()  # fails for devices that are absent or hold no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name} is not available here: {one_line(error)}") from error
    return device


def load_pipeline(model: str, dtype: torch.dtype | None = None, option: str = "--model") -> RATLIPPipeline:
    """The pipeline that an option names, in float32 or `dtype`. Raises UserError when it cannot be loaded."""
    import torch

    from ..pipeline import RATLIPPipeline

    quiet_libraries()
    source = find_pipeline(model, f"{option} {model}")
    try:
        return RATLIPPipeline.from_pretrained(source, dtype=dtype or torch.float32)
    except Exception as error:  # a damaged folder raises almost anything
        raise UserError(f"{option} {model} cannot be loaded: {one_line(error)}") from error


def find_pipeline(model: str, what: str) -> str | os.PathLike:
    """Folder or repository of a pipeline given as such, or by its name if it is bundled; `what` is for the error."""
    source = bundled.resolve(model)
    if Path(source).is_dir() and not (Path(source) / "model_index.json").is_file():
        raise UserError(f"{what} holds no pipeline: there is no model_index.json in it")
    return source


def add_seed_arguments(parser: argparse.ArgumentParser, num_images: int) -> None:
    """Add `--seed` and `--num_images`."""
    parser.add_argument("--seed", type=int, default=0, help="image i uses seed + i (default: 0)")
    text = "images, one for each seed (default: %(default)s)"
    parser.add_argument("--num_images", type=int, default=num_images, help=text)


def read_seeds(options: argparse.Namespace) -> list[int]:
    """The seed of each image. Raises UserError for what is no seed or no number of images."""
    if options.num_images < 1 or not 0 <= options.seed < 2**62:
        raise UserError("--num_images must be at least 1 and --seed a non-negative number")
    return list(range(options.seed, options.seed + options.num_images))


def draw_noise(pipe: RATLIPPipeline, seeds: list[int]) -> torch.Tensor:
    """z of each seed, [N, Z], as the pipeline draws it."""
    import torch

    from ..latents import prepare_latents

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return prepare_latents(len(seeds), pipe.generator.config.noise_dim, generators)


def read_image(path: Path, side: int) -> torch.Tensor:
    """The middle square of a picture in a file, [1, 3, side, side] in [-1, 1]. Raises UserError for what is none."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            square = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC)
    except OSError as error:
        raise UserError(f"{path} cannot be read as an image: {one_line(error)}") from error
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 127.5 - 1


def quiet_libraries() -> None:
    """No progress bars and no warnings of the libraries; what a user must know, the subcommands say themselves."""
    import diffusers
    import transformers

    for library in (diffusers.utils.logging, transformers.logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
