"""What users rely on in the networks: independence of samples, the recurrence, sizes, errors, saving, checkpointing.
Toy components throughout; agreement with the original programs is in `test_parity`."""

import copy
import functools
import math

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ratlip_hf import RATLIPDiscriminator, RATLIPGenerator
from ratlip_hf.clip import image_features, image_features_and_embeds, prepare_pixels, prompted_tower
from ratlip_hf.models.base import FeatureScale, TextConditioning
from ratlip_hf.models.blocks import Affine, ShuffleAttention
from ratlip_hf.models.generator import image_channels, image_sizes
from ratlip_hf.models.recurrence import AcrossLayersStates, PerLayerStates

TOY = {
    "sample_size": 32,
    "noise_dim": 12,
    "text_dim": 16,
    "clip_width": 32,
    "clip_grid": 4,
    "base_channels": 8,
    "bridge_channels": 8,
    "bridge_blocks": 2,
    "lstm_hidden": 6,
    "prompt_layers": (0, 2),
    "attention_groups": 2,
}
TOY_D = {
    "clip_width": 32,
    "clip_grid": 4,
    "text_dim": 16,
    "feature_layers": (0, 2),
    "extractor_channels": 8,
    "head_channels": 4,
}


def shake(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random values everywhere, so that nothing rests at a start value that hides it."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=rng)
            elif value.is_floating_point():
                scale = 1 / math.sqrt(value[0].numel()) if value.ndim > 1 else 0.3
                value.add_(scale * torch.randn(value.shape, generator=rng))
    return module


def tower(
    layers: int = 3, width: int = 32, image_size: int = 32, patch: int = 8, hidden_act: str = "quick_gelu"
) -> CLIPVisionModelWithProjection:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=patch,
        projection_dim=16,
        hidden_act=hidden_act,
    )
    return CLIPVisionModelWithProjection(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def encoder():
    return tower()


def inputs(batch: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 12, generator=rng), torch.randn(batch, 16, generator=rng)


def generate(generator, encoder, noise, text) -> torch.Tensor:
    with torch.no_grad():
        return generator(noise, text, encoder).sample


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    return ((one - other).abs().max() / one.abs().max()).item()


INDEPENDENT = [
    {"fusion": "cat"},
    {"recurrence": "across_layers"},
    {"recurrence": "per_layer"},
    {"bridge_conv": "plain", "image_conv": "bn_act"},
    {"bridge_conv": "bn_act", "image_conv": "plain", "upsampling": "bilinear"},
    {"text_center": True, "text_norm": 3.0},
]


@pytest.mark.parametrize("options", INDEPENDENT, ids=str)
def test_an_image_depends_on_its_own_noise_and_text_only(encoder, options):
    generator = shake(RATLIPGenerator(**{**TOY, **options})).eval()
    noise, text = inputs(8)
    together = generate(generator, encoder, noise, text)
    alone = torch.cat([generate(generator, encoder, noise[i : i + 1], text[i : i + 1]) for i in range(8)])
    order = torch.tensor([3, 1, 7, 0, 5, 2, 6, 4])
    assert distance(together, alone) < 1e-5
    assert distance(together[order], generate(generator, encoder, noise[order], text[order])) < 1e-5
    # A dead input would pass the comparisons above.
    assert distance(together, generate(generator, encoder, noise.roll(1, 0), text)) > 1e-3
    assert distance(together, generate(generator, encoder, noise, text.roll(1, 0))) > 1e-3


def test_batch_as_time_couples_a_batch_warns_and_equals_per_layer_for_one_sample(encoder):
    coupled = shake(RATLIPGenerator(**TOY, recurrence="batch_as_time")).eval()
    single = RATLIPGenerator(**TOY, recurrence="per_layer").eval()
    single.load_state_dict(coupled.state_dict())
    noise, text = inputs(2)
    with pytest.warns(UserWarning, match="batch_as_time"):
        together = generate(coupled, encoder, noise, text)
    alone = generate(coupled, encoder, noise[:1], text[:1])
    assert distance(alone, together[:1]) > 1e-3
    torch.testing.assert_close(alone, generate(single, encoder, noise[:1], text[:1]))


def test_recurrence_across_layers_is_torch_lstm_over_repeated_text():
    torch.manual_seed(0)
    states = AcrossLayersStates(noise_dim=5, text_dim=7, hidden_size=6, steps=16)
    lstm = nn.LSTM(7, 6, batch_first=True)
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(states.input_gates.weight)
        lstm.weight_hh_l0.copy_(states.hidden_gates.weight)
        lstm.bias_ih_l0.copy_(states.input_gates.bias)
        lstm.bias_hh_l0.zero_()
        noise, text = torch.randn(3, 5), torch.randn(3, 7)
        start = states.initial_hidden(noise)[None], states.initial_cell(noise)[None]
        expected, _ = lstm(text[:, None].expand(-1, 16, -1), start)
        torch.testing.assert_close(torch.stack(states(noise, text), dim=1), expected)
    assert not torch.allclose(expected[:, 0], expected[:, 15])


def test_batch_as_time_runs_through_the_batch_in_order():
    torch.manual_seed(0)
    states = PerLayerStates(noise_dim=2, text_dim=3, hidden_size=4, steps=2, batch_as_time=True)
    noise, text = torch.randn(5, 2), torch.randn(5, 3)
    with torch.no_grad():
        _, (final, _) = states.cells[1](torch.cat([noise, text], dim=1)[None])
        torch.testing.assert_close(states(noise, text)[1], final[0].expand(5, -1))


def test_a_new_affine_is_the_identity():
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(Affine(4, 5)(x, torch.randn(2, 5)), x)


def test_shuffle_attention_against_its_definition():
    """Group by group, gate by gate, with loops (docs/method.md, section 4)."""
    torch.manual_seed(0)
    groups, channels = 3, 12
    attention = shake(ShuffleAttention(channels, groups))
    x = torch.randn(2, channels, 4, 5)
    half = channels // groups // 2
    parts = []
    for part in x.split(2 * half, dim=1):
        first, second = part[:, :half], part[:, half:]
        w, b = attention.channel_weight, attention.channel_bias
        parts += [first * torch.sigmoid(w * first.mean((2, 3)) + b)[:, :, None, None]]
        mean, var = second.mean((2, 3), keepdim=True), second.var((2, 3), unbiased=False, keepdim=True)
        normal = (second - mean) / (var + 1e-5).sqrt()
        normal = attention.norm_weight[:, None, None] * normal + attention.norm_bias[:, None, None]
        gate = attention.spatial_weight[:, None, None] * normal + attention.spatial_bias[:, None, None]
        parts += [second * gate.sigmoid()]
    expected = torch.cat(parts, dim=1)
    shuffled = torch.stack([expected[:, : channels // 2], expected[:, channels // 2 :]], dim=2).flatten(1, 2)
    torch.testing.assert_close(attention(x), shuffled)


@pytest.mark.parametrize(
    ("size", "grid", "sizes"),
    [
        (224, 7, [8, 16, 32, 64, 128, 224]),
        (256, 7, [8, 16, 32, 64, 128, 256]),
        (64, 8, [8, 16, 32, 64]),
        (32, 4, [8, 16, 32]),
        (224, 16, [16, 32, 64, 128, 224]),
        (128, 24, [32, 64, 128]),
        (32, 32, [32]),
    ],
)
def test_image_block_sizes(size, grid, sizes):
    assert image_sizes(size, grid) == sizes


def test_image_block_channels_of_the_paper():
    assert image_channels(64, 6) == [512, 512, 512, 512, 256, 128, 64]


@pytest.mark.parametrize("size", [32, 64, 128, 224, 256])
def test_every_size_is_generated(encoder, size):
    generator = RATLIPGenerator(**{**TOY, "sample_size": size, "base_channels": 4, "attention_groups": 1})
    assert generate(generator, encoder, *inputs(2)).shape == (2, 3, size, size)


@pytest.mark.parametrize(("layers", "width", "image_size", "patch"), [(4, 24, 30, 6), (2, 16, 48, 4)])
def test_other_clip_towers_fit(layers, width, image_size, patch):
    grid = image_size // patch
    image_encoder = tower(layers, width, image_size, patch)
    generator = RATLIPGenerator(**{**TOY, "clip_width": width, "clip_grid": grid, "prompt_layers": (0, 1)})
    discriminator = RATLIPDiscriminator(
        **{**TOY_D, "clip_width": width, "clip_grid": grid, "feature_layers": (0, layers - 1)}
    )
    noise, text = inputs(2)
    features = image_features(image_encoder, generate(generator, image_encoder, noise, text), (0, layers - 1))
    assert discriminator(features, text).logits.shape == (2,)


BAD_GENERATORS = [
    ({"sample_size": 100}, "sample_size"),
    ({"clip_grid": 40}, "clip_grid"),
    ({"attention_groups": 3}, "multiple of 6"),
    ({"bridge_channels": 7}, "even"),
    ({"bridge_blocks": 0}, "bridge_blocks"),
    ({"fusion": "concat"}, "fusion"),
    ({"recurrence": "lstm"}, "recurrence"),
    ({"upsampling": "bicubic"}, "upsampling"),
    ({"image_conv": "sa"}, "image_conv"),
    ({"prompt_layers": (2, 1)}, "prompt_layers"),
    ({"prompt_layers": ()}, "prompt_layers"),
    ({"text_norm": 0.0}, "text_norm"),
    ({"text_norm": "8"}, "text_norm"),
    ({"text_center": "yes"}, "text_center"),
    ({"clip_grid": "7"}, "clip_grid"),
    ({"clip_grid": 7.5}, "clip_grid"),
    ({"noise_dim": True}, "noise_dim"),
    ({"prompt_layers": 3}, "prompt_layers"),
    ({"prompt_layers": (0.5,)}, "prompt_layers"),
    ({"residual_scale": "x"}, "residual_scale"),
    ({"residual_scale": math.nan}, "residual_scale"),
]


@pytest.mark.parametrize(("options", "rule"), BAD_GENERATORS, ids=str)
def test_impossible_generators_name_the_rule(options, rule):
    with pytest.raises(ValueError, match=rule):
        RATLIPGenerator(**{**TOY, **options})


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"feature_layers": ()}, "feature_layers"),
        ({"feature_layers": (2, 0)}, "feature_layers"),
        ({"clip_input": "raw"}, "clip_input"),
        ({"head_channels": 0}, "head_channels"),
        ({"text_norm": -1.0}, "text_norm"),
        ({"gate_init": "1"}, "gate_init"),
        ({"scale_features": None}, "scale_features"),
    ],
    ids=str,
)
def test_impossible_discriminators_name_the_rule(options, rule):
    with pytest.raises(ValueError, match=rule):
        RATLIPDiscriminator(**{**TOY_D, **options})


def test_inputs_that_do_not_fit_are_refused(encoder):
    generator, (noise, text) = RATLIPGenerator(**TOY), inputs(2)
    for arguments, message in [
        ((noise[:, :5], text, encoder), "noise must be"),
        ((noise, text[:, :5], encoder), "prompt_embeds must be"),
        ((noise[:1], text, encoder), "rows"),
        ((noise, text, tower(width=24)), "width 24"),
        ((noise, text, tower(layers=2)), "beyond"),
    ]:
        with pytest.raises(ValueError, match=message):
            generator(*arguments)
    discriminator = RATLIPDiscriminator(**TOY_D)
    with pytest.raises(ValueError, match="image_features"):
        discriminator(torch.zeros(2, 3, 32, 4, 4), text)
    with pytest.raises(ValueError, match="prompt_embeds"):
        discriminator(torch.zeros(2, 2, 32, 4, 4), text[:1])
    with pytest.raises(ValueError, match="feature layers"):
        image_features(encoder, torch.zeros(1, 3, 32, 32), (0, 3))


def test_the_frozen_tower_is_borrowed_not_kept(encoder):
    generator = RATLIPGenerator(**TOY)
    generator(*inputs(2), encoder).sample.sum().backward()
    assert not any("vision" in name or "encoder" in name for name in generator.state_dict())
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert generator.noise_proj.weight.grad.abs().sum() > 0


def test_features_are_the_tower_s_hidden_states(encoder):
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    features, embeds = image_features_and_embeds(encoder, images, (0, 2))
    with torch.no_grad():
        output = encoder(pixel_values=prepare_pixels(images, 32), output_hidden_states=True)
    for index, layer in enumerate((0, 2)):
        tokens = output.hidden_states[layer + 1][:, 1:]
        torch.testing.assert_close(features[:, index].flatten(2).transpose(1, 2), tokens)
    torch.testing.assert_close(embeds, output.image_embeds)
    torch.testing.assert_close(image_features(encoder, images, (0, 2)), features)


def test_a_tower_without_prompts_passes_patches_through(encoder):
    """Prompt tokens are appended before their layer and gone after it: with none left only the plain tower remains."""
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        grid = encoder.vision_model.embeddings.patch_embedding(prepare_pixels(images, 32))
        plain = image_features(encoder, images, (2,))[:, 0]
        torch.testing.assert_close(prompted_tower(encoder, grid, torch.zeros(2, 0, 32), ()), plain)
        prompted = prompted_tower(encoder, grid, torch.randn(2, 1, 32), (1,))
    assert prompted.shape == plain.shape
    assert (prompted - plain).abs().amax() > 1e-3


def test_pixel_preparation_clip_and_released():
    images = torch.full((1, 3, 64, 64), 0.5)
    plain, released = prepare_pixels(images, 32), prepare_pixels(images, 32, "released")
    mean, std = 0.48145466, 0.26862954
    torch.testing.assert_close(plain[0, 0], torch.full((32, 32), (0.75 - mean) / std))
    torch.testing.assert_close(released[0, 0], torch.full((32, 32), (0.875 - mean) / std))
    stripes = torch.ones(1, 3, 64, 64)
    stripes[..., ::2] = -1
    assert prepare_pixels(stripes, 32)[..., 4:-4].std(dim=-1).amax() < 0.1  # antialiasing averages the stripes
    red = prepare_pixels(stripes, 32, "released")[:, 0]  # nearest neighbour sees one colour only
    torch.testing.assert_close(red, torch.full((1, 32, 32), (0.5 - mean) / std))
    with pytest.raises(ValueError, match="clip_input"):
        prepare_pixels(images, 32, "none")


def test_one_logit_per_sample_for_any_grid():
    for grid in (1, 3, 4, 7, 8, 16):
        discriminator = RATLIPDiscriminator(**{**TOY_D, "clip_grid": grid})
        assert discriminator(torch.randn(3, 2, 32, grid, grid), torch.randn(3, 16)).logits.shape == (3,)


def test_gates_start_where_they_are_told():
    features, text = torch.randn(2, 2, 32, 4, 4), torch.randn(2, 16)
    torch.manual_seed(0)
    closed = RATLIPDiscriminator(**TOY_D)
    torch.manual_seed(0)
    opened = RATLIPDiscriminator(**TOY_D, gate_init=1.0)
    changed = torch.cat([features[:, :1], features[:, 1:] + 1], dim=1)
    assert torch.equal(closed(features, text).logits, closed(changed, text).logits)
    assert not torch.equal(opened(features, text).logits, opened(changed, text).logits)


def test_penalty_backward_twice_works_on_cpu():
    discriminator = RATLIPDiscriminator(**TOY_D, gate_init=1.0)
    features, text = torch.randn(2, 2, 32, 4, 4, requires_grad=True), torch.randn(2, 16, requires_grad=True)
    logits = discriminator(features, text).logits
    gradients = torch.autograd.grad(logits.sum(), [features, text], create_graph=True)
    sum(g.square().sum() for g in gradients).backward()
    assert discriminator.referee.conv1.weight.grad.abs().sum() > 0


def test_conditioning_is_the_identity_unless_asked_for():
    text, features = torch.randn(6, 16), torch.randn(6, 2, 32, 4, 4) * torch.tensor([1.0, 5.0])[:, None, None, None]
    assert torch.equal(TextConditioning(16)(text), text)
    assert torch.equal(FeatureScale(2)(features), features)
    assert not list(RATLIPDiscriminator(**TOY_D).buffers())

    conditioning = TextConditioning(16, center=True, norm=8.0)
    conditioning.fit(text)
    torch.testing.assert_close(conditioning(3 * text).norm(dim=1), torch.full((6,), 8.0))
    torch.testing.assert_close(conditioning.mean, nn.functional.normalize(text, dim=1).mean(0))
    scale = FeatureScale(2, enabled=True)
    scale.fit(features)
    torch.testing.assert_close(scale(features).std(dim=(0, 2, 3, 4)), torch.ones(2))


@pytest.mark.parametrize("image_conv", ["plain", "bn_act_sa"])
def test_gradient_checkpointing_changes_nothing_but_memory(encoder, image_conv):
    plain = shake(RATLIPGenerator(**TOY, image_conv=image_conv)).train()
    saving = RATLIPGenerator(**TOY, image_conv=image_conv).train()
    saving.load_state_dict(plain.state_dict())
    saving.enable_gradient_checkpointing()
    for generator in (plain, saving):
        generator(*inputs(3), encoder).sample.square().mean().backward()
    for (name, one), two in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=name)
    for (name, one), two in zip(plain.named_buffers(), saving.buffers(), strict=True):
        torch.testing.assert_close(one, two, msg=name)


def resized_first(block, x, states):
    """The definition of an image block: resize, then everything else."""
    x = nn.functional.interpolate(x, size=(block.size, block.size), mode=block.upsampling)
    residual = block.conv1(block.fuse1(x, states[:2]))
    return block.shortcut(x) + block.conv2(block.fuse2(residual, states[2:]))


@pytest.mark.parametrize(
    ("size", "form"),
    [
        *((size, form) for size in (32, 64) for form in ("plain", "bn_act", "bn_act_sa")),
        (224, "bn_act_sa"),
        *(pytest.param(224, form, marks=pytest.mark.slow) for form in ("plain", "bn_act")),
    ],
)
def test_late_resizing_changes_no_image_gradient_or_statistic(encoder, size, form):
    """In float64, with and without checkpointing, against image blocks that resize first."""
    encoder, (noise, text) = copy.deepcopy(encoder).double(), (value.double() for value in inputs(2))
    options = {**TOY, "sample_size": size, "image_conv": form, "base_channels": 4, "attention_groups": 1}
    late = nn.Module.to(shake(RATLIPGenerator(**options)).train(), torch.float64)
    first, checkpointing = copy.deepcopy(late), copy.deepcopy(late)
    for block in first.blocks:
        block.forward = functools.partial(resized_first, block)
    checkpointing.enable_gradient_checkpointing()
    expected = first(noise, text, encoder).sample
    expected.square().mean().backward()
    for generator in (late, checkpointing):
        sample = generator(noise, text, encoder).sample
        torch.testing.assert_close(sample, expected, rtol=1e-10, atol=1e-10)
        sample.square().mean().backward()
        for (name, one), two in zip(generator.named_parameters(), first.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-8, atol=1e-10, msg=name)
        for (name, one), two in zip(generator.named_buffers(), first.buffers(), strict=True):
            torch.testing.assert_close(one, two, msg=name)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_nearest_blocks_work_on_the_small_map_and_recompute_half_a_block_at_a_time(encoder, mode):
    generator = RATLIPGenerator(**TOY, upsampling=mode).train()
    generator.enable_gradient_checkpointing()
    block, events = generator.blocks[-1], []
    for name in ("fuse1", "shortcut", "fuse2"):
        getattr(block, name).register_forward_hook(
            lambda _, given, out, name=name: events.append((name, out.shape[-1]))
        )
    generator(*inputs(3), encoder).sample.sum().backward()
    side = generator.blocks[-2].size if mode == "nearest" else block.size
    first, second = [("fuse1", side)], sorted([("shortcut", side), ("fuse2", block.size)], reverse=True)
    halves = [second, first] if mode == "nearest" else [first, second]  # the backward pass starts at the end
    assert events == [*first, *second, *halves[0], *halves[1]]


@pytest.mark.parametrize(("kind", "options"), [(RATLIPGenerator, TOY), (RATLIPDiscriminator, TOY_D)])
def test_saving_and_loading_is_exact_and_strict(kind, options, tmp_path):
    model = shake(kind(**options))
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    with pytest.raises(ValueError, match="string"):
        kind.from_pretrained(tmp_path, dtype="float16")

    from safetensors.torch import load_file, save_file

    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    lost = sorted(weights)[0]
    save_file({name: value for name, value in weights.items() if name != lost}, file, {"format": "pt"})
    for low_memory in (True, False):
        with pytest.raises(ValueError, match=lost):
            kind.from_pretrained(tmp_path, low_cpu_mem_usage=low_memory)


def test_presets_and_their_overrides():
    assert RATLIPGenerator.from_preset("tiny", lstm_hidden=8).config.lstm_hidden == 8
    assert RATLIPDiscriminator.from_preset("tiny", gate_init=0).extractor.project.gamma.item() == 0
    with pytest.raises(ValueError, match="ratlip-released"):
        RATLIPGenerator.from_preset("biggan")
    with pytest.raises(ValueError, match="no option 'lstm_size'"):
        RATLIPGenerator.from_preset("tiny", lstm_size=8)


# Table II of the paper, in units of 2^20: h -> (generator with its CLIP tower, total with the discriminator).
TABLE_II = {
    4: (132.09, 161.47),
    8: (132.27, 161.65),
    16: (132.57, 161.95),
    32: (133.25, 162.63),
    64: (134.68, 164.06),
    128: (137.93, 167.31),
}


def test_parameter_counts_of_table_ii():
    def count(*modules):
        return sum(parameter.numel() for module in modules for parameter in module.parameters()) / 2**20

    with torch.device("meta"):
        vision = CLIPVisionModelWithProjection(CLIPVisionConfig()).vision_model
        clip = count(vision.embeddings, vision.pre_layrnorm, vision.encoder)
        head = count(RATLIPDiscriminator.from_preset("ratlip-released"))
        for hidden, (generator, total) in TABLE_II.items():
            ours = clip + count(RATLIPGenerator.from_preset("ratlip-released", lstm_hidden=hidden))
            assert abs(ours - generator) < 0.02, (hidden, ours)
            assert abs(ours + head - total) < 0.02, (hidden, ours + head)
