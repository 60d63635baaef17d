"""One training iteration written the way the released code arranges it, as the yardstick for ours.
The same objective and the same networks; owns only the arrangement, which wastes what `training.step` saves."""

from dataclasses import dataclass

import torch
from torch import nn

from .. import losses
from ..models.clip import image_features_and_embeds
from ..training.step import Figures, Networks


@dataclass
class ReleasedInputs:
    """Pictures [B, 3, S, S] in [-1, 1], noise [B, Z] and token ids [B, tokens] of their captions."""

    images: torch.Tensor
    noise: torch.Tensor
    input_ids: torch.Tensor


def released_step(nets: Networks, text_encoder: nn.Module, inputs: ReleasedInputs) -> Figures:
    """Move both networks once (Eq. 8); returns the detached losses.

    As released: sentences are encoded in every step; real pictures ask for gradients, so that their pass through the
    frozen image tower keeps a graph, which the discriminator's backward walks; that pass runs to the last layer; real,
    mismatched and generated pairs go through the discriminator one after the other; and the generator's backward
    makes gradients of the discriminator, too, which nobody uses.
    """
    text = text_encoder(inputs.input_ids).text_embeds.detach().requires_grad_()
    images = inputs.images.detach().requires_grad_()
    generator, discriminator, config = nets.generator, nets.discriminator, nets.config

    features, sentences = discriminator.condition(_read(nets, images)[0], text)
    real = _judge(discriminator, features, sentences)
    mismatched = _judge(discriminator, features, sentences.roll(-1, 0))
    fakes = generator(inputs.noise, text, nets.image_encoder, return_dict=False)[0]
    fake_features, embeds = _read(nets, fakes)
    fake_features = discriminator.condition(fake_features, text)[0]
    fake = _judge(discriminator, fake_features.detach(), sentences)
    penalty = losses.matching_aware_gradient_penalty(
        losses.input_gradients(real, [features, sentences]),
        config.penalty_weight,
        config.penalty_power,
        config.penalty_form,
    )
    d_loss = losses.discriminator_hinge(real, fake, mismatched) + penalty
    nets.discriminator_optimization.backward(d_loss)
    nets.discriminator_optimization.step()

    adversarial = losses.generator_adversarial(_judge(discriminator, fake_features, sentences.detach()))
    g_loss = adversarial - config.similarity_weight * losses.clip_similarity(embeds, text)
    nets.generator_optimization.backward(g_loss)
    nets.generator_optimization.step()
    nets.discriminator_optimization.optimizer.zero_grad()
    return {"d_loss": d_loss.detach(), "g_loss": g_loss.detach()}


def _read(nets: Networks, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    reader = nets.discriminator.config
    return image_features_and_embeds(nets.image_encoder, images, reader.feature_layers, reader.clip_input)


def _judge(discriminator: nn.Module, features: torch.Tensor, sentences: torch.Tensor) -> torch.Tensor:
    return discriminator(features, sentences, conditioned=True, return_dict=False)[0]
