"""One training step (Eq. 8): the discriminator phase, then the generator phase, a screen each.
Which pass has a graph and which network moves is decided here; the terms themselves are in `losses`."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from .. import losses
from ..clip import FrozenCLIP, image_features, image_features_and_embeds
from ..models.base import untracked_statistics
from ..utils.tensors import at_least_float32
from . import pixel_losses as pixels
from .augmentation import augment, augmentation_numbers
from .config import TrainingConfig
from .optimization import Optimization
from .samples import StepInputs

_HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
Metrics = dict[str, torch.Tensor]


@dataclass
class Networks:
    """The networks (wrapped by accelerate or not), how they are moved, and the frozen image tower.

    The discriminator of pixels is None unless `config.pixel_loss_weight` asks for it.
    """

    generator: nn.Module
    discriminator: nn.Module
    generator_optimization: Optimization
    discriminator_optimization: Optimization
    image_encoder: nn.Module
    accelerator: Accelerator
    config: TrainingConfig
    pixel_discriminator: nn.Module | None = None
    pixel_optimization: Optimization | None = None

    def autocast(self) -> torch.autocast:
        """The configured precision of forward passes. Ours rather than accelerate's, which would also cover the
        penalty: its wrapper around a prepared model cannot be switched off for one phase."""
        half = _HALVES.get(self.config.mixed_precision)
        return torch.autocast(self.accelerator.device.type, half or torch.bfloat16, enabled=half is not None)

    def set_lr_factor(self, factor: float) -> None:
        """Set both learning rates to this share of their configured values."""
        for optimization in (self.generator_optimization, self.discriminator_optimization, self.pixel_optimization):
            if optimization:
                optimization.set_lr_factor(factor)

    def bare(self, network: nn.Module) -> nn.Module:
        """The network without accelerate's wrapper: for passes that leave no gradients in its parameters."""
        return self.accelerator.unwrap_model(network)

    def gather_gradients(self, network: nn.Module, now: bool) -> AbstractContextManager:
        """Average this network's gradients over processes now, or let them add up in each until later."""
        return contextlib.nullcontext() if now else self.accelerator.no_sync(network)


class Generated(NamedTuple):
    """Generated images [B, 3, S, S], their CLIP features [B, L, C, g, g] and embeddings [B, D]."""

    images: torch.Tensor
    features: torch.Tensor
    embeds: torch.Tensor


def to_device(inputs: StepInputs, clip: FrozenCLIP, device: torch.device) -> StepInputs:
    """A micro-batch on the device, with its captions encoded unless stored embeddings came with it."""
    if inputs.prompt_embeds is None:
        # Most mismatched captions are captions of the same batch, too: each is encoded once.
        rows = {text: row for row, text in enumerate(dict.fromkeys([*inputs.captions, *inputs.mismatched_captions]))}
        encoded = clip.encode(list(rows))
        inputs = dataclasses.replace(
            inputs,
            prompt_embeds=encoded[[rows[text] for text in inputs.captions]],
            mismatched_embeds=encoded[[rows[text] for text in inputs.mismatched_captions]],
        )
    return inputs.map(lambda tensor: tensor.to(device, non_blocking=True))


def training_step(
    nets: Networks, batches: Sequence[StepInputs], penalise: bool = True, penalise_pixels: bool = True
) -> Metrics:
    """Move both networks once, by the mean over micro-batches of equal size.

    With one micro-batch, one generator forward serves both phases. With several, the discriminator phase generates
    without a graph, and the generator phase generates the same images again, so that one graph at a time is in memory.
    The micro-batches are this process's, on the device; `penalise` and `penalise_pixels` say whether this step has
    gradient penalties, of either discriminator. Returns detached scalars by name, for the log.
    """
    fakes = generate(nets, nets.generator, batches[0]) if len(batches) == 1 else None
    metrics = discriminator_phase(nets, batches, fakes, penalise)
    if nets.pixel_discriminator:
        metrics |= pixel_phase(nets, batches, fakes, penalise_pixels)
    return metrics | generator_phase(nets, batches, fakes)


def generate(nets: Networks, generator: nn.Module, inputs: StepInputs) -> Generated:
    """Images for a micro-batch, and what CLIP sees in them."""
    reads = nets.bare(nets.discriminator).config
    with nets.autocast():
        images = generator(inputs.noise, inputs.prompt_embeds, nets.image_encoder, return_dict=False)[0]
        augmented = _augment(nets, images, inputs, generated=True)
        seen = image_features_and_embeds(nets.image_encoder, augmented, reads.feature_layers, reads.clip_input)
    return Generated(images, *seen)


def discriminator_phase(
    nets: Networks, batches: Sequence[StepInputs], fakes: Generated | None, penalise: bool
) -> Metrics:
    """Move the discriminator by L_D of Eq. 8; no graph reaches the generator or the image tower."""
    metrics, optimization = [], nets.discriminator_optimization
    for number, inputs in enumerate(batches, start=1):
        real_features = _read_real(nets, inputs)
        fake_features = (fakes or _generate_without_graph(nets, inputs)).features.detach()
        with nets.gather_gradients(nets.discriminator, now=number == len(batches)):
            loss, terms = discriminator_loss(nets, inputs, real_features, fake_features, penalise)
            optimization.backward(loss / len(batches))
        metrics.append(terms)
    return {**_mean_over_micro_batches(metrics), "d_grad_norm": optimization.step()}


def discriminator_loss(
    nets: Networks, inputs: StepInputs, real_features: torch.Tensor, fake_features: torch.Tensor, penalise: bool
) -> tuple[torch.Tensor, Metrics]:
    """L_D of Eq. 8 on CLIP features [B, L, C, g, g] without graphs, and its metrics."""
    config, discriminator = nets.config, nets.discriminator
    condition = nets.bare(discriminator).condition
    conditioned = condition(at_least_float32(real_features), inputs.prompt_embeds)
    real_features, text = (x.detach().requires_grad_(penalise) for x in conditioned)
    # `condition` treats features and text apart: these two are no pair. The pairs are made below.
    fake_features, mismatched_text = condition(at_least_float32(fake_features), inputs.mismatched_embeds)

    # Real matching pairs stay in float32 when there is a penalty: it takes the norm of their gradients to the 6th
    # power and is differentiated once more. Float16 would overflow at a norm of 6.4 (6.4^6 = 68,719, beyond 65,504)
    # and underflow at 0.05 (1.6e-8), and the power makes the rounding errors of bfloat16 six times as large.
    with contextlib.nullcontext() if penalise else nets.autocast():
        real = discriminator(real_features, text, conditioned=True, return_dict=False)[0]
    with nets.autocast():  # generated and mismatched pairs have no penalty: one pass of 2B samples
        features = torch.cat([fake_features, real_features.detach()])  # generated images with their captions,
        texts = torch.cat([text.detach(), mismatched_text])  # real images with mismatched captions
        fake, mismatch = discriminator(features, texts, conditioned=True, return_dict=False)[0].chunk(2)

    hinge = losses.discriminator_hinge(real, fake, mismatch)
    metrics = {"d_loss": hinge, "d_real": real.mean(), "d_fake": fake.mean(), "d_mismatch": mismatch.mean()}
    if not penalise:
        return hinge, metrics
    penalty = gradient_penalty(config, real, real_features, text)
    # A lazy penalty stands for the steps without one; what is logged does not depend on the interval.
    loss = hinge + config.penalty_interval * penalty
    return loss, {**metrics, "d_loss": hinge + penalty, "d_penalty": penalty}


def gradient_penalty(config: TrainingConfig, logits: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
    """The last term of L_D of Eq. 8 as configured, by the gradients of real matching pairs' logits."""
    gradients, form = losses.input_gradients(logits, inputs), config.penalty_form
    return losses.matching_aware_gradient_penalty(gradients, config.penalty_weight, config.penalty_power, form)


def pixel_phase(nets: Networks, batches: Sequence[StepInputs], fakes: Generated | None, penalise: bool) -> Metrics:
    """Move the discriminator of pixels; no graph reaches the generator."""
    metrics, optimization = [], nets.pixel_optimization
    for number, inputs in enumerate(batches, start=1):
        fake = (fakes or _generate_without_graph(nets, inputs)).images
        with nets.gather_gradients(nets.pixel_discriminator, now=number == len(batches)):
            # As of the other discriminator, what is differentiated twice stays in float32.
            with contextlib.nullcontext() if penalise else nets.autocast():
                terms = pixels.discriminator_loss(
                    nets.pixel_discriminator,
                    inputs.images,
                    fake,
                    _conditioned_text(nets, inputs),
                    nets.config.pixel_penalty_weight,
                    penalise,
                )
            optimization.backward(terms.pop("loss") / len(batches))
        metrics.append(terms)
    return {**_mean_over_micro_batches(metrics), "p_grad_norm": optimization.step()}


def _conditioned_text(nets: Networks, inputs: StepInputs) -> torch.Tensor:
    """The texts [B, D] as the discriminator of CLIP features reads them."""
    return nets.bare(nets.discriminator).text_conditioning(inputs.prompt_embeds).detach()


def generator_phase(nets: Networks, batches: Sequence[StepInputs], fakes: Generated | None) -> Metrics:
    """Move the generator by L_G of Eq. 8, with the discriminator just moved and now frozen."""
    metrics, optimization = [], nets.generator_optimization
    with _frozen(nets.discriminator, nets.pixel_discriminator):
        for number, inputs in enumerate(batches, start=1):
            with nets.gather_gradients(nets.generator, now=number == len(batches)):
                loss, terms = generator_loss(nets, inputs, fakes or generate(nets, nets.generator, inputs))
                optimization.backward(loss / len(batches))
            metrics.append(terms)
    return {**_mean_over_micro_batches(metrics), "g_grad_norm": optimization.step()}


def generator_loss(nets: Networks, inputs: StepInputs, fakes: Generated) -> tuple[torch.Tensor, Metrics]:
    """L_G of Eq. 8, and its metrics."""
    config = nets.config
    with nets.autocast():
        logits = nets.bare(nets.discriminator)(fakes.features, inputs.prompt_embeds, return_dict=False)[0]
    adversarial = losses.generator_adversarial(logits)
    similarity = losses.clip_similarity(fakes.embeds, inputs.prompt_embeds)
    loss = adversarial - config.clip_loss_weight * similarity
    if config.range_weight:
        loss = loss + config.range_weight * losses.out_of_range(fakes.images)
    metrics = {"g_adversarial": adversarial, "clip_similarity": similarity}
    if nets.pixel_discriminator:
        critic, text = nets.bare(nets.pixel_discriminator), _conditioned_text(nets, inputs)
        with nets.autocast():
            metrics["g_pixel"] = pixels.generator_loss(critic, inputs.images, fakes.images, text)
        loss = loss + config.pixel_loss_weight * metrics["g_pixel"]
    return loss, {"g_loss": loss, **metrics}


@torch.no_grad()
def _generate_without_graph(nets: Networks, inputs: StepInputs) -> Generated:
    generator = nets.bare(nets.generator)
    # The generator phase runs the same batch again, with a graph. Only that pass may move the running statistics of
    # BatchNorm: tracked in both, each micro-batch would count twice.
    with untracked_statistics(generator):
        return generate(nets, generator, inputs)


@torch.no_grad()
def _read_real(nets: Networks, inputs: StepInputs) -> torch.Tensor:
    """CLIP features of the real images; the tower is left after the last layer that is read."""
    reads = nets.bare(nets.discriminator).config
    with nets.autocast():
        augmented = _augment(nets, inputs.images, inputs, generated=False)
        return image_features(nets.image_encoder, augmented, reads.feature_layers, reads.clip_input)


def _augment(nets: Networks, images: torch.Tensor, inputs: StepInputs, generated: bool) -> torch.Tensor:
    names = nets.config.augmentations
    if not names:
        return images
    return augment(images, names, augmentation_numbers(nets.config.seed, inputs.indices, generated))


@contextlib.contextmanager
def _frozen(*modules: nn.Module | None) -> Iterator[None]:
    """No gradients for the parameters of `modules` within the block; those frozen before stay so after it."""
    moving = [
        parameter for module in modules if module for parameter in module.parameters() if parameter.requires_grad
    ]
    for parameter in moving:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in moving:
            parameter.requires_grad_(True)


def _mean_over_micro_batches(metrics: Sequence[Metrics]) -> Metrics:
    return {name: torch.stack([terms[name].detach() for terms in metrics]).mean() for name in metrics[0]}


def mean_over_processes(metrics: Metrics, accelerator: Accelerator) -> dict[str, float]:
    """Means in one transfer; every process gets the same numbers, and so stops for the same ones."""
    stacked = torch.stack([at_least_float32(value) for value in metrics.values()])
    return dict(zip(metrics, accelerator.reduce(stacked, "mean").tolist(), strict=True))
