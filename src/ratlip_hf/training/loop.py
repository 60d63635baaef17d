"""The training loop, read from top to bottom: prepare, resume, iterate, save.
Owns the order of things; what a step does is in `step`, what is kept in `state` and `outputs`."""

import logging
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.nn.utils import get_total_norm

from ..frozen_clip import FrozenCLIP, load_clip
from ..models import RATLIPDiscriminator, RATLIPGenerator
from ..utils.errors import UserError
from .config import TrainingConfig
from .data import Batch, load_training_data
from .ema import EMA
from .outputs import Log, assemble, save_models, save_run_config, save_samples
from .preparation import check_clip, compare_with_checkpoint, describe, facts_of_run, fit_conditioning
from .state import Checkpoints
from .step import Networks, training_step

logger = logging.getLogger(__name__)

_SAMPLE_CAPTIONS = 16


def train(config: TrainingConfig) -> Path:
    """Train as configured and return the output folder.

    Time is counted in real images seen over all processes: it decides the data order, the noise and the learning
    rate, and it is all that a resumed run needs to know besides the states of networks and optimizers.

    Raises:
        UserError, ValueError: before anything is trained, when configuration, CLIP and data do not fit together.
    """
    accelerator = Accelerator(mixed_precision="no")  # see Networks.autocast
    main, device, output_dir = accelerator.is_main_process, accelerator.device, Path(config.output_dir)
    checkpoints = Checkpoints(output_dir / "checkpoints", config.checkpoints_total_limit)
    if checkpoints.any() and not config.resume_from_checkpoint:
        raise UserError(
            f"{output_dir} already holds a run: continue it with --resume_from_checkpoint latest "
            "or choose another --output_dir"
        )
    found = checkpoints.find(config.resume_from_checkpoint) if config.resume_from_checkpoint else None
    set_seed(config.seed)

    # Networks
    generator = RATLIPGenerator.from_preset(config.preset, **config.generator)
    discriminator = RATLIPDiscriminator.from_preset(config.preset, **config.discriminator)
    if found:
        compare_with_checkpoint(found[1], generator, discriminator, config)
    clip = load_clip(config.clip_source, **({"revision": config.clip_revision} if config.clip_revision else {}))
    check_clip(clip, generator, discriminator)
    clip.text_encoder.to(device), clip.image_encoder.to(device)

    # Data
    data = load_training_data(config, generator.config.sample_size, generator.config.noise_dim, clip)
    fit_conditioning(generator, discriminator, clip, data)

    # Optimisation
    betas = (config.adam_beta1, config.adam_beta2)
    ema = EMA(generator.to(device), config.ema_decay)
    networks = accelerator.prepare(
        generator,
        discriminator,
        torch.optim.Adam(generator.parameters(), config.generator_learning_rate, betas),
        torch.optim.Adam(
            [p for p in discriminator.parameters() if p.requires_grad], config.discriminator_learning_rate, betas
        ),
    )
    nets = Networks(*networks, clip.image_encoder, accelerator, config)
    checkpoints.register(
        generator=generator,
        discriminator=discriminator,
        ema=ema,
        generator_optimizer=nets.generator_optimizer,
        discriminator_optimizer=nets.discriminator_optimizer,
    )

    # Resume
    step, seen = 0, 0
    if found:
        path, facts = found
        checkpoints.restore(path)
        step, seen = facts["step"], facts["images"]
    pipeline = assemble(clip, ema.module)
    if main:
        save_run_config(output_dir, config, clip.describe())
        log = Log(output_dir / "log.jsonl", step)
        logger.info(describe(generator, discriminator, data, config))

    # Iterate
    trained = {"generator_norm": generator, "discriminator_norm": discriminator}
    per_step = config.train_batch_size * accelerator.num_processes
    started, first = time.monotonic(), seen
    for batch in data.batches(seen, accelerator.process_index, accelerator.num_processes):
        if seen >= config.max_train_images:
            break
        set_learning_rates(nets, config, seen)
        metrics = training_step(nets, *to_tensors(batch, clip, device))
        stop_if_not_finite(metrics, step + 1, range(seen, seen + per_step))
        ema.update(generator)
        step, seen = step + 1, seen + per_step
        if not main:
            continue
        if step % config.logging_steps == 0:
            rate = (seen - first) / (time.monotonic() - started)
            rounded = {name: round(float(value), 4) for name, value in metrics.items()}
            log.write({"step": step, "images": seen, **rounded, "images_per_second": round(rate, 1)})
        if crossed(seen, per_step, config.sample_every):
            save_samples(output_dir, step, pipeline, data.first_captions(_SAMPLE_CAPTIONS))
        if step % config.checkpointing_steps == 0 or seen >= config.max_train_images:
            # Finite losses do not rule out that the optimizer's last move was none.
            norms = {name: get_total_norm(network.parameters()) for name, network in trained.items()}
            stop_if_not_finite(norms, step, range(seen - per_step, seen))
            # In this order: whoever finds the last checkpoint finds the models too.
            save_models(output_dir, pipeline, discriminator)
            checkpoints.save(step, {"step": step, "images": seen, **facts_of_run(generator, discriminator, config)})

    if main:
        if seen == first and step:  # nothing was left to do, but the models may have been moved away
            save_models(output_dir, pipeline, discriminator)
        logger.info("finished: %s", output_dir)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return output_dir


def to_tensors(
    batch: Batch, clip: FrozenCLIP, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, noise and sentence embeddings of a batch on the device."""
    prompt_embeds = clip.encode(batch.captions) if batch.prompt_embeds is None else batch.prompt_embeds.to(device)
    return batch.images.to(device), batch.noise.to(device), prompt_embeds


def stop_if_not_finite(figures: dict[str, torch.Tensor], step: int, samples: range) -> None:
    """Raise UserError when a loss or a norm of weights is NaN or infinite; no checkpoint holds such weights."""
    if not all(bool(value.isfinite()) for value in figures.values()):
        listed = ", ".join(f"{name} {float(value):.4g}" for name, value in figures.items())
        raise UserError(
            f"training diverged at step {step} (global samples {samples.start} to {samples.stop - 1}): {listed}; "
            "lower the learning rates; a checkpoint, if there is one already, is from before it and can be resumed"
        )


def set_learning_rates(nets: Networks, config: TrainingConfig, seen: int) -> None:
    """Constant, then linear over the last third of the run towards `final_learning_rate_factor`."""
    late = max(0.0, 3 * seen / config.max_train_images - 2)
    factor = 1 - late * (1 - config.final_learning_rate_factor)
    for optimizer, rate in (
        (nets.generator_optimizer, config.generator_learning_rate),
        (nets.discriminator_optimizer, config.discriminator_learning_rate),
    ):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor


def crossed(seen: int, per_step: int, interval: int) -> bool:
    """Whether the last step went over a multiple of `interval` images."""
    return seen // interval > (seen - per_step) // interval
