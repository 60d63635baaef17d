"""A training run as one thing: everything that takes part, put together, checked and brought to where it left off."""

import contextlib
import dataclasses
import json
import logging
import warnings
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, set_seed
from torch import nn

from ..bundled import resolve
from ..clip import FrozenCLIP, image_features, load_clip
from ..data.read.rows import rows_sha256
from ..models import RATLIPDiscriminator, RATLIPGenerator
from ..models.base import RATLIPModel
from ..pipeline import RATLIPPipeline
from ..utils.errors import UserError, one_line
from ..utils.locks import locked
from . import pixel_losses as pixels
from .batch_norm import synchronize_batch_norm
from .checkpoints import Checkpoints
from .config import TrainingConfig
from .ending import Ending
from .footprint import MODELS, disk_use
from .hub import HubRepository
from .monitor import tracker_arguments
from .optimization import EMA, Optimization
from .preflight import check_data, check_disk, check_surroundings, describe_run
from .samples import CaptionedImages, load_training_data
from .step import Networks
from .validation import Best

logger = logging.getLogger(__name__)

_STATISTICS = 1024  # samples on which centring and scaling are fitted
_PATIENCE = timedelta(hours=6)  # for the main process, which alone loads data first, embeds captions and evaluates


@dataclass
class Run:
    """A run between two steps.

    `generator` and `discriminator` are the bare networks, which get saved; `nets` holds them as training runs them.
    `pipeline` generates with the EMA weights. `step` and `seen` count steps and real images of all processes.
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
    identity: dict  # hashes of data and CLIP, for the checkpoints
    step: int = 0
    seen: int = 0
    ending: Ending = field(default_factory=Ending)
    ended: bool = False  # whether some process has been asked to end

    @property
    def output_dir(self) -> Path:
        """Where everything goes."""
        return Path(self.config.output_dir)

    @property
    def per_step(self) -> int:
        """Real images that one step of all processes sees."""
        return self.config.images_per_step(self.accelerator.num_processes)


def prepare(config: TrainingConfig, locks: contextlib.ExitStack | None = None) -> Run | None:
    """Put a run together and restore its checkpoint, if it has one; None after a dry run, which leaves nothing. With
    `locks` the output folder stays locked until they are closed.

    Raises UserError or ValueError when configuration, surroundings, CLIP and data do not fit together.
    """
    accelerator = start_accelerator(config)
    check_surroundings(config, accelerator.num_processes, accelerator.device)
    checkpoints = Checkpoints(Path(config.output_dir) / "checkpoints", config.checkpoints_total_limit)
    main = accelerator.is_main_process
    if locks and main and not config.dry_run:
        locks.enter_context(locked(config.output_dir, inside=True))
    found = _find_checkpoint(config, checkpoints)
    hub = HubRepository.open(config) if main and config.push_to_hub and not config.dry_run else None
    set_seed(config.seed)

    generator, discriminator, fresh = build_networks(config)
    if found:
        _compare_with_checkpoint(found[1], generator, discriminator, config)
    clip = load_frozen_clip(config, accelerator.device)
    _check_clip(clip, generator, discriminator)
    per_step = config.images_per_step(accelerator.num_processes)
    check_disk(config, disk_use(config, per_step, generator, discriminator, clip))

    with accelerator.main_process_first():  # text embeddings are made once
        data = load_training_data(config, generator.config.sample_size, generator.config.noise_dim, clip)
    if main:
        check_data(config, data, per_step)
    if config.dry_run:
        if main:
            print(describe_run(config, accelerator, generator, discriminator, clip, data), end="")
        return None
    identity = {"clip_sha256": clip.describe()["weights_sha256"], "data_sha256": rows_sha256(data.rows)}
    if found:
        _compare_identity(found[1], identity, config)
        _compare_lanes(found[1], data)
    else:
        fit_conditioning(fresh, clip, data, discriminator)

    nets, ema = set_in_motion(generator, discriminator, clip.image_encoder, accelerator, config)
    pipeline = RATLIPPipeline(clip.tokenizer, clip.text_encoder, clip.image_encoder, ema.module)
    pipeline.set_progress_bar_config(disable=True)
    best = Best(Path(config.output_dir))
    networks = (generator, discriminator, clip, data, nets, ema)
    run = Run(config, accelerator, checkpoints, *networks, best, pipeline, hub, identity)
    _restore(run, found)
    return run


def start_accelerator(config: TrainingConfig) -> Accelerator:
    """accelerate's view of the processes; precision and accumulation are ours, see [`Networks`]."""
    # BatchNorm statistics are the same everywhere already: sending buffers at every forward would be waste.
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False)
    waiting = InitProcessGroupKwargs(timeout=_PATIENCE)
    return Accelerator(mixed_precision="no", kwargs_handlers=[parallel, waiting], **tracker_arguments(config))


def _find_checkpoint(config: TrainingConfig, checkpoints: Checkpoints) -> tuple[Path, dict] | None:
    which = config.resume_from_checkpoint
    if which and which != "latest" and checkpoints.any() and not checkpoints.owns(which):
        raise UserError(f"{config.output_dir} already holds another run than {which}: choose another --output_dir")
    if which and (found := checkpoints.find(which)):
        _check_facts(*found)
        return found
    _refuse_finished(config, checkpoints)
    if not which and checkpoints.any() and not config.dry_run:
        raise UserError(
            f"{config.output_dir} already holds a run: continue it with --resume_from_checkpoint latest "
            "or choose another --output_dir"
        )
    return None


def _check_facts(path: Path, facts: dict) -> None:
    kinds = {"step": int, "images": int, "architecture": dict, "config": dict}
    if wrong := [name for name, kind in kinds.items() if not isinstance(facts.get(name), kind)]:
        raise UserError(f"the checkpoint {path} is damaged: its facts have no {wrong[0]}")


def _refuse_finished(config: TrainingConfig, checkpoints: Checkpoints) -> None:
    """A model without checkpoints is a finished one, or somebody else's: a new run would replace it."""
    models = [name for name in (*MODELS, "best") if (Path(config.output_dir) / name).exists()]
    # Between its first model and its first checkpoint a run may be killed; it has made the folder of checkpoints.
    begun = config.resume_from_checkpoint and checkpoints.folder.is_dir()
    if models and not checkpoints.any() and not begun and not config.dry_run:
        raise UserError(
            f"{config.output_dir} holds {models[0]}/ and no checkpoint to go on from: choose another --output_dir, or "
            "fine-tune it with --pretrained_model_name_or_path"
        )


def build_networks(config: TrainingConfig) -> tuple[RATLIPGenerator, RATLIPDiscriminator, list[RATLIPModel]]:
    """Generator and discriminator, fresh or to be fine-tuned, and which of them are fresh.

    A pipeline that is fine-tuned brings its discriminator in a folder of that name: inside, as on the Hub, or next to
    it, as the trainer leaves it. Without one the discriminator starts anew, with a warning; without a pipeline,
    UserError is raised.
    """
    if config.pretrained_model_name_or_path is None:
        generator = RATLIPGenerator.from_preset(config.preset, **config.generator)
        discriminator = RATLIPDiscriminator.from_preset(config.preset, **config.discriminator)
        return generator, discriminator, [generator, discriminator]
    source, where = resolve(config.pretrained_model_name_or_path), {"revision": config.revision}
    try:
        generator = RATLIPGenerator.from_pretrained(str(source), subfolder="generator", **where)
    except OSError as error:
        raise UserError(f"no pipeline to fine-tune at {source}: {one_line(error)}") from error
    if (discriminator := RATLIPDiscriminator.of_pipeline(source, **where)) is not None:
        return generator, discriminator, []
    logger.warning("no discriminator comes with %s: a fresh one of the preset %s is used", source, config.preset)
    discriminator = RATLIPDiscriminator.from_preset(config.preset)
    return generator, discriminator, [discriminator]


def describe_state(generator: RATLIPGenerator, discriminator: RATLIPDiscriminator, config: TrainingConfig) -> dict:
    """What a checkpoint remembers besides states: both architectures and the training configuration."""
    networks = {"generator": generator, "discriminator": discriminator}
    architecture = {name: json.loads(network.to_json_string()) for name, network in networks.items()}
    return {"architecture": architecture, "config": dataclasses.asdict(config)}


def _compare_with_checkpoint(
    facts: dict, generator: RATLIPGenerator, discriminator: RATLIPDiscriminator, config: TrainingConfig
) -> None:
    """Refuse another architecture with a UserError; report every other change, and continue."""
    now = describe_state(generator, discriminator, config)
    for network, options in facts["architecture"].items():
        for name, old in options.items():
            new = now["architecture"][network].get(name)
            if new != old and not name.startswith("_"):
                raise UserError(f"the checkpoint's {network} has {name} {old}, this run's has {new}")
    for name, old in facts["config"].items():
        if name not in now["config"]:  # renamed or gone since: what it did may have another value now
            logger.warning("the checkpoint was made with %s %s, which is no option any more", name, old)
            continue
        new = now["config"][name]
        if new != old and name not in ("resume_from_checkpoint", "generator", "discriminator"):
            logger.warning("changed since the checkpoint: %s from %s to %s", name, old, new)


def _compare_identity(facts: dict, identity: dict, config: TrainingConfig) -> None:
    """Refuse other data or another CLIP than the checkpoint's, unless allowed; earlier versions noted none."""
    known = facts.get("identity")
    for name, what in {"data_sha256": "data are", "clip_sha256": "CLIP is"}.items():
        if isinstance(known, dict) and known.get(name, identity[name]) != identity[name]:
            told = f"the {what} not the same as when the checkpoint was made"
            if not config.allow_changes:
                raise UserError(f"{told}: put them back, or go on with --allow_changes")
            logger.warning("%s", told)


def _compare_lanes(facts: dict, data: CaptionedImages) -> None:
    """Refuse to go on in another order of samples, in which those seen already are others."""
    if (known := facts.get("lanes", 1)) != data.rows.lanes:
        raise UserError(
            f"the checkpoint was made with data in {known} lanes, this run has {data.rows.lanes} (1: in memory): put "
            "streaming and data_lanes back"
        )


def load_frozen_clip(config: TrainingConfig, device: torch.device) -> FrozenCLIP:
    """The configured CLIP on the device, in float32 even where its files are in half precision: autocast decides."""
    revision = config.clip_revision if config.clip else config.revision
    clip = load_clip(config.clip_source, **({"revision": revision} if revision else {}))
    clip.text_encoder.to(device, torch.float32), clip.image_encoder.to(device, torch.float32)
    return clip


def _check_clip(clip: FrozenCLIP, *networks: RATLIPGenerator | RATLIPDiscriminator) -> None:
    """Raise ValueError if a network was built for another CLIP."""
    for network in networks:
        network.check_tower(clip.image_encoder.config)
        if network.config.text_dim != clip.text_encoder.config.projection_dim:
            raise ValueError(
                f"this {type(network).__name__} was built for text embeddings of width {network.config.text_dim}, "
                f"not {clip.text_encoder.config.projection_dim} as those of {clip.source}"
            )


def fit_conditioning(
    fresh: list[RATLIPModel], clip: FrozenCLIP, data: CaptionedImages, discriminator: RATLIPDiscriminator
) -> None:
    """Set the buffers that centre and scale CLIP's outputs, where fresh networks have any, from the first samples."""
    if not fresh:
        return
    texts = clip.encode(data.first_captions(_STATISTICS)).cpu()
    for network in fresh:
        network.text_conditioning.fit(texts)
    reads = discriminator.config
    if discriminator in fresh and reads.scale_features:
        images = data.batch(data.few(64)).images.to(clip.image_encoder.device)
        with torch.no_grad():
            features = image_features(clip.image_encoder, images, reads.feature_layers, reads.clip_input)
        discriminator.feature_scale.fit(features.cpu())


def set_in_motion(
    generator: RATLIPGenerator,
    discriminator: RATLIPDiscriminator,
    image_encoder: nn.Module,
    accelerator: Accelerator,
    config: TrainingConfig,
) -> tuple[Networks, EMA]:
    """What a step needs, on the device, and the average of the generator's weights."""
    ema = EMA(generator.to(accelerator.device), config.ema_decay)
    wrapped = wrap(generator, discriminator, image_encoder, accelerator, config)
    rates = {generator: config.generator_learning_rate, discriminator: config.discriminator_learning_rate}
    optimizations = [Optimization.adam(network, rate, config) for network, rate in rates.items()]
    auxiliary = _pixel_discriminator(generator, accelerator, config)
    return Networks(*wrapped, *optimizations, image_encoder, accelerator, config, *auxiliary), ema


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


def _pixel_discriminator(
    generator: RATLIPGenerator, accelerator: Accelerator, config: TrainingConfig
) -> tuple[nn.Module | None, Optimization | None]:
    """The discriminator of pixels as training runs it, and how it is moved, at the generator's learning rate."""
    network = pixels.build_or_load(config, generator)
    if network is None:
        return None, None
    optimization = Optimization.adam(network.to(accelerator.device), config.generator_learning_rate, config)
    return accelerator.prepare(network), optimization


def _restore(run: Run, found: tuple[Path, dict] | None) -> None:
    """Name everything that has a state, and load it from the checkpoint."""
    run.checkpoints.register(
        generator=run.generator,
        discriminator=run.discriminator,
        ema=run.ema,
        generator_optimization=run.nets.generator_optimization,
        discriminator_optimization=run.nets.discriminator_optimization,
        best=run.best,
    )
    if run.nets.pixel_discriminator:
        run.checkpoints.register(
            pixel_discriminator=run.nets.bare(run.nets.pixel_discriminator),
            pixel_optimization=run.nets.pixel_optimization,
        )
    if found:
        path, facts = found
        run.checkpoints.restore(path)
        run.step, run.seen = facts["step"], facts["images"]
        logger.info("resumed from %s at %d images", path, run.seen)
    elif run.config.resume_from_checkpoint:
        logger.info("nothing to resume in %s: a new run begins", run.config.output_dir)
    # Processes on machines with a disk each may find different checkpoints, or only some of them one.
    steps = run.accelerator.gather(torch.tensor([run.step], device=run.accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise UserError(
            f"the processes found different checkpoints, of the steps {steps}: output_dir must be the same folder on "
            "all machines"
        )
