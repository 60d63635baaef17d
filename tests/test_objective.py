"""The trainer's two phases against Eq. 8 written out independently: gradients, weights of the terms, rates, averages.
What moves and what stays is in `test_training`."""

import copy
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ratlip_hf import RATLIPDiscriminator, RATLIPGenerator, RATLIPPipeline
from ratlip_hf.clip import image_features, image_features_and_embeds
from ratlip_hf.data.read.rows import Columns, MapRows
from ratlip_hf.training import loop
from ratlip_hf.training.optimization import rate_factor
from ratlip_hf.training.run import fit_conditioning
from ratlip_hf.training.samples import CaptionedImages
from ratlip_hf.training.step import training_step
from training_toys import DISCRIMINATOR, GENERATOR, corpus, keep_gradients, step_inputs


def gradients(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def discriminator_loss(nets, images, fakes, text, form: str) -> torch.Tensor:
    """L_D of Eq. 8, one pair at a time."""
    network, config = nets.discriminator, nets.config
    layers, clip_input = network.config.feature_layers, network.config.clip_input
    real, fake = (image_features(nets.image_encoder, x, layers, clip_input).detach() for x in (images, fakes))
    total = 0.0
    for index in range(len(images)):
        features, embeds = network.condition(real[index : index + 1], text[index : index + 1])
        features, embeds = features.detach().requires_grad_(), embeds.detach().requires_grad_()
        other = text[(index + 1) % len(images)][None]
        score = network(features, embeds, conditioned=True).logits
        g_image, g_text = torch.autograd.grad(score.sum(), [features, embeds], create_graph=True)
        if form == "summed":
            norm = g_image.square().sum().sqrt() + g_text.square().sum().sqrt()
        else:
            norm = (g_image.square().sum() + g_text.square().sum()).sqrt()
        total = total + F.relu(1 - score).sum() + config.penalty_weight * norm**config.penalty_power
        total = total + F.relu(1 + network(fake[index : index + 1], text[index : index + 1]).logits).sum() / 2
        total = total + F.relu(1 + network(real[index : index + 1], other).logits).sum() / 2
    return total / len(images)


@pytest.mark.parametrize("form", ["summed", "concatenated"])
@pytest.mark.parametrize("clip_input", ["clip", "released"])
def test_discriminator_phase_is_eq_8(nets, form, clip_input):
    nets.config.penalty_form, nets.config.penalty_weight, nets.config.penalty_power = form, 3.0, 4.0
    nets.discriminator.register_to_config(clip_input=clip_input)
    keep_gradients(nets)
    images, noise, text, *_ = inputs = step_inputs()
    reference = copy.deepcopy(nets.discriminator)
    with torch.no_grad():
        fakes = copy.deepcopy(nets.generator)(noise, text, nets.image_encoder).sample
    training_step(nets, [inputs])
    found = gradients(nets.discriminator)
    nets.discriminator = reference
    discriminator_loss(nets, images, fakes, text, form).backward()
    assert_same(found, gradients(reference))


@pytest.mark.parametrize("clip_input", ["clip", "released"])
def test_generator_phase_is_eq_8_with_the_discriminator_already_moved(nets, clip_input):
    nets.config.clip_loss_weight, nets.config.range_weight = 2.5, 7.0
    nets.discriminator.register_to_config(clip_input=clip_input)
    keep_gradients(nets)
    _, noise, text, *_ = inputs = step_inputs()
    reference = copy.deepcopy(nets.generator)
    training_step(nets, [inputs])
    images = reference(noise, text, nets.image_encoder).sample
    layers = nets.discriminator.config.feature_layers
    features, embeds = image_features_and_embeds(nets.image_encoder, images, layers, clip_input)
    cosine = (F.normalize(embeds, dim=1) * F.normalize(text, dim=1)).sum(1)
    outside = (images.abs() - 1).clamp(min=0)
    loss = -nets.discriminator(features, text).logits.mean() - 2.5 * cosine.mean() + 7.0 * outside.mean()
    loss.backward()
    assert_same(gradients(nets.generator), gradients(reference))


def test_bf16_passes_leave_weights_and_penalty_in_float32(nets):
    nets.config.mixed_precision = "bf16"
    metrics = training_step(nets, [step_inputs()])
    assert metrics["d_penalty"].dtype == torch.float32
    assert all(value.isfinite() for value in metrics.values())
    assert {parameter.dtype for parameter in nets.generator.parameters()} == {torch.float32}


@pytest.mark.parametrize(("seen", "factor"), [(0, 1.0), (400, 1.0), (500, 0.55), (600, 0.1)])
def test_rates_fall_over_the_last_third(nets, seen, factor):
    nets.config.max_train_images, nets.config.final_learning_rate_factor = 600, 0.1
    assert rate_factor(nets.config, 1000, seen) == pytest.approx(factor)
    nets.generator_optimization.set_rate(factor)
    nets.generator_optimization.set_rate(factor)
    assert nets.generator_optimization.optimizer.param_groups[0]["lr"] == pytest.approx(factor * 0.1)


def test_rates_rise_over_the_first_steps(config):
    config.lr_warmup_steps = 4
    assert [rate_factor(config, step, 0) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_conditioning_is_fitted_to_the_data(small_clip, config):
    generator = RATLIPGenerator(**GENERATOR, text_center=True, text_norm=4.0)
    discriminator = RATLIPDiscriminator(**DISCRIMINATOR)
    data = corpus(config)
    fit_conditioning([generator, discriminator], small_clip, data, discriminator.config)
    mean = F.normalize(small_clip.encode([f"{index} first" for index in range(10)]), dim=1).mean(0)
    torch.testing.assert_close(generator.text_conditioning.mean, mean)
    torch.testing.assert_close(discriminator.text_conditioning.mean, mean)
    features = image_features(small_clip.image_encoder, data.batch(range(64)).images, (0, 1, 2))
    torch.testing.assert_close(discriminator.feature_scale.scale, features.std(dim=(0, 2, 3, 4)))


def test_half_of_the_images_are_mirrored_if_that_is_allowed(config):
    ramp = np.tile(np.linspace(0, 255, 32, dtype=np.uint8)[None, :, None], (32, 1, 3))
    rows = datasets.Dataset.from_dict({"image": [Image.fromarray(ramp)] * 2, "captions": [["a ramp"], ["another"]]})
    data = CaptionedImages(MapRows(rows, Columns("image", "captions"), seed=0), config, size=32, noise_dim=3)

    def mirrored() -> int:
        return int((data.batch(range(40)).images[:, 0, 0, 0] > 0).sum())

    assert mirrored() == 0
    config.random_flip = True
    assert 10 <= mirrored() <= 30


def test_the_saved_pipeline_is_the_average_and_old_checkpoints_go(config):
    config.max_train_images, config.checkpoints_total_limit = 24, 1
    output = loop.train(config)
    (checkpoint,) = (output / "checkpoints").iterdir()
    state = torch.load(checkpoint / "state.pt", weights_only=True)
    saved = RATLIPPipeline.from_pretrained(output / "pipeline").generator.state_dict()
    assert all(torch.equal(value, state["ema"]["module"][name]) for name, value in saved.items())
    assert not torch.equal(saved["to_rgb.weight"], state["generator"]["to_rgb.weight"])
    assert json.loads((checkpoint / "facts.json").read_text())["images"] == 24


def test_a_finished_run_writes_its_models_again_if_they_are_gone(config):
    output = loop.train(config)
    (output / "pipeline" / "model_index.json").unlink()
    config.resume_from_checkpoint = "latest"
    loop.train(config)
    assert (Path(config.output_dir) / "pipeline" / "model_index.json").is_file()
