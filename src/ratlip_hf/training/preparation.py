"""What happens once before a run's first step: the parts are checked against each other and against a checkpoint.
Also fits the buffers that centre and scale CLIP's outputs."""

import dataclasses
import json
import logging

import torch

from ..frozen_clip import FrozenCLIP
from ..models import RATLIPDiscriminator, RATLIPGenerator
from ..models.clip import image_features
from ..utils.errors import UserError
from .config import TrainingConfig
from .data import CaptionedImages

logger = logging.getLogger(__name__)

_STATISTICS = 1024  # samples on which centring and scaling are fitted


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


def fit_conditioning(
    generator: RATLIPGenerator, discriminator: RATLIPDiscriminator, clip: FrozenCLIP, data: CaptionedImages
) -> None:
    """Set the buffers that centre and scale CLIP's outputs, where there are any, from the first samples."""
    texts = clip.encode(data.first_captions(_STATISTICS)).cpu()
    for network in (generator, discriminator):
        network.text_conditioning.fit(texts)
    if discriminator.config.scale_features:
        reader, images = discriminator.config, data.batch(range(64)).images.to(clip.image_encoder.device)
        with torch.no_grad():
            features = image_features(clip.image_encoder, images, reader.feature_layers, reader.clip_input)
        discriminator.feature_scale.fit(features.cpu())


def describe(generator, discriminator, data: CaptionedImages, config: TrainingConfig) -> str:
    """One line: sizes of networks and data."""
    sizes = [sum(p.numel() for p in network.parameters()) / 1e6 for network in (generator, discriminator)]
    return (
        f"generator {sizes[0]:.2f} M parameters, discriminator {sizes[1]:.2f} M, {len(data)} images, "
        f"{config.max_train_images} images to see"
    )
