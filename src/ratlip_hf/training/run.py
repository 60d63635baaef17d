"""A training run as one thing: everything that takes part, put together and brought to where it left off.
Owns the order of preparation, cheap checks first; the parts themselves are made in `preparation`."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ..frozen_clip import FrozenCLIP
from ..models import RATLIPDiscriminator, RATLIPGenerator
from ..pipeline import RATLIPPipeline
from ..utils.errors import UserError
from .config import TrainingConfig
from .data import CaptionedImages, load_training_data
from .dry_run import describe_run
from .ema import EMA
from .evaluation import Best
from .footprint import disk_use
from .optimization import Optimization
from .outputs import assemble
from .preflight import check_data, check_disk, check_surroundings, images_per_step
from .preparation import (
    build_networks,
    check_clip,
    compare_with_checkpoint,
    facts_of_run,
    fit_conditioning,
    load_frozen_clip,
    start_accelerator,
    wrap,
)
from .publishing import HubRepository
from .state import Checkpoints
from .step import Networks

logger = logging.getLogger(__name__)

SAMPLE_CAPTIONS = 16


@dataclass
class Run:
    """A run between two steps.

    `generator` and `discriminator` are the bare networks, which get saved; `nets` holds them as training runs them.
    `pipeline` draws with the averaged generator. `step` and `seen` count steps and real images of all processes.
    """

    config: TrainingConfig
    accelerator: Accelerator
    checkpoints: Checkpoints
    generator: RATLIPGenerator
    discriminator: RATLIPDiscriminator
    clip: FrozenCLIP
    data: CaptionedImages
    nets: Networks
    ema: EMA
    best: Best
    pipeline: RATLIPPipeline
    hub: HubRepository | None
    step: int = 0
    seen: int = 0

    @property
    def output_dir(self) -> Path:
        """Where everything goes."""
        return Path(self.config.output_dir)

    @property
    def per_step(self) -> int:
        """Real images that one step of all processes sees."""
        return images_per_step(self.config, self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return self.accelerator.is_main_process

    def facts(self) -> dict:
        """What a checkpoint says besides the states."""
        return {
            "step": self.step,
            "images": self.seen,
            **facts_of_run(self.generator, self.discriminator, self.config),
        }


def prepare(config: TrainingConfig) -> Run | None:
    """Put a run together and restore its checkpoint, if it has one; None after a dry run, which leaves nothing.

    Raises:
        UserError, ValueError: when configuration, surroundings, CLIP and data do not fit together.
    """
    accelerator = start_accelerator(config)
    check_surroundings(config, accelerator.num_processes, accelerator.device)
    checkpoints = Checkpoints(Path(config.output_dir) / "checkpoints", config.checkpoints_total_limit)
    found = _find_checkpoint(config, checkpoints)
    main = accelerator.is_main_process
    hub = HubRepository.open(config) if main and config.push_to_hub and not config.dry_run else None
    set_seed(config.seed)

    generator, discriminator, fresh = build_networks(config)
    if found:
        compare_with_checkpoint(found[1], generator, discriminator, config)
    clip = load_frozen_clip(config, accelerator.device)
    check_clip(clip, generator, discriminator)
    per_step = images_per_step(config, accelerator.num_processes)
    check_disk(config, disk_use(config, per_step, generator, discriminator, clip))

    with accelerator.main_process_first():  # sentence embeddings are made once
        data = load_training_data(config, generator.config.sample_size, generator.config.noise_dim, clip)
    if main:
        check_data(config, data, per_step)
    if config.dry_run:
        if main:
            print(describe_run(config, accelerator, generator, discriminator, clip, data), end="")
        return None
    if not found:
        fit_conditioning(fresh, clip, data, discriminator.config)

    device = accelerator.device
    ema = EMA(generator.to(device), config.ema_decay)
    nets = Networks(
        *wrap(generator, discriminator, clip.image_encoder, accelerator, config),
        Optimization.adam(generator, config.generator_learning_rate, config, device.type),
        Optimization.adam(discriminator, config.discriminator_learning_rate, config, device.type),
        clip.image_encoder,
        accelerator,
        config,
    )
    best, pipeline = Best(Path(config.output_dir)), assemble(clip, ema.module)
    run = Run(config, accelerator, checkpoints, generator, discriminator, clip, data, nets, ema, best, pipeline, hub)
    _restore(run, found)
    return run


def _find_checkpoint(config: TrainingConfig, checkpoints: Checkpoints) -> tuple[Path, dict] | None:
    which = config.resume_from_checkpoint
    if which and which != "latest" and checkpoints.any() and not checkpoints.owns(which):
        raise UserError(f"{config.output_dir} already holds another run than {which}: choose another --output_dir")
    if which:
        return checkpoints.find(which)
    if checkpoints.any() and not config.dry_run:
        raise UserError(
            f"{config.output_dir} already holds a run: continue it with --resume_from_checkpoint latest "
            "or choose another --output_dir"
        )
    return None


def _restore(run: Run, found: tuple[Path, dict] | None) -> None:
    """Name all that has a state, and load it from the checkpoint."""
    run.checkpoints.register(
        generator=run.generator,
        discriminator=run.discriminator,
        ema=run.ema,
        generator_optimization=run.nets.generator_optimization,
        discriminator_optimization=run.nets.discriminator_optimization,
        best=run.best,
    )
    if found:
        path, facts = found
        run.checkpoints.restore(path)
        run.step, run.seen = facts["step"], facts["images"]
        logger.info("resumed from %s at %d images", path, run.seen)
    elif run.config.resume_from_checkpoint:
        logger.info("nothing to resume in %s: a new run begins", run.config.output_dir)
    _check_agreement(run)


def _check_agreement(run: Run) -> None:
    """Processes on machines with a disk each may find different checkpoints, or only some of them one."""
    steps = run.accelerator.gather(torch.tensor([run.step], device=run.accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise UserError(
            f"the processes found different checkpoints, of the steps {steps}: output_dir must be the same folder on "
            "all machines"
        )
