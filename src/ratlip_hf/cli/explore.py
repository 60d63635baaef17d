"""Look around in a model: every subcommand writes a labelled image and a manifest that says how it came about."""

import argparse
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ..utils.errors import UserError
from ..utils.files import staged_files
from . import explore_networks
from .options import (
    add_device_arguments,
    add_model_argument,
    add_seed_arguments,
    add_subcommands,
    check_dtype,
    draw_noise,
    find_device,
    load_pipeline,
    read_image,
    read_seeds,
)

_SUBCOMMANDS = {
    "interpolate": "walk through seeds and prompts in even steps: a strip and a GIF, and an MP4 where ffmpeg is there",
    "edit": "change words of a prompt with the noise held: each seed before and after",
    "mix": "take the bridge from one prompt and seed, and the image generator from others",
    "invert": "find the noise of an image, and change words of its prompt if wanted",
    "explain": "show where scores come from, what words are worth, and the generator's states and gates",
    "compare": "set models, or folders of images, side by side over prompts",
    "angles": "measure which way an edited word moves features, beside random word swaps",
}
_FRAME_MS = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    subparsers = add_subcommands(parser, "action", "action", _SUBCOMMANDS)
    for name, subparser in subparsers.items():
        _ARGUMENTS[name](subparser)
        if name != "compare":  # it has --sources
            add_model_argument(subparser)
        add = subparser.add_argument
        add("--output_dir", type=Path, default=Path("outputs"), help="folder for the files (default: outputs)")
        add_device_arguments(subparser)


def run(options: argparse.Namespace) -> int:
    dtype = check_dtype(options.dtype)
    with staged_files(options.output_dir) as folder:  # before loading, so that a failure to write is told at once
        device = find_device(options.device)
        if options.action == "compare":
            image, facts = explore_networks.compare(options, dtype, device)
        else:
            pipe = load_pipeline(options.model, dtype).to(device)
            image, facts = _ACTIONS[options.action](options, pipe, folder)
            facts = {"model": options.model, **facts}
        image.save(folder / f"{options.action}.png")
        manifest = {"action": options.action, **facts}
        manifest["files"] = sorted(path.name for path in folder.iterdir())
        (folder / f"{options.action}.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"{', '.join(manifest['files'])} in {options.output_dir}")
    return 0


def _interpolate_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompts", nargs="+", metavar="prompt", help="one for each seed, or a single one for all")
    add("--seeds", type=int, nargs="+", help="what to walk through (default: 0 1 for one prompt, else 0 for all)")
    add("--steps", type=int, default=8, help="images of the strip (default: %(default)s)")
    add("--frames", type=int, default=48, help="images of the GIF, there and back (default: %(default)s)")
    add("--straight_text", action="store_true", help="interpolate the text linearly, not on the sphere")


def _interpolate(options, pipe, folder: Path):
    import torch

    from .. import latents
    from ..clip import FrozenCLIP
    from ..utils.display import labelled_grid

    prompts, seeds = _way_points(options)
    embed = torch.no_grad()(FrozenCLIP.of(pipe).embed_images)
    noise, way = draw_noise(pipe, seeds), latents.lerp if options.straight_text else latents.slerp
    with torch.no_grad():
        (text,) = pipe.encode_prompt(prompts)

    def inputs(shares):
        return {
            "latents": latents.path(noise, shares),
            "prompt_embeds": latents.path(text.float(), shares, way),
            "batch_size": 1 if pipe.generator.couples_batch else 16,
        }

    def lengths_at(shares):
        images = pipe(**inputs(shares), output_type="pt").images
        return latents.step_lengths(2 * images - 1, embed)

    shares = latents.even_shares(lengths_at, options.frames)
    frames = pipe(**inputs(shares)).images
    chosen = [round(index * (len(frames) - 1) / (options.steps - 1)) for index in range(options.steps)]
    lengths = lengths_at(shares)
    turn = [*frames, *frames[-2:0:-1]]
    turn[0].save(folder / "interpolate.gif", save_all=True, append_images=turn[1:], duration=_FRAME_MS, loop=0)
    _write_video(turn, folder / "interpolate.mp4")
    title = " to ".join(f"{text} (seed {seed})" for text, seed in zip(prompts, seeds, strict=True))
    image = labelled_grid([[frames[index] for index in chosen]], title=title)
    facts = {"prompts": prompts, "seeds": seeds, "shares": [round(float(share), 4) for share in shares]}
    return image, {**facts, "longest_by_shortest_step": round(float(lengths.max() / lengths.min()), 3)}


def _way_points(options: argparse.Namespace) -> tuple[list[str], list[int]]:
    if options.steps < 2 or options.frames < options.steps:
        raise UserError("--steps must be at least 2 and --frames at least --steps")
    prompts = options.prompts
    seeds = options.seeds or ([0, 1] if len(prompts) == 1 else [0])
    count = max(len(prompts), len(seeds))
    if count < 2 or len(prompts) not in (1, count) or len(seeds) not in (1, count):
        raise UserError(f"{len(prompts)} prompts and {len(seeds)} seeds make no way: give as many of both, or one")
    return prompts * (count // len(prompts)), seeds * (count // len(seeds))


def _write_video(frames: list, path: Path) -> None:
    """An MP4 by ffmpeg, where there is one."""
    if (program := shutil.which("ffmpeg")) is None:
        return
    width, height = (side - side % 2 for side in frames[0].size)
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(round(1000 / _FRAME_MS))]
    command = [program, "-v", "error", "-y", *raw, "-i", "-", "-pix_fmt", "yuv420p", str(path)]
    content = b"".join(frame.convert("RGB").crop((0, 0, width, height)).tobytes() for frame in frames)
    done = subprocess.run(command, input=content, capture_output=True)
    if done.returncode:
        raise UserError(f"ffmpeg failed: {done.stderr.decode(errors='replace')}")


def _edit_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompt", help="what the images show before")
    add("edited_prompts", nargs="+", metavar="edited_prompt", help="and after")
    add("--keep_steps", type=int, default=10, help="steps that hold the rest of an image (default: %(default)s)")
    add_seed_arguments(parser, 4)


def _edit(options, pipe, folder: Path):
    from ..utils.display import labelled_grid

    seeds, texts = read_seeds(options), [options.prompt, *options.edited_prompts]
    if options.keep_steps < 0:
        raise UserError("--keep_steps must not be negative")
    noise, count = draw_noise(pipe, seeds), len(seeds)
    rows: list = []  # of images
    for edited in options.edited_prompts:
        images = pipe.edit([options.prompt] * count, [edited] * count, None, noise, options.keep_steps).images
        rows += [images[count:]] if rows else [images[:count], images[count:]]
    image = labelled_grid(rows, texts, [f"seed {seed}" for seed in seeds])
    facts = {"prompt": options.prompt, "edited_prompts": options.edited_prompts}
    return image, {**facts, "seeds": seeds, "keep_steps": options.keep_steps}


def _mix_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("bridge_prompt", help="of the bridge and the CLIP block")
    add("image_prompt", help="of the image generator")
    add_seed_arguments(parser, 4)
    add("--image_seed", type=int, default=100, help="of the image generator's noise, counted alike (default: 100)")


def _mix(options, pipe, folder: Path):
    from ..utils.display import labelled_grid

    seeds = read_seeds(options)
    image_seeds = [options.image_seed + seed - options.seed for seed in seeds]
    pairs = [(options.bridge_prompt, seeds), (options.image_prompt, image_seeds)]
    first, second = [(pipe.encode_prompt([text] * len(part))[0], draw_noise(pipe, part)) for text, part in pairs]

    def images(one, other):
        return pipe(
            prompt_embeds=one[0], latents=one[1], style_prompt_embeds=other[0], style_latents=other[1], batch_size=1
        ).images

    rows = [images(first, first), images(first, second), images(second, second)]
    labels = [f"all: {options.bridge_prompt}", "bridge of the first, image generator of the last row"]
    image = labelled_grid(
        rows, [*labels, f"all: {options.image_prompt}"], [f"{a}, {b}" for a, b in zip(seeds, image_seeds, strict=True)]
    )
    return image, {
        "bridge_prompt": options.bridge_prompt,
        "image_prompt": options.image_prompt,
        "seeds": seeds,
        "image_seeds": image_seeds,
    }


def _invert_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("image", type=Path, help="a picture of what the model makes; it is cropped to a square and resized")
    add("--prompt", required=True, help="what it shows")
    add("--edit", nargs="+", default=[], metavar="PROMPT", help="prompts to change it to")
    add("--steps", type=int, default=60, help="of descent (default: %(default)s)")
    add("--hold_text", action="store_true", help="look for noise only, and leave the text embedding as it is")
    add("--seed", type=int, default=0, help="of the draws to start from (default: 0)")


def _invert(options, pipe, folder: Path):
    import torch

    from ..inversion import edit, invert
    from ..utils.display import labelled_grid

    if options.steps < 0:
        raise UserError("--steps must not be negative")
    target = read_image(options.image, pipe.generator.config.sample_size).to(pipe.generator.device)
    with torch.no_grad():
        texts = pipe.encode_prompt([options.prompt, *options.edit])[0].float()
    rate: dict[str, Any] = {"text_rate": 0.0} if options.hold_text else {}
    found = invert(
        pipe.generator, pipe.image_encoder, target, texts[:1], steps=options.steps, seed=options.seed, **rate
    )
    changes = [edit(pipe.generator, pipe.image_encoder, found, text[None] - texts[:1]) for text in texts[1:]]
    shown = torch.cat([target, found.images, *(each.images for each in changes)])
    pictures = pipe.image_processor.postprocess(shown, output_type="pil")
    labels = ["given", f"found: {options.prompt}", *options.edit]
    torch.save({"latents": found.noise, "prompt_embeds": found.prompt_embeds}, folder / "invert.pt")
    image = labelled_grid([pictures], column_labels=labels, side=160)
    facts = {"image": str(options.image), "prompt": options.prompt, "edits": options.edit, "steps": options.steps}
    return image, {**facts, "seed": options.seed, "distance": round(float(found.distance), 4)}


_ARGUMENTS = {
    "interpolate": _interpolate_arguments,
    "edit": _edit_arguments,
    "mix": _mix_arguments,
    "invert": _invert_arguments,
    "explain": explore_networks.explain_arguments,
    "compare": explore_networks.compare_arguments,
    "angles": explore_networks.angles_arguments,
}
_ACTIONS = {
    "interpolate": _interpolate,
    "edit": _edit,
    "mix": _mix,
    "invert": _invert,
    "explain": explore_networks.explain,
    "angles": explore_networks.angles,
}
