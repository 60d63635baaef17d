"""Generate images from prompts: one PNG per image, a grid and a manifest."""

import argparse
import json
import os
import re
from pathlib import Path

from ..utils.errors import UserError
from ..utils.files import read_text, split_lines, staged_files
from .options import add_device_arguments, add_model_argument, check_dtype, find_device, load_pipeline

MANIFEST, GRID = "manifest.jsonl", "grid.png"
_MOST_IMAGES = 1_000_000
_IN_GRID = 64
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
    jobs, dtype = _Jobs(options), check_dtype(options.dtype)
    with staged_files(options.output_dir) as folder:  # before loading, so that a failure to write is told at once
        earlier = _listed(options.output_dir / MANIFEST)
        pipe = load_pipeline(options.model, dtype).to(find_device(options.device))
        count, ended = 0, None
        try:
            for record, image in _generate(pipe, jobs, options):
                image.save(folder / record["file"], pnginfo=_metadata(record))
                with open(folder / MANIFEST, "a", encoding="utf-8") as manifest:
                    manifest.write(json.dumps(record) + "\n")
                count += 1
        except KeyboardInterrupt as error:
            if not count:
                raise
            ended = error
            _leave_whole_images(folder)
        _add_earlier(folder, earlier)
        _save_grid(folder, count, options.num_images)
    together = "all of them" if count <= _IN_GRID else f"the first {_IN_GRID}"
    print(f"{count} images in {options.output_dir}; {together} together: {options.output_dir / GRID}")
    if ended is not None:
        raise ended
    return 0


def _generate(pipe, jobs: "_Jobs", options: argparse.Namespace):
    """Yield the record and the image of each job."""
    import torch

    shared = {"model": options.model} | ({} if options.truncation is None else {"truncation": options.truncation})
    for start in range(0, len(jobs), _BATCH):
        batch = [jobs[index] for index in range(start, min(start + _BATCH, len(jobs)))]
        generators = [torch.Generator().manual_seed(seed) for _, seed in batch]
        images = pipe([prompt for prompt, _ in batch], generator=generators, truncation=options.truncation).images
        for index, ((prompt, seed), image) in enumerate(zip(batch, images, strict=True), start):
            yield {"file": _file_name(index, prompt), "prompt": prompt, "seed": seed, **shared}, image


class _Jobs:
    """(prompt, seed) of each image; Raises UserError for options that make no sense."""

    def __init__(self, options: argparse.Namespace):
        self.prompts = [prompt for prompt in options.prompts if prompt.strip()] + _read_prompts(options.prompts_file)
        self.per_prompt, self.seed = options.num_images, options.seed
        if not self.prompts:
            raise UserError('no prompt: give one, for example ratlip generate "a small red bird with black wings"')
        if any(not prompt.isascii() and re.search("[\ud800-\udfff]", prompt) for prompt in self.prompts):
            raise UserError("a prompt is not UTF-8 text")
        if self.per_prompt < 1:
            raise UserError(f"--num_images must be at least 1, not {self.per_prompt}")
        if len(self.prompts) * self.per_prompt > _MOST_IMAGES:
            raise UserError(f"--num_images {self.per_prompt} asks for more than {_MOST_IMAGES:,} images in one folder")
        if not 0 <= self.seed < 2**63 - len(self):
            raise UserError(f"--seed must be a non-negative 63-bit number, not {self.seed}")

    def __len__(self) -> int:
        return len(self.prompts) * self.per_prompt

    def __getitem__(self, index: int) -> tuple[str, int]:
        return self.prompts[index // self.per_prompt], self.seed + index


def _read_prompts(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = split_lines(read_text(path))
    except OSError as error:
        raise UserError(f"cannot read --prompts_file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--prompts_file {path} is not UTF-8 text") from error
    return [line.strip() for line in lines if line.strip()]


def _listed(manifest: Path) -> dict[str, str]:
    """What an earlier call has left: the line of each image by its file."""
    try:
        lines = split_lines(read_text(manifest)) if os.path.lexists(manifest) else []
        return {json.loads(line)["file"]: line for line in lines if line.strip()}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{manifest} is none of ratlip generate: choose another --output_dir") from error


def _leave_whole_images(folder: Path) -> None:
    """Remove what an interruption has left half-written: what is not in the manifest yet."""
    whole = {MANIFEST, *_listed(folder / MANIFEST)}
    for path in folder.iterdir():
        if path.name not in whole:
            path.unlink()


def _add_earlier(folder: Path, earlier: dict[str, str]) -> None:
    """Let the manifest list the images of earlier calls too, before the new ones, as far as they are still there."""
    new = (folder / MANIFEST).read_text(encoding="utf-8")
    kept = [
        line for file, line in earlier.items() if (folder.parent / file).is_file() and not (folder / file).exists()
    ]
    (folder / MANIFEST).write_text("".join(f"{line}\n" for line in kept) + new, encoding="utf-8")


def _save_grid(folder: Path, count: int, per_prompt: int) -> None:
    from PIL import Image

    from ..utils.display import grid_image

    records = split_lines((folder / MANIFEST).read_text(encoding="utf-8"))[-count:][:_IN_GRID]
    images = [Image.open(folder / json.loads(line)["file"]) for line in records]
    columns = min(per_prompt, _IN_GRID) if per_prompt > 1 else min(4, len(images))
    grid_image(images, columns, min_side=_GRID_SIDE).save(folder / GRID)


def _file_name(index: int, prompt: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].rstrip("-")
    return f"{index:04d}-{words or 'prompt'}.png"


def _metadata(record: dict):
    """What a PNG carries about itself: prompt, seed, model and a truncation."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key in [key for key in record if key != "file"]:
        info.add_itxt(key, str(record[key]))
    return info
