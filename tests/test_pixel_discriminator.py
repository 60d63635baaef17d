"""The auxiliary discriminator of pixels, which is off unless asked for: its losses, its part in a step, resuming."""

import copy
import dataclasses
import json

import pytest
import torch

from ratlip_hf import RATLIPGenerator, RATLIPPipeline
from ratlip_hf.export.repository import export_hub
from ratlip_hf.models.pixel_discriminator import PixelDiscriminator
from ratlip_hf.training import loop
from ratlip_hf.training import pixel_losses as pixels
from ratlip_hf.training.footprint import memory_use
from ratlip_hf.training.optimization import Optimization
from ratlip_hf.training.step import Networks, training_step
from ratlip_hf.utils.errors import UserError
from training_toys import step_inputs


@pytest.fixture
def nets_with_pixels(nets) -> Networks:
    nets.config.pixel_loss_weight = 1.0
    torch.manual_seed(3)
    nets.pixel_discriminator = PixelDiscriminator(32, 16, channels=4)
    nets.pixel_optimization = Optimization(torch.optim.SGD(nets.pixel_discriminator.parameters(), lr=0.1))
    return nets


def test_the_penalty_on_pixels_is_half_the_squared_gradient():
    """Of a linear function of the pixels the gradient is its weights."""
    weights = torch.randn(3, 8, 8)
    images = torch.randn(5, 3, 8, 8, requires_grad=True)
    penalty = pixels.zero_centred_penalty((images * weights).sum(dim=(1, 2, 3)), images)
    torch.testing.assert_close(penalty, weights.square().sum() / 2)


def test_the_pixel_discriminator_learns_pairs_and_lazy_penalties_count_for_the_steps_between(nets_with_pixels):
    critic, inputs = nets_with_pixels.pixel_discriminator, step_inputs()
    real, fake, text = inputs.images, inputs.images.flip(0), inputs.prompt_embeds
    terms = {on: pixels.discriminator_loss(critic, real, fake, text, 2.0, on) for on in (False, True)}
    gap = critic(real, text) - critic(fake, text)
    torch.testing.assert_close(terms[False]["loss"], torch.log1p((-gap).exp()).mean())
    extra = terms[True]["loss"] - terms[False]["loss"]
    torch.testing.assert_close(extra, 2.0 * pixels.PENALTY_INTERVAL * terms[True]["p_penalty"])
    assert terms[True]["p_penalty"] > 0 and "p_penalty" not in terms[False]
    torch.testing.assert_close(pixels.generator_loss(critic, real, fake, text), torch.log1p(gap.exp()).mean())


def test_a_step_with_pixels_moves_three_networks_each_by_its_own_loss(nets_with_pixels):
    nets = nets_with_pixels
    nets.config.range_weight = 0.0
    parts = nets.generator, nets.discriminator, nets.pixel_discriminator
    before = [copy.deepcopy(part.state_dict()) for part in parts]
    metrics = training_step(nets, [step_inputs()])
    assert {"p_loss", "p_gap", "p_penalty", "p_grad_norm", "g_pixel"} <= metrics.keys()
    for part, state in zip(parts, before, strict=True):
        assert any(not torch.equal(value, state[name]) for name, value in part.state_dict().items())
        assert all(parameter.grad is None for parameter in part.parameters())
    whole, adversarial, similarity = (metrics[name] for name in ("g_loss", "g_adversarial", "clip_similarity"))
    expected = adversarial - nets.config.clip_loss_weight * similarity + metrics["g_pixel"]
    torch.testing.assert_close(whole, expected)


@pytest.mark.parametrize("penalise", [True, False])
def test_in_half_precision_only_the_pass_under_the_penalty_is_in_float32(nets_with_pixels, penalise):
    whole = copy.deepcopy(nets_with_pixels)
    nets_with_pixels.config.mixed_precision = "bf16"
    seen = []
    nets_with_pixels.pixel_discriminator.blocks.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    metrics = training_step(nets_with_pixels, [step_inputs()], penalise_pixels=penalise)
    assert seen == [torch.float32 if penalise else torch.bfloat16, torch.bfloat16, torch.bfloat16]
    expected = training_step(whole, [step_inputs()], penalise_pixels=penalise)
    for name in ("p_loss", "p_grad_norm", "g_pixel"):
        assert metrics[name].item() == pytest.approx(expected[name].item(), rel=0.1), name


def test_a_run_with_pixels_resumes_exactly(config, tmp_path):
    config.pixel_loss_weight, config.pixel_channels = 0.5, 4
    whole = torch.load(loop.train(config) / "checkpoints" / "step-00000004" / "state.pt")
    config.output_dir, config.max_train_images = str(tmp_path / "parts"), 8
    loop.train(config)
    config.max_train_images, config.resume_from_checkpoint = 16, "latest"
    again = torch.load(loop.train(config) / "checkpoints" / "step-00000004" / "state.pt")
    for part in ("generator", "pixel_discriminator"):
        assert all(torch.equal(value, again[part][name]) for name, value in whole[part].items())


def test_fine_tuning_goes_on_with_the_discriminator_of_pixels_that_comes_with_a_pipeline(config, tmp_path):
    config.pixel_loss_weight, config.pixel_channels = 0.5, 4
    first = loop.train(config)
    fine = dataclasses.replace(config, generator={}, discriminator={}, clip=None, output_dir=str(tmp_path / "fine"))
    fine.pretrained_model_name_or_path, fine.generator_learning_rate = str(first / "pipeline"), 1e-12
    kept, now = (PixelDiscriminator.from_pretrained(run / "pixel_discriminator") for run in (first, loop.train(fine)))
    for name, value in kept.state_dict().items():
        torch.testing.assert_close(now.state_dict()[name], value, rtol=0, atol=1e-9, msg=name)
    fine.pixel_channels, fine.output_dir = 8, str(tmp_path / "other")
    with pytest.raises(UserError, match="channels 4, this run's 8: --pixel_channels must be as it was"):
        loop.train(fine)


def test_publishing_takes_it_along_and_loading_the_pipeline_leaves_it_on_the_hub(config, tmp_path):
    config.pixel_loss_weight, config.pixel_channels = 0.5, 4
    source = str(loop.train(config) / "pipeline")
    pipe = RATLIPPipeline.from_pretrained(source)
    export_hub(pipe, tmp_path / "birds", "ada/birds", source)
    assert PixelDiscriminator.of_pipeline(tmp_path / "birds").config.channels == 4
    unread = json.loads((tmp_path / "birds" / "model_index.json").read_text())["_ignore_files"]
    assert unread == [
        f"{name}/diffusion_pytorch_model.safetensors" for name in ("discriminator", "pixel_discriminator")
    ]


def test_a_pipeline_without_one_gets_a_fresh_one_and_hears_of_it(config, caplog):
    config.pixel_loss_weight, config.pretrained_model_name_or_path = 0.5, str(loop.train(config) / "pipeline")
    generator = RATLIPGenerator.from_pretrained(config.pretrained_model_name_or_path, subfolder="generator")
    assert pixels.build_or_load(config, generator) is not None
    assert "no discriminator of pixels comes with" in caplog.text


@pytest.mark.parametrize("size", [32, 224])
def test_images_of_every_size_of_a_generator_are_scored(size):
    logits = PixelDiscriminator(size, 16, channels=2)(torch.zeros(2, 3, size, size), torch.zeros(2, 16))
    assert logits.shape == (2,)


@pytest.mark.slow
def test_the_estimate_of_memory_counts_it(config, nets, small_clip):
    networks = nets.accelerator, nets.generator, nets.discriminator, small_clip
    without = memory_use(config, *networks)
    config.pixel_loss_weight = 1.0
    use, network = memory_use(config, *networks), pixels.build(config, nets.generator)
    size = 4 * sum(parameter.numel() for parameter in network.parameters())
    assert (use.weights - without.weights, use.gradients - without.gradients) == (size, size)
    assert use.activations > without.activations
