"""The parts of a run: accelerator, networks, CLIP, and a batch as the step wants it; checked against each other.
A training run as one thing: everything that takes part, put together and brought to where it left off."""

import dataclasses
import json
import logging
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, set_seed
from diffusers.configuration_utils import FrozenDict
from torch import nn

from ..bundled import resolve
from ..clip import FrozenCLIP, image_features, load_clip
from ..models import RATLIPDiscriminator, RATLIPGenerator
from ..models.base import RATLIPModel
from ..pipeline import RATLIPPipeline
from ..utils.errors import UserError
from .augmentation import draw
from .batch_norm import synchronize_batch_norm
from .checkpoints import Checkpoints
from .config import TrainingConfig
from .footprint import disk_use
from .hub import HubRepository
from .monitor import tracker_arguments
from .optimization import EMA, Optimization
from .preflight import check_data, check_disk, check_surroundings, describe_run, images_per_step
from .samples import Batch, CaptionedImages, load_training_data
from .step import Networks, StepInputs
from .validation import Best

logger = logging.getLogger(__name__)

_STATISTICS = 1024  # samples on which centring and scaling are fitted
_PATIENCE = timedelta(hours=6)  # for the main process, which alone loads data first, embeds captions and evaluates


def start_accelerator(config: TrainingConfig) -> Accelerator:
    """accelerate's view of the processes; precision and accumulation are ours, see [`Networks`]."""
    # BatchNorm statistics are the same everywhere already: sending buffers at every forward would be waste.
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False)
    waiting = InitProcessGroupKwargs(timeout=_PATIENCE)
    return Accelerator(mixed_precision="no", kwargs_handlers=[parallel, waiting], **tracker_arguments(config))


def build_networks(config: TrainingConfig) -> tuple[RATLIPGenerator, RATLIPDiscriminator, list[RATLIPModel]]:
    """Generator and discriminator, fresh or to be fine-tuned, and which of them are fresh.

    A pipeline that is fine-tuned brings its discriminator in a folder of that name: inside, as on the Hub, or beside
    it, as the trainer leaves it. Without one the discriminator starts anew, with a warning.

    Raises:
        UserError: when there is no pipeline to fine-tune.
    """
    if config.pretrained_model_name_or_path is None:
        generator = RATLIPGenerator.from_preset(config.preset, **config.generator)
        discriminator = RATLIPDiscriminator.from_preset(config.preset, **config.discriminator)
        return generator, discriminator, [generator, discriminator]
    source, where = resolve(config.pretrained_model_name_or_path), {"revision": config.revision}
    try:
        generator = RATLIPGenerator.from_pretrained(str(source), subfolder="generator", **where)
    except OSError as error:
        raise UserError(f"no pipeline to fine-tune at {source}: {str(error).splitlines()[0]}") from error
    if (discriminator := RATLIPDiscriminator.of_pipeline(source, **where)) is not None:
        return generator, discriminator, []
    logger.warning("no discriminator comes with %s: a fresh one of the preset %s is used", source, config.preset)
    discriminator = RATLIPDiscriminator.from_preset(config.preset)
    return generator, discriminator, [discriminator]


def load_frozen_clip(config: TrainingConfig, device: torch.device) -> FrozenCLIP:
    """The configured CLIP on the device, in float32 even where its files are in half precision: autocast decides."""
    revision = config.clip_revision if config.clip else config.revision
    clip = load_clip(config.clip_source, **({"revision": revision} if revision else {}))
    clip.text_encoder.to(device, torch.float32), clip.image_encoder.to(device, torch.float32)
    return clip


def facts_of_run(generator: RATLIPGenerator, discriminator: RATLIPDiscriminator, config: TrainingConfig) -> dict:
    """What a checkpoint remembers besides states: both architectures and the training configuration."""
    networks = {"generator": generator, "discriminator": discriminator}
    architecture = {name: json.loads(network.to_json_string()) for name, network in networks.items()}
    return {"architecture": architecture, "config": dataclasses.asdict(config)}


def compare_with_checkpoint(
    facts: dict, generator: RATLIPGenerator, discriminator: RATLIPDiscriminator, config: TrainingConfig
) -> None:
    """Refuse another architecture with a UserError; report every other change and go on."""
    now = facts_of_run(generator, discriminator, config)
    for network, options in facts["architecture"].items():
        for name, old in options.items():
            new = now["architecture"][network].get(name)
            if new != old and not name.startswith("_"):
                raise UserError(f"the checkpoint's {network} has {name} {old}, this run's has {new}")
    for name, new in now["config"].items():
        old = facts["config"].get(name)
        if new != old and name not in ("resume_from_checkpoint", "generator", "discriminator"):
            logger.warning("changed since the checkpoint: %s from %s to %s", name, old, new)


def check_clip(clip: FrozenCLIP, *networks: RATLIPGenerator | RATLIPDiscriminator) -> None:
    """Raise ValueError if a network was built for another CLIP."""
    for network in networks:
        network.check_tower(clip.image_encoder.config)
        if network.config.text_dim != clip.text_encoder.config.projection_dim:
            raise ValueError(
                f"this {type(network).__name__} was built for sentence embeddings of width {network.config.text_dim}, "
                f"not {clip.text_encoder.config.projection_dim} as those of {clip.source}"
            )


def fit_conditioning(fresh: list[RATLIPModel], clip: FrozenCLIP, data: CaptionedImages, reader: FrozenDict) -> None:
    """Set the buffers that centre and scale CLIP's outputs, where fresh networks have any, from the first samples.

    `reader` is the discriminator's configuration, which says what it reads of the image tower.
    """
    if not fresh:
        return
    texts = clip.encode(data.first_captions(_STATISTICS)).cpu()
    for network in fresh:
        network.text_conditioning.fit(texts)
        if isinstance(network, RATLIPDiscriminator) and reader.scale_features:
            images = data.batch(range(64)).images.to(clip.image_encoder.device)
            with torch.no_grad():
                features = image_features(clip.image_encoder, images, reader.feature_layers, reader.clip_input)
            network.feature_scale.fit(features.cpu())


def wrap(
    generator: RATLIPGenerator,
    discriminator: RATLIPDiscriminator,
    image_encoder: nn.Module,
    accelerator: Accelerator,
    config: TrainingConfig,
) -> tuple[nn.Module, nn.Module]:
    """Both networks as training runs them; what is given here stays bare, and is what gets saved."""
    for network in (generator, discriminator):
        network.train()
        if config.gradient_checkpointing:
            network.enable_gradient_checkpointing()
    if accelerator.num_processes > 1:
        synchronize_batch_norm(generator)
    if config.torch_compile:
        # Not the discriminator: the penalty differentiates it twice, which compiled code cannot.
        for module in (generator, *image_encoder.vision_model.encoder.layers):
            module.compile()
    with warnings.catch_warnings():  # newer torch has another name for what accelerate asks of it on our behalf
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return accelerator.prepare(generator, discriminator)


def step_inputs(batch: Batch, clip: FrozenCLIP, device: torch.device, config: TrainingConfig) -> StepInputs:
    """A batch of data as the step wants it: on the device, sentences encoded, random numbers drawn."""
    texts = [batch.prompt_embeds, batch.mismatched_embeds]
    if batch.prompt_embeds is None:
        # Most mismatched captions are captions of the same batch, too.
        sentences = {caption: index for index, caption in enumerate(dict.fromkeys(batch.captions + batch.mismatched))}
        encoded = clip.encode(list(sentences))
        texts = [encoded[[sentences[text] for text in which]] for which in (batch.captions, batch.mismatched)]
    draws = [None, None]
    if config.augmentations:
        draws = [draw(config.seed, batch.indices, generated).to(device) for generated in (False, True)]
    tensors = (batch.images, batch.noise, *texts)
    return StepInputs(*(tensor.to(device, non_blocking=True) for tensor in tensors), *draws)


def describe(generator, discriminator, data: CaptionedImages, config: TrainingConfig) -> str:
    """One line: sizes of networks and data."""
    sizes = [sum(p.numel() for p in network.parameters()) / 1e6 for network in (generator, discriminator)]
    return (
        f"generator {sizes[0]:.2f} M parameters, discriminator {sizes[1]:.2f} M, {len(data)} images, "
        f"{config.max_train_images} images to see"
    )


SAMPLE_CAPTIONS = 16


def assemble(clip: FrozenCLIP, generator: RATLIPGenerator) -> RATLIPPipeline:
    """A pipeline of the run's CLIP and a generator network."""
    pipeline = RATLIPPipeline(clip.tokenizer, clip.text_encoder, clip.image_encoder, generator)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


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
