"""Generate images from prompts: one PNG per image, a grid and a manifest."""

import argparse
import json
import re
from pathlib import Path

from ..utils.errors import UserError
from ..utils.files import staged_files
from .options import add_device_arguments, add_model_argument, check_dtype, find_device, load_pipeline

_BATCH = 16  # images per forward pass: bounds memory, changes no image
_GRID_SIDE = 192  # pixels; smaller images are enlarged in the grid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompts", nargs="*", metavar="prompt", help="what the images are to show")
    add("--prompts_file", type=Path, help="text file with one prompt per line, added to the others")
    add_model_argument(parser)
    add("--num_images", type=int, default=1, help="images per prompt (default: 1)")
    add("--seed", type=int, default=0, help="image i uses seed + i (default: 0)")
    add("--truncation", type=float, help="sample noise beyond this value again: less variety, more typical images")
    add("--output_dir", type=Path, default=Path("outputs"), help="folder for the files (default: outputs)")
    add_device_arguments(parser)


def run(options: argparse.Namespace) -> int:
    import torch

    from ..utils.display import grid_image

    jobs, dtype = _jobs(options), check_dtype(options.dtype)
    with staged_files(options.output_dir) as folder:  # before loading, so that a failure to write is told at once
        pipe = load_pipeline(options.model, dtype).to(find_device(options.device))
        images = []
        for start in range(0, len(jobs), _BATCH):
            prompts, seeds = zip(*jobs[start : start + _BATCH], strict=True)
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            images += pipe(list(prompts), generator=generators, truncation=options.truncation).images
        cut = {} if options.truncation is None else {"truncation": options.truncation}
        records = [
            {"file": _file_name(index, prompt), "prompt": prompt, "seed": seed, "model": options.model, **cut}
            for index, (prompt, seed) in enumerate(jobs)
        ]
        for record, image in zip(records, images, strict=True):
            image.save(folder / record["file"], pnginfo=_metadata(record))
        columns = options.num_images if options.num_images > 1 else min(4, len(images))
        grid_image(images, columns, min_side=_GRID_SIDE).save(folder / "grid.png")
        (folder / "manifest.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    print(f"{len(images)} images in {options.output_dir}; all of them together: {options.output_dir / 'grid.png'}")
    return 0


def _jobs(options: argparse.Namespace) -> list[tuple[str, int]]:
    """(prompt, seed) of each image."""
    prompts = [prompt for prompt in options.prompts if prompt.strip()] + _read_prompts(options.prompts_file)
    if not prompts:
        raise UserError('no prompt: give one, for example ratlip generate "a small red bird with black wings"')
    if options.num_images < 1:
        raise UserError(f"--num_images must be at least 1, not {options.num_images}")
    if not 0 <= options.seed < 2**63 - len(prompts) * options.num_images:
        raise UserError(f"--seed must be a non-negative 63-bit number, not {options.seed}")
    repeated = [prompt for prompt in prompts for _ in range(options.num_images)]
    return [(prompt, options.seed + index) for index, prompt in enumerate(repeated)]


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


def _file_name(index: int, prompt: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].rstrip("-")
    return f"{index:04d}-{words or 'prompt'}.png"


def _metadata(record: dict):
    """What a PNG carries about itself: prompt, seed, model and a truncation."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key in record.keys() - {"file"}:
        info.add_itxt(key, str(record[key]))
    return info
