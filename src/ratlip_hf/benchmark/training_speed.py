"""How fast training steps are and what memory they take: ours, with checkpointing, and one arranged as released."""

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import CLIPConfig, CLIPTextModelWithProjection

from .. import bundled, losses
from ..clip import image_features_and_embeds, load_clip
from ..models import RATLIPGenerator
from ..models.blocks import ImageBlock
from ..training import run
from ..training.config import TrainingConfig
from ..training.optimization import EMA
from ..training.samples import StepInputs
from ..training.step import Networks, gradient_penalty, mean_over_processes, training_step
from . import measuring
from .inference import image_tower

RELEASED, OURS = "arranged as released", "ours"
_OPTIONS = {
    OURS: {},
    "ours, checkpointing": {"gradient_checkpointing": True},
    "ours, bf16": {"mixed_precision": "bf16"},
    "ours, bf16, compiled": {"mixed_precision": "bf16", "torch_compile": True},
}


@dataclass(frozen=True)
class Training:
    """What is measured: a preset, the batch, steps, and the device."""

    preset: str
    batch: int
    steps: int
    device: torch.device

    @property
    def paths(self) -> tuple[str, ...]:
        """The baseline and ours; compiled only on a GPU, where that pays within minutes."""
        return (RELEASED, *(path for path in _OPTIONS if self.device.type == "cuda" or "compiled" not in path))

    def config(self, path: str) -> TrainingConfig:
        """The configuration of a run with such steps."""
        options = {"mixed_precision": "no", **_OPTIONS.get(path, {})}
        options |= {"preset": self.preset, "train_batch_size": self.batch}
        return TrainingConfig(dataset_name=bundled.NAME, **options).validate()  # data must be named, and are not read


def measure(what: Training) -> dict:
    """All values of training, for the record."""
    memory = {path: measuring.in_fresh_process(_two_steps, path, what) for path in what.paths}
    steps = {path: stepper(path, what) for path in what.paths}
    seconds = measuring.interleaved(steps, what.steps, what.device)
    times = {path: measuring.summary(taken) for path, taken in seconds.items()}
    rows = []
    for path, row in times.items():
        row = {"path": path, **row, "faster": times[RELEASED]["median_s"] / row["median_s"]}
        row |= {"images_per_s": what.batch / row["median_s"], "peak_bytes": memory[path]}
        rows.append(row | {"of_released_peak": measuring.ratio(memory[path], memory[RELEASED])})
    return {"preset": what.preset, "batch": what.batch, "steps": what.steps, "rows": rows}


def training_table(training: Mapping) -> str:
    """A line for each kind of step."""
    columns = {"step": "{path}", **measuring.TIMES, "images/s": "{images_per_s:.3g}", "faster": "{faster:.2f}x"}
    columns |= {"peak memory": "{peak}", "of released": "{of_released_peak:.2f}"}
    return measuring.table(columns, training["rows"])


def _two_steps(path: str, what: Training) -> int:
    step = stepper(path, what)
    step(), step()
    return measuring.peak_bytes(what.device)


def stepper(path: str, what: Training) -> Callable[[], object]:
    """A function that makes one step: on the same random images, noise and captions at every call and path."""
    nets, ema = set_up(what.config(path), what.device)
    text_encoder = _text_tower(what.preset).to(what.device)
    images, noise, input_ids = random_inputs(what.batch, nets.bare(nets.generator), text_encoder)
    with torch.no_grad():
        text = text_encoder(input_ids).text_embeds
    if path == RELEASED:
        resize_first(nets.bare(nets.generator))
    inputs = StepInputs(images, noise, text, text.roll(-1, 0))

    def step() -> dict[str, float]:
        if path == RELEASED:
            metrics = released_step(nets, text_encoder, images, noise, input_ids)
        else:
            metrics = training_step(nets, [inputs])
        values = mean_over_processes(metrics, nets.accelerator)  # as in the loop, this waits for the device
        ema.update(nets.bare(nets.generator))
        return values

    return step


def set_up(config: TrainingConfig, device: torch.device) -> tuple[Networks, EMA]:
    """What a step needs, as the trainer puts it together."""
    os.environ["ACCELERATE_USE_CPU"] = str(device.type == "cpu").lower()
    torch.manual_seed(0)
    accelerator = run.start_accelerator(config)
    generator, discriminator, _ = run.build_networks(config)
    return run.set_in_motion(generator, discriminator, image_tower(config.preset).to(device), accelerator, config)


def random_inputs(batch: int, generator: RATLIPGenerator, text_encoder: CLIPTextModelWithProjection) -> tuple:
    """Images in [-1, 1], noise and token ids without meaning; the same at every call."""
    tokens = text_encoder.config.max_position_embeddings
    sizes, rng = generator.config, torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, sizes.sample_size, sizes.sample_size, generator=rng) * 2 - 1
    noise = torch.randn(batch, sizes.noise_dim, generator=rng)
    input_ids = torch.randint(1, 500, (batch, tokens), generator=rng)
    return tuple(x.to(generator.device) for x in (images, noise, input_ids))


def _text_tower(preset: str) -> CLIPTextModelWithProjection:
    if preset == "tiny":
        return load_clip(bundled.NAME).text_encoder
    return CLIPTextModelWithProjection(CLIPConfig().text_config).requires_grad_(False).eval()


# One iteration in the arrangement of the released code, as the baseline


def released_step(
    nets: Networks, text_encoder: nn.Module, images: torch.Tensor, noise: torch.Tensor, input_ids: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Move both networks once (Eq. 8), on images [B, 3, S, S], noise [B, Z] and token ids [B, tokens] of captions.

    Returns the detached losses.

    As released: captions are encoded in every step; real images ask for gradients, so that their pass through the
    frozen image tower keeps a graph, which the discriminator's backward walks; that pass runs to the last layer; real,
    mismatched and generated pairs go through the discriminator one after the other; and the generator's backward
    makes gradients of the discriminator, too, which nobody uses.
    """
    text = text_encoder(input_ids).text_embeds.detach().requires_grad_()
    images = images.detach().requires_grad_()
    generator, discriminator, config = nets.generator, nets.discriminator, nets.config

    features, condition = discriminator.condition(_read(nets, images)[0], text)
    real = _logits(discriminator, features, condition)
    mismatched = _logits(discriminator, features, condition.roll(-1, 0))
    fakes = generator(noise, text, nets.image_encoder, return_dict=False)[0]
    fake_features, embeds = _read(nets, fakes)
    fake_features = discriminator.condition(fake_features, text)[0]
    fake = _logits(discriminator, fake_features.detach(), condition)
    d_loss = losses.discriminator_hinge(real, fake, mismatched) + gradient_penalty(config, real, features, condition)
    nets.discriminator_optimization.backward(d_loss)
    nets.discriminator_optimization.step()

    adversarial = losses.generator_adversarial(_logits(discriminator, fake_features, condition.detach()))
    g_loss = adversarial - config.clip_loss_weight * losses.clip_similarity(embeds, text)
    nets.generator_optimization.backward(g_loss)
    nets.generator_optimization.step()
    nets.discriminator_optimization.optimizer.zero_grad()
    return {"d_loss": d_loss.detach(), "g_loss": g_loss.detach()}


def resize_first(generator: RATLIPGenerator) -> None:
    """Let the image blocks resize at their start, as the released code does; ours resize later where that is exact."""
    for block in generator.blocks:
        block.forward = functools.partial(_resized_first, block)


def _resized_first(block: ImageBlock, x: torch.Tensor, states: list[torch.Tensor]) -> torch.Tensor:
    x = block.resize(x)
    residual = block.conv1(block.fuse1(x, states[:2]))
    return block.shortcut(x) + block.conv2(block.fuse2(residual, states[2:]))


def _read(nets: Networks, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    config = nets.discriminator.config
    return image_features_and_embeds(nets.image_encoder, images, config.feature_layers, config.clip_input)


def _logits(discriminator: nn.Module, features: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    return discriminator(features, condition, conditioned=True, return_dict=False)[0]
