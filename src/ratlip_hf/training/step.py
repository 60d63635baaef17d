"""One training iteration (Eq. 8): the discriminator phase and the generator phase, a screen each.
Owns which pass has a graph and which network moves; the terms themselves are in `losses`."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from .. import losses
from ..models.clip import image_features, image_features_and_embeds
from .config import TrainingConfig


@dataclass
class Networks:
    """The networks (wrapped by accelerate or not), their optimizers, and the frozen image tower."""

    generator: nn.Module
    discriminator: nn.Module
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    image_encoder: nn.Module
    accelerator: Accelerator
    config: TrainingConfig

    def autocast(self) -> torch.autocast:
        """The configured precision of forward passes. Ours rather than accelerate's, which would also cover the
        penalty: its wrapper around a prepared model cannot be switched off for one phase."""
        device = self.accelerator.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.config.mixed_precision == "bf16")


def training_step(
    nets: Networks, images: torch.Tensor, noise: torch.Tensor, prompt_embeds: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Move both networks once; one generator forward serves both phases.

    Args:
        nets: everything that takes part.
        images: real images [B, 3, S, S] in [-1, 1].
        noise: z [B, Z].
        prompt_embeds: raw sentence embeddings [B, D] of the real images' captions.

    Returns:
        Detached scalars by name, for the log.
    """
    reader = nets.accelerator.unwrap_model(nets.discriminator).config
    layers, clip_input = reader.feature_layers, reader.clip_input
    with torch.no_grad(), nets.autocast():
        real_features = image_features(nets.image_encoder, images, layers, clip_input)
    with nets.autocast():
        fakes = nets.generator(noise, prompt_embeds, nets.image_encoder, return_dict=False)[0]
        fake_features, fake_embeds = image_features_and_embeds(nets.image_encoder, fakes, layers, clip_input)
    return {
        **discriminator_phase(nets, real_features.float(), fake_features.detach().float(), prompt_embeds),
        **generator_phase(nets, fakes, fake_features, fake_embeds, prompt_embeds),
    }


def discriminator_phase(
    nets: Networks, real_features: torch.Tensor, fake_features: torch.Tensor, prompt_embeds: torch.Tensor
) -> dict[str, torch.Tensor]:
    """L_D of Eq. 8 on features [B, L, C, g, g] without graphs; float32 throughout because of the penalty."""
    config, discriminator = nets.config, nets.discriminator
    condition = nets.accelerator.unwrap_model(discriminator).condition
    real_features, text = (x.detach().requires_grad_() for x in condition(real_features, prompt_embeds))
    fake_features, _ = condition(fake_features, prompt_embeds)

    real = discriminator(real_features, text, conditioned=True, return_dict=False)[0]
    false_pairs = torch.cat([fake_features, real_features.detach()])
    false_texts = torch.cat([text.detach(), losses.mismatched(text)])
    fake, mismatch = discriminator(false_pairs, false_texts, conditioned=True, return_dict=False)[0].chunk(2)

    gradients = losses.input_gradients(real, [real_features, text])
    penalty = losses.matching_aware_gradient_penalty(
        gradients, config.penalty_weight, config.penalty_power, config.penalty_form
    )
    hinge = losses.discriminator_hinge(real, fake, mismatch)
    nets.discriminator_optimizer.zero_grad()
    nets.accelerator.backward(hinge + penalty)
    nets.discriminator_optimizer.step()
    return {
        "d_loss": (hinge + penalty).detach(),
        "d_penalty": penalty.detach(),
        "d_real": real.detach().mean(),
        "d_fake": fake.detach().mean(),
        "d_mismatch": mismatch.detach().mean(),
    }


def generator_phase(
    nets: Networks,
    fakes: torch.Tensor,
    fake_features: torch.Tensor,
    fake_embeds: torch.Tensor,
    prompt_embeds: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """L_G of Eq. 8 on live features, with the discriminator just moved and now frozen."""
    config = nets.config
    with _frozen(nets.discriminator):
        with nets.autocast():
            logits = nets.discriminator(fake_features, prompt_embeds, return_dict=False)[0]
        adversarial = losses.generator_adversarial(logits.float())
        similarity = losses.clip_similarity(fake_embeds, prompt_embeds)
        loss = adversarial - config.similarity_weight * similarity
        if config.range_weight:
            loss = loss + config.range_weight * losses.out_of_range(fakes)
        nets.generator_optimizer.zero_grad()
        nets.accelerator.backward(loss)
        nets.generator_optimizer.step()
    return {"g_loss": loss.detach(), "g_adversarial": adversarial.detach(), "clip_similarity": similarity.detach()}


@contextlib.contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No gradients for the parameters of `module` within the block; those frozen before stay so after it."""
    moving = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in moving:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in moving:
            parameter.requires_grad_(True)
