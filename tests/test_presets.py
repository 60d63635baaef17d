"""The values of the paper and of the released code, literally, and what single options do to the computation.
Guards the defaults: a preset that drifts would still generate, only something else."""

import math

import numpy as np
import pytest
import torch
import transformers
from diffusers import AutoModel
from PIL import Image
from torch import nn

from ratlip_hf import RATLIPDiscriminator, RATLIPGenerator
from ratlip_hf.clip import prepare_pixels
from ratlip_hf.models.blocks import ShuffleAttention
from ratlip_hf.models.recurrence import AcrossLayersStates
from test_models import TOY, TOY_D, distance, generate, inputs, shake, tower

PAPER_GENERATOR = {
    "sample_size": 224,
    "noise_dim": 100,
    "text_dim": 512,
    "clip_width": 768,
    "clip_grid": 7,
    "base_channels": 64,
    "bridge_channels": 64,
    "bridge_blocks": 4,
    "lstm_hidden": 64,
    "prompt_layers": [1, 2, 3, 4, 5, 6, 7, 8],
    "residual_scale": 0.1,
    "attention_groups": 8,
    "upsampling": "nearest",
    "fusion": "rat",
    "recurrence": "across_layers",
    "bridge_conv": "bn_act_sa",
    "image_conv": "bn_act_sa",
    "text_center": False,
    "text_norm": None,
}
PAPER_DISCRIMINATOR = {
    "clip_width": 768,
    "clip_grid": 7,
    "text_dim": 512,
    "feature_layers": [1, 4, 8],
    "clip_input": "clip",
    "extractor_channels": 512,
    "head_channels": 128,
    "gate_init": 0.0,
    "unused_shortcuts": False,
    "scale_features": False,
    "text_center": False,
    "text_norm": None,
}
RELEASED = {"unused_shortcuts": True, "clip_input": "released"}
GALIP = {"fusion": "cat", "bridge_conv": "plain", "image_conv": "plain"}


def settings(model) -> dict:
    values = {name: value for name, value in model.config.items() if not name.startswith("_")}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@pytest.mark.parametrize(
    ("name", "generator", "discriminator"),
    [("ratlip", {}, {}), ("ratlip-released", {"recurrence": "batch_as_time"}, RELEASED), ("galip", GALIP, RELEASED)],
)
def test_presets_hold_the_published_values(name, generator, discriminator):
    with torch.device("meta"):
        assert settings(RATLIPGenerator.from_preset(name)) == {**PAPER_GENERATOR, **generator}
        assert settings(RATLIPDiscriminator.from_preset(name)) == {**PAPER_DISCRIMINATOR, **discriminator}


def test_start_values_of_the_recurrent_cell_and_of_shuffle_attention():
    states = AcrossLayersStates(noise_dim=5, text_dim=7, hidden_size=25, steps=2)
    for parameter in (states.input_gates.weight, states.input_gates.bias, states.hidden_gates.weight):
        assert 0.17 < parameter.abs().max() <= 1 / math.sqrt(25)
    attention = ShuffleAttention(16, 4)
    start = {name: parameter.unique().item() for name, parameter in attention.named_parameters()}
    ones, zeros = ("channel_bias", "spatial_bias", "norm_weight"), ("channel_weight", "spatial_weight", "norm_bias")
    assert start == {**dict.fromkeys(ones, 1.0), **dict.fromkeys(zeros, 0.0)}


def test_residual_scale_weighs_the_clip_block():
    encoder, other = tower(), shake(tower(), seed=5)
    generator = shake(RATLIPGenerator(**TOY, residual_scale=0.0)).eval()
    noise, text = inputs(2)
    assert torch.equal(generate(generator, encoder, noise, text), generate(generator, other, noise, text))
    scaled = RATLIPGenerator(**TOY, residual_scale=0.3).eval()
    scaled.load_state_dict(generator.state_dict())
    assert distance(generate(scaled, encoder, noise, text), generate(scaled, other, noise, text)) > 1e-3


def test_text_conditioning_reaches_every_reader_of_the_text():
    """A centring generator equals a plain one that is given conditioned text: recurrence, prompts and image blocks."""
    generator = shake(RATLIPGenerator(**TOY, text_center=True, text_norm=3.0)).eval()
    plain = RATLIPGenerator(**TOY).eval()
    plain.load_state_dict({k: v for k, v in generator.state_dict().items() if k != "text_conditioning.mean"})
    noise, text = inputs(3)
    conditioned = generator.text_conditioning(text)
    encoder = tower()
    assert distance(generate(plain, encoder, noise, conditioned), generate(generator, encoder, noise, text)) < 1e-6
    assert distance(generate(plain, encoder, noise, text), generate(generator, encoder, noise, text)) > 1e-3


def test_pixel_preparation_is_that_of_the_clip_processor():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (320, 320, 3), np.uint8))  # noise tells filters apart
    # The one of Pillow, under the name of its own that newer versions give it.
    processor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    expected = processor()(image, return_tensors="pt").pixel_values
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    assert (prepare_pixels(pixels, 224) - expected).abs().mean() < 0.01
    half = prepare_pixels(pixels.to(torch.bfloat16), 224)
    assert half.dtype == torch.bfloat16 and (half.float() - expected).abs().mean() < 0.02


@pytest.mark.parametrize("preset", ["ratlip", "galip", "tiny"])
def test_presets_generate_samples_independently(preset):
    sizes = {name: TOY[name] for name in ("noise_dim", "text_dim", "clip_width", "clip_grid", "prompt_layers")}
    generator = shake(RATLIPGenerator.from_preset(preset, **sizes, sample_size=64, base_channels=16)).eval()
    encoder, (noise, text) = tower(), inputs(8)
    alone = torch.cat([generate(generator, encoder, noise[i : i + 1], text[i : i + 1]) for i in range(8)])
    assert distance(alone, generate(generator, encoder, noise, text)) < 1e-5


def test_checkpointed_discriminator_takes_the_penalty_s_double_backward():
    plain = shake(RATLIPDiscriminator(**TOY_D))
    saving = RATLIPDiscriminator(**TOY_D)
    saving.load_state_dict(plain.state_dict())
    saving.enable_gradient_checkpointing()
    features, text = torch.randn(2, 2, 32, 4, 4, requires_grad=True), torch.randn(2, 16, requires_grad=True)
    for network in (plain, saving):
        logits = network(features, text).logits
        gradients = torch.autograd.grad(logits.sum(), [features, text], create_graph=True)
        (logits.sum() + sum(gradient.square().sum() for gradient in gradients)).backward()
    for (name, one), two in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=name)


def test_checkpointed_generator_may_be_differentiated_twice_over():
    generator = shake(RATLIPGenerator(**TOY)).train()
    generator.enable_gradient_checkpointing()
    loss = generator(*inputs(2), tower()).sample.square().mean()
    before = {name: value.clone() for name, value in generator.named_buffers()}
    parameter = generator.noise_proj.weight
    first, second = (torch.autograd.grad(loss, parameter, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(value, before[name]) for name, value in generator.named_buffers())


def test_auto_model_knows_both_networks(tmp_path):
    for kind, options in ((RATLIPGenerator, TOY), (RATLIPDiscriminator, TOY_D)):
        kind(**options).save_pretrained(tmp_path / kind.__name__)
        assert type(AutoModel.from_pretrained(str(tmp_path / kind.__name__))) is kind


@pytest.mark.parametrize("tower_like", [None, nn.Linear(2, 2), tower().vision_model])
def test_something_else_than_a_tower_is_refused(tower_like):
    with pytest.raises(TypeError, match="CLIPVisionModelWithProjection"):
        RATLIPGenerator(**TOY)(*inputs(1), tower_like)
