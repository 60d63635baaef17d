"""Draw images from sentences: one PNG per image, a grid and a manifest.
Owns the verb's options and files; drawing is the pipeline's."""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .. import bundled
from ..pipeline import RATLIPPipeline
from ..utils.display import grid_image
from ..utils.errors import UserError
from ..utils.files import staged_files
from .options import add_device_arguments, check_dtype, find_device, load_pipeline

_BATCH = 16  # images per forward pass: bounds memory, changes no image
_GRID_SIDE = 192  # smaller images are enlarged in the grid, which is made for looking at


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompts", nargs="*", metavar="prompt", help="sentences to draw")
    parser.add_argument("--prompts_file", type=Path, help="text file with one sentence per line, added to the others")
    parser.add_argument(
        "--model", default=bundled.NAME, help="folder or repository of a pipeline (default: %(default)s, bundled)"
    )
    parser.add_argument("--num_images", type=int, default=1, help="images per sentence (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="image i uses seed + i (default: 0)")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs"), help="folder for the files (default: outputs)"
    )
    add_device_arguments(parser)


def run(options: argparse.Namespace) -> int:
    prompts = [prompt for prompt in options.prompts if prompt.strip()] + _read_prompts(options.prompts_file)
    if not prompts:
        raise UserError('no prompt: give a sentence, for example ratlip generate "a small red bird with black wings"')
    if options.num_images < 1:
        raise UserError(f"--num_images must be at least 1, not {options.num_images}")
    if not 0 <= options.seed < 2**63 - len(prompts) * options.num_images:
        raise UserError(f"--seed must be a non-negative 63-bit number, not {options.seed}")
    dtype = check_dtype(options.dtype)
    drawn = [prompt for prompt in prompts for _ in range(options.num_images)]
    jobs = [(prompt, options.seed + index) for index, prompt in enumerate(drawn)]
    with staged_files(
        options.output_dir
    ) as folder:  # first of all, so that a folder that cannot be written is told at once
        device = find_device(options.device)
        pipe = load_pipeline(options.model, dtype).to(device)
        records, images = [], []
        for index, ((prompt, seed), image) in enumerate(zip(jobs, _draw(pipe, jobs), strict=True)):
            record = {"file": _file_name(index, prompt), "prompt": prompt, "seed": seed, "model": options.model}
            image.save(folder / record["file"], pnginfo=_metadata(record))
            records.append(record)
            images.append(image)
        columns = options.num_images if options.num_images > 1 else min(4, len(images))
        grid_image(images, columns, min_side=_GRID_SIDE).save(folder / "grid.png")
        (folder / "manifest.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    print(f"{len(images)} images in {options.output_dir}; all of them together: {options.output_dir / 'grid.png'}")
    return 0


def _read_prompts(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read --prompts_file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--prompts_file {path} is not UTF-8 text") from error
    return [line.strip() for line in lines if line.strip()]


def _draw(pipe: RATLIPPipeline, jobs: list[tuple[str, int]]) -> Iterator[Image.Image]:
    """PIL images of (prompt, seed) pairs, in order."""
    for start in range(0, len(jobs), _BATCH):
        prompts, seeds = zip(*jobs[start : start + _BATCH], strict=True)
        yield from pipe(list(prompts), generator=[torch.Generator().manual_seed(seed) for seed in seeds]).images


def _file_name(index: int, prompt: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].rstrip("-")
    return f"{index:04d}-{words or 'prompt'}.png"


def _metadata(record: dict) -> PngInfo:
    info = PngInfo()
    for key in ("prompt", "seed", "model"):
        info.add_itxt(key, str(record[key]))
    return info
