"""The training loop, read from top to bottom: prepare, resume, iterate, save.
Owns the order of things; what a step does is in `step`, what is kept in `state` and `outputs`."""

import logging
import math
import time
from itertools import islice
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch.nn.utils import get_total_norm

from ..utils.errors import UserError
from ..utils.precision import at_least_float32
from .config import TrainingConfig
from .data import load_training_data
from .ema import EMA
from .optimization import Optimization, rate_factor
from .outputs import Log, assemble, save_models, save_run_config, save_samples
from .preparation import (
    build_networks,
    check_clip,
    compare_with_checkpoint,
    describe,
    facts_of_run,
    fit_conditioning,
    load_frozen_clip,
    start_accelerator,
    step_inputs,
    wrap,
)
from .state import Checkpoints
from .step import Networks, training_step

logger = logging.getLogger(__name__)

_SAMPLE_CAPTIONS = 16


def train(config: TrainingConfig) -> Path:
    """Train as configured and return the output folder.

    Time is counted in real images seen over all processes: it decides the data order, the noise and the learning
    rate, and it is all that a resumed run needs to know besides the states of networks and optimizers. Nothing in a
    step draws from a global random state.

    Raises:
        UserError, ValueError: before anything is trained, when configuration, CLIP and data do not fit together; later
            when the run diverges.
    """
    accelerator = start_accelerator(config)
    main, device, output_dir = accelerator.is_main_process, accelerator.device, Path(config.output_dir)
    checkpoints = Checkpoints(output_dir / "checkpoints", config.checkpoints_total_limit)
    if checkpoints.any() and not config.resume_from_checkpoint:
        raise UserError(
            f"{output_dir} already holds a run: continue it with --resume_from_checkpoint latest "
            "or choose another --output_dir"
        )
    found = checkpoints.find(config.resume_from_checkpoint) if config.resume_from_checkpoint else None
    set_seed(config.seed)

    # Networks and data
    generator, discriminator, fresh = build_networks(config)
    if found:
        compare_with_checkpoint(found[1], generator, discriminator, config)
    clip = load_frozen_clip(config, device)
    check_clip(clip, generator, discriminator)
    data = load_training_data(config, generator.config.sample_size, generator.config.noise_dim, clip)
    if not found:
        fit_conditioning(fresh, clip, data, discriminator.config)

    # Optimisation
    ema = EMA(generator.to(device), config.ema_decay)
    nets = Networks(
        *wrap(generator, discriminator, clip.image_encoder, accelerator, config),
        Optimization.adam(generator, config.generator_learning_rate, config, device.type),
        Optimization.adam(discriminator, config.discriminator_learning_rate, config, device.type),
        clip.image_encoder,
        accelerator,
        config,
    )
    checkpoints.register(
        generator=generator,
        discriminator=discriminator,
        ema=ema,
        generator_optimization=nets.generator_optimization,
        discriminator_optimization=nets.discriminator_optimization,
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
    per_step = config.train_batch_size * accelerator.num_processes * config.gradient_accumulation_steps
    micro_batches = data.batches(seen, accelerator.process_index, accelerator.num_processes)
    started, first = time.monotonic(), seen
    while seen < config.max_train_images:
        batches = islice(micro_batches, config.gradient_accumulation_steps)
        inputs = [step_inputs(batch, clip, device, config) for batch in batches]
        nets.set_rates(rate_factor(config, step, seen))
        figures = averaged(training_step(nets, inputs, penalise=step % config.penalty_interval == 0), nets)
        step, seen = step + 1, seen + per_step
        stop_if_not_finite(figures, step, range(seen - per_step, seen))
        ema.update(generator)
        if not main:
            continue
        if step % config.logging_steps == 0:
            rate = (seen - first) / (time.monotonic() - started)
            rounded = {name: round(value, 4) for name, value in figures.items()}
            log.write({"step": step, "images": seen, **rounded, "images_per_second": round(rate, 1)})
        if crossed(seen, per_step, config.sample_every):
            save_samples(output_dir, step, pipeline, data.first_captions(_SAMPLE_CAPTIONS))
        if step % config.checkpointing_steps == 0 or seen >= config.max_train_images:
            # Finite losses do not rule out that the optimizer's last move was none.
            norms = {name: float(get_total_norm(network.parameters())) for name, network in trained.items()}
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


def averaged(figures: dict[str, torch.Tensor], nets: Networks) -> dict[str, float]:
    """Means over all processes, in one transfer; every process gets the same numbers and so takes the same turns."""
    together = nets.accelerator.reduce(torch.stack([at_least_float32(value) for value in figures.values()]), "mean")
    return dict(zip(figures, together.tolist(), strict=True))


def stop_if_not_finite(figures: dict[str, float], step: int, samples: range) -> None:
    """Raise UserError when a loss or a norm of weights is NaN or infinite; no checkpoint holds such weights.

    A gradient may overflow: float16 then skips the move, and otherwise the next losses show it.
    """
    judged = [value for name, value in figures.items() if not name.endswith("grad_norm")]
    if not all(map(math.isfinite, judged)):
        listed = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        raise UserError(
            f"training diverged at step {step} (global samples {samples.start} to {samples.stop - 1}): {listed}; "
            "lower the learning rates; a checkpoint, if there is one already, is from before it and can be resumed"
        )


def crossed(seen: int, per_step: int, interval: int) -> bool:
    """Whether the last step went over a multiple of `interval` images."""
    return seen // interval > (seen - per_step) // interval
