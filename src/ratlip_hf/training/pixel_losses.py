"""How the auxiliary discriminator that reads pixels takes part in training (`models/pixel_discriminator.py` is the
network). It is not in the paper, and off unless `pixel_loss_weight` is positive.

Its loss compares each generated image with the real one of the same caption (relativistic pairs; Jolicoeur-Martineau
2018, arXiv:1807.00734) under zero-centred gradient penalties on both (R1 and R2; Huang et al. 2025, arXiv:2501.05441),
which are taken every few steps with as much more weight (lazy; Karras et al. 2020, arXiv:1912.04958).
"""

import logging

import torch
import torch.nn.functional as F
from torch import nn

from ..bundled import resolve
from ..models import RATLIPGenerator
from ..models.pixel_discriminator import PixelDiscriminator
from ..utils.errors import UserError
from ..utils.tensors import at_least_float32
from .config import TrainingConfig

logger = logging.getLogger(__name__)

PENALTY_INTERVAL = 8  # steps between gradient penalties


def build(config: TrainingConfig, generator: RATLIPGenerator) -> PixelDiscriminator | None:
    """A fresh discriminator for images of a run's generator, or None if the run has none."""
    if not config.pixel_loss_weight:
        return None
    return PixelDiscriminator(generator.config.sample_size, generator.config.text_dim, config.pixel_channels)


def build_or_load(config: TrainingConfig, generator: RATLIPGenerator) -> PixelDiscriminator | None:
    """As `build`, but with the weights that come with a pipeline to be fine-tuned, where it has any.

    Raises UserError if those are of other sizes.
    """
    network, source = build(config, generator), config.pretrained_model_name_or_path
    if network is None or source is None:
        return network
    known = PixelDiscriminator.of_pipeline(resolve(source), revision=config.revision)
    if known is None:
        logger.warning("no discriminator of pixels comes with %s: a fresh one is used", source)
        return network
    for name in ("sample_size", "text_dim", "channels"):
        if known.config[name] != network.config[name]:
            raise UserError(
                f"the discriminator of pixels of {source} has {name} {known.config[name]}, this run's "
                f"{network.config[name]}: --pixel_channels must be as it was"
            )
    return known.float().train()


def relativistic(better: torch.Tensor, worse: torch.Tensor) -> torch.Tensor:
    """E[softplus(worse - better)] over pairs of logits [B]."""
    return F.softplus(at_least_float32(worse) - at_least_float32(better)).mean()


def zero_centred_penalty(logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """E[|d logit / d image|^2] / 2 for logits [B] of images [B, 3, S, S] that require gradients."""
    (gradients,) = torch.autograd.grad(at_least_float32(logits).sum(), images, create_graph=True)
    return gradients.square().sum(dim=(1, 2, 3)).mean() / 2


def discriminator_loss(
    discriminator: nn.Module,
    real: torch.Tensor,
    fake: torch.Tensor,
    text: torch.Tensor,
    penalty_weight: float,
    penalise: bool,
) -> dict[str, torch.Tensor]:
    """The loss to descend, and what is logged, for images [B, 3, S, S] (detached) and conditioned texts [B, D]."""
    real, fake = (at_least_float32(images).detach().requires_grad_(penalise) for images in (real, fake))
    real_logits, fake_logits = discriminator(torch.cat([real, fake]), torch.cat([text, text])).chunk(2)
    loss = relativistic(real_logits, fake_logits)
    terms = {"p_loss": loss, "p_gap": (real_logits - fake_logits).mean()}
    if penalise:
        penalty = zero_centred_penalty(real_logits, real) + zero_centred_penalty(fake_logits, fake)
        loss = loss + penalty_weight * PENALTY_INTERVAL * penalty
        terms["p_penalty"] = penalty
    return {"loss": loss, **terms}


def generator_loss(
    discriminator: nn.Module, real: torch.Tensor, fake: torch.Tensor, text: torch.Tensor
) -> torch.Tensor:
    """The generator's side, for generated images with a graph; the discriminator is frozen."""
    with torch.no_grad():
        real_logits = discriminator(real, text)
    return relativistic(discriminator(fake, text), real_logits)
