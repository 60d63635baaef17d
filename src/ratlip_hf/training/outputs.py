"""What a run leaves behind besides checkpoints and logs: pipeline, discriminator, sample grids and configuration.
Files and folders are written as a whole or not at all."""

import json
from pathlib import Path

import torch

from ..frozen_clip import FrozenCLIP
from ..images import grid_image
from ..latents import draw_latents
from ..models import RATLIPDiscriminator, RATLIPGenerator
from ..pipeline import RATLIPPipeline
from ..utils.files import atomic_directory, atomic_write, remove_unfinished, staged_files
from .config import TrainingConfig


def assemble(clip: FrozenCLIP, generator: RATLIPGenerator) -> RATLIPPipeline:
    """A pipeline of the run's CLIP and a generator network."""
    pipeline = RATLIPPipeline(clip.tokenizer, clip.text_encoder, clip.image_encoder, generator)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_models(output_dir: Path, pipeline: RATLIPPipeline, discriminator: RATLIPDiscriminator) -> None:
    """Write `pipeline/` (averaged generator) and `discriminator/` beside it."""
    for name, model in (("pipeline", pipeline), ("discriminator", discriminator)):
        with atomic_directory(output_dir / name) as folder:
            model.save_pretrained(folder)
        remove_unfinished(output_dir / name)


def save_run_config(output_dir: Path, config: TrainingConfig, clip: dict) -> None:
    """Write `config.json`, which `--config` reads again, and `clip.json`: which frozen CLIP the run really used."""
    atomic_write(output_dir / "config.json", config.to_json())
    atomic_write(output_dir / "clip.json", json.dumps(clip, indent=2) + "\n")


def save_samples(
    output_dir: Path,
    step: int,
    pipeline: RATLIPPipeline,
    prompt_embeds: torch.Tensor,
    batch_size: int,
    per_sentence: int = 4,
) -> None:
    """Write `samples/step-<n>.png`: pictures of each of the sentences, the same noise in every grid of the run."""
    noise = draw_latents(per_sentence, pipeline.generator.config.noise_dim, torch.Generator().manual_seed(0))
    options = {"num_images_per_prompt": per_sentence, "latents": noise.repeat(len(prompt_embeds), 1)}
    images = pipeline(prompt_embeds=prompt_embeds, batch_size=batch_size, **options).images
    with staged_files(output_dir / "samples") as folder:
        grid_image(images, columns=2 * per_sentence).save(folder / f"step-{step:08d}.png")
