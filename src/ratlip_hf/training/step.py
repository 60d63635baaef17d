"""One training iteration (Eq. 8): the discriminator phase and the generator phase, a screen each.
Owns which pass has a graph and which network moves; the terms themselves are in `losses`."""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from .. import losses
from ..clip import image_features, image_features_and_embeds
from ..models.base import untracked_statistics
from ..utils.networks import at_least_float32
from .augmentation import augment
from .config import TrainingConfig
from .optimization import Optimization

_HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
Figures = dict[str, torch.Tensor]


class StepInputs(NamedTuple):
    """One micro-batch on the device.

    Args:
        images: real images [B, 3, S, S] in [-1, 1].
        noise: z [B, Z].
        prompt_embeds: raw sentence embeddings [B, D] of the real images' captions.
        mismatched_embeds: the same of captions that belong to other images.
        real_draws, fake_draws: random numbers [B, 7] of the augmentation, where there is any.
    """

    images: torch.Tensor
    noise: torch.Tensor
    prompt_embeds: torch.Tensor
    mismatched_embeds: torch.Tensor
    real_draws: torch.Tensor | None = None
    fake_draws: torch.Tensor | None = None


class Generated(NamedTuple):
    """Generated images [B, 3, S, S], their CLIP features [B, L, C, g, g] and embeddings [B, D]."""

    images: torch.Tensor
    features: torch.Tensor
    embeds: torch.Tensor


@dataclass
class Networks:
    """The networks (wrapped by accelerate or not), how they are moved, and the frozen image tower."""

    generator: nn.Module
    discriminator: nn.Module
    generator_optimization: Optimization
    discriminator_optimization: Optimization
    image_encoder: nn.Module
    accelerator: Accelerator
    config: TrainingConfig

    def autocast(self) -> torch.autocast:
        """The configured precision of forward passes. Ours rather than accelerate's, which would also cover the
        penalty: its wrapper around a prepared model cannot be switched off for one phase."""
        half = _HALVES.get(self.config.mixed_precision)
        return torch.autocast(self.accelerator.device.type, half or torch.bfloat16, enabled=half is not None)

    def set_rates(self, factor: float) -> None:
        """Set both learning rates to this share of their full height."""
        for optimization in (self.generator_optimization, self.discriminator_optimization):
            optimization.set_rate(factor)

    def bare(self, network: nn.Module) -> nn.Module:
        """The network without accelerate's wrapper: for passes that leave no gradients in its parameters."""
        return self.accelerator.unwrap_model(network)

    def gather_gradients(self, network: nn.Module, now: bool) -> AbstractContextManager:
        """Average this network's gradients over processes now, or let them add up in each until later."""
        return contextlib.nullcontext() if now else self.accelerator.no_sync(network)


def training_step(nets: Networks, batches: Sequence[StepInputs], penalise: bool = True) -> Figures:
    """Move both networks once, by the mean over micro-batches of equal size.

    With one micro-batch, one generator forward serves both phases. With several, the discriminator phase draws without
    a graph, and the generator phase draws the same images again, so that one graph at a time is in memory.

    Args:
        nets: everything that takes part.
        batches: the micro-batches of this process.
        penalise: whether this step has a gradient penalty.

    Returns:
        Detached scalars by name, for the log.
    """
    drawn = generate(nets, nets.generator, batches[0]) if len(batches) == 1 else None
    return {
        **discriminator_phase(nets, batches, drawn, penalise),
        **generator_phase(nets, batches, drawn),
    }


def generate(nets: Networks, generator: nn.Module, inputs: StepInputs) -> Generated:
    """Images for a micro-batch, and what CLIP sees in them."""
    reader = nets.bare(nets.discriminator).config
    with nets.autocast():
        images = generator(inputs.noise, inputs.prompt_embeds, nets.image_encoder, return_dict=False)[0]
        shown = augment(images, nets.config.augmentations, inputs.fake_draws)
        seen = image_features_and_embeds(nets.image_encoder, shown, reader.feature_layers, reader.clip_input)
    return Generated(images, *seen)


def discriminator_phase(
    nets: Networks, batches: Sequence[StepInputs], drawn: Generated | None, penalise: bool
) -> Figures:
    """Move the discriminator by L_D of Eq. 8; no graph reaches the generator or the image tower."""
    figures, optimization = [], nets.discriminator_optimization
    for number, inputs in enumerate(batches, start=1):
        real_features, fakes = _read_real(nets, inputs), drawn or _generate_without_graph(nets, inputs)
        with nets.gather_gradients(nets.discriminator, now=number == len(batches)):
            loss, terms = discriminator_loss(nets, inputs, real_features, fakes.features.detach(), penalise)
            optimization.backward(loss / len(batches))
        figures.append(terms)
    return {**_means(figures), "d_grad_norm": optimization.step()}


def discriminator_loss(
    nets: Networks, inputs: StepInputs, real_features: torch.Tensor, fake_features: torch.Tensor, penalise: bool
) -> tuple[torch.Tensor, Figures]:
    """L_D of Eq. 8 on features [B, L, C, g, g] without graphs, and its figures; the penalty in float32."""
    config, discriminator = nets.config, nets.discriminator
    condition = nets.bare(discriminator).condition
    conditioned = condition(at_least_float32(real_features), inputs.prompt_embeds)
    real_features, text = (x.detach().requires_grad_(penalise) for x in conditioned)
    fake_features, other_text = condition(at_least_float32(fake_features), inputs.mismatched_embeds)

    with contextlib.nullcontext() if penalise else nets.autocast():
        real = discriminator(real_features, text, conditioned=True, return_dict=False)[0]
    with nets.autocast():
        pairs = torch.cat([fake_features, real_features.detach()])
        texts = torch.cat([text.detach(), other_text])
        fake, mismatch = discriminator(pairs, texts, conditioned=True, return_dict=False)[0].chunk(2)

    hinge = losses.discriminator_hinge(real, fake, mismatch)
    figures = {"d_loss": hinge, "d_real": real.mean(), "d_fake": fake.mean(), "d_mismatch": mismatch.mean()}
    if not penalise:
        return hinge, figures
    penalty = losses.matching_aware_gradient_penalty(
        losses.input_gradients(real, [real_features, text]),
        config.penalty_weight,
        config.penalty_power,
        config.penalty_form,
    )
    loss = hinge + config.penalty_interval * penalty
    return loss, {**figures, "d_loss": hinge + penalty, "d_penalty": penalty}


def generator_phase(nets: Networks, batches: Sequence[StepInputs], drawn: Generated | None) -> Figures:
    """Move the generator by L_G of Eq. 8, with the discriminator just moved and now frozen."""
    figures, optimization = [], nets.generator_optimization
    with _frozen(nets.discriminator):
        for number, inputs in enumerate(batches, start=1):
            with nets.gather_gradients(nets.generator, now=number == len(batches)):
                fakes = drawn or generate(nets, nets.generator, inputs)
                loss, terms = generator_loss(nets, inputs, fakes)
                optimization.backward(loss / len(batches))
            figures.append(terms)
    return {**_means(figures), "g_grad_norm": optimization.step()}


def generator_loss(nets: Networks, inputs: StepInputs, fakes: Generated) -> tuple[torch.Tensor, Figures]:
    """L_G of Eq. 8, and its figures."""
    config = nets.config
    with nets.autocast():
        logits = nets.bare(nets.discriminator)(fakes.features, inputs.prompt_embeds, return_dict=False)[0]
    adversarial = losses.generator_adversarial(logits)
    similarity = losses.clip_similarity(fakes.embeds, inputs.prompt_embeds)
    loss = adversarial - config.clip_loss_weight * similarity
    if config.range_weight:
        loss = loss + config.range_weight * losses.out_of_range(fakes.images)
    return loss, {"g_loss": loss, "g_adversarial": adversarial, "clip_similarity": similarity}


@torch.no_grad()
def _generate_without_graph(nets: Networks, inputs: StepInputs) -> Generated:
    """What the generator phase will draw again, and only then count for the BatchNorm statistics."""
    generator = nets.bare(nets.generator)
    with untracked_statistics(generator):
        return generate(nets, generator, inputs)


@torch.no_grad()
def _read_real(nets: Networks, inputs: StepInputs) -> torch.Tensor:
    """CLIP features of the real images; the tower is left after the last layer that is read."""
    reader = nets.bare(nets.discriminator).config
    with nets.autocast():
        shown = augment(inputs.images, nets.config.augmentations, inputs.real_draws)
        return image_features(nets.image_encoder, shown, reader.feature_layers, reader.clip_input)


def _means(figures: Sequence[Figures]) -> Figures:
    """Means over micro-batches of each figure, detached."""
    return {name: torch.stack([terms[name].detach() for terms in figures]).mean() for name in figures[0]}


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
