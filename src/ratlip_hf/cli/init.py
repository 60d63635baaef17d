"""Write a training configuration that fits a CLIP. Only the CLIP's configuration is read, not its weights."""

import argparse
import json
from pathlib import Path

from ..utils.errors import UserError
from .options import quiet_libraries


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--clip", required=True, help="repository or folder of a CLIP that transformers loads")
    add("--clip_revision", help="branch, tag or commit of the CLIP repository")
    add("--sample_size", type=int, default=224, help="side of the images (default: %(default)s)")
    add("--output_file", type=Path, default=Path("ratlip.json"), help="the file to write (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    from ..clip import clip_configs
    from ..models.fitting import fit_to_clip
    from ..utils.files import atomic_write

    quiet_libraries()
    if options.output_file.exists():
        raise UserError(f"{options.output_file} exists: give another --output_file, or remove it")
    text, vision = clip_configs(options.clip, revision=options.clip_revision)
    fitting = fit_to_clip(vision, text, options.sample_size)
    values = {"preset": "ratlip", "clip": options.clip, "clip_revision": options.clip_revision, **fitting}
    options.output_file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(options.output_file, json.dumps(values, indent=2) + "\n")
    grid = fitting["generator"]["clip_grid"]
    print(f"CLIP           {vision.num_hidden_layers} layers of width {vision.hidden_size}, {grid} x {grid} patches")
    print(f"prompts        before layers {fitting['generator']['prompt_layers']}")
    print(f"features       after layers {fitting['discriminator']['feature_layers']}")
    print(f"written        {options.output_file}")
    print(f"sizes, memory  accelerate launch train_ratlip.py --config {options.output_file} --dry_run ...")
    return 0
