"""The fast path against its definition, the plain forward: every form, fusion, size and resize, in float64.
There the rewrites are exact; float32 and bfloat16 are held to what users are promised."""

import pytest
import torch
import torch.nn.functional as F

from ratlip_hf import RATLIPGenerator
from ratlip_hf.fast import layers
from ratlip_hf.fast.networks import FastGenerator
from ratlip_hf.fast.session import TextCache
from ratlip_hf.fast.upsampling import Doubling, Periodic, Resizing, upsampled_convolution
from ratlip_hf.models.blocks import Affine, BridgeBlock, FusionUnit
from test_models import TOY, inputs, shake, tower

CONV_FORMS = ("plain", "bn_act", "bn_act_sa")
FUSIONS = [{"fusion": "cat"}, {}, {"recurrence": "per_layer"}, {"recurrence": "batch_as_time"}]


def plain_and_fast(
    dtype: torch.dtype = torch.float64,
    compute: torch.dtype | None = None,
    hidden_act: str = "quick_gelu",
    count: int = 3,
    **options,
):
    """The same images from both; a tower of three layers that fits the options."""
    options = {**TOY, **options}
    generator = shake(RATLIPGenerator(**options)).eval()
    encoder = shake(tower(image_size=8 * options["clip_grid"], hidden_act=hidden_act), seed=1)
    for module in (generator, encoder):  # nn.Module's own: diffusers would warn
        torch.nn.Module.to(module, dtype)
    noise, text = (value.to(dtype) for value in inputs(count))
    with torch.no_grad():
        fast = FastGenerator(generator, encoder, compute or dtype)
        return generator(noise, text, encoder).sample, fast(noise, text)


def error(plain: torch.Tensor, fast: torch.Tensor) -> float:
    """Largest difference relative to the images' range."""
    assert plain.shape == fast.shape
    return ((plain - fast).abs().max() / (plain.max() - plain.min())).item()


@pytest.mark.filterwarnings("ignore:recurrence='batch_as_time'")
@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
@pytest.mark.parametrize("form", CONV_FORMS)
def test_every_form_and_fusion_is_exact(form, fusion, upsampling):
    options = {"bridge_conv": form, "image_conv": form, "upsampling": upsampling}
    assert error(*plain_and_fast(**options, **fusion)) < 1e-12


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
@pytest.mark.parametrize("grid", [4, 7, 8])
@pytest.mark.parametrize("size", [32, 64, 128, 224, 256])
def test_every_size_is_exact(size, grid, upsampling):
    options = {"sample_size": size, "clip_grid": grid, "upsampling": upsampling}
    assert error(*plain_and_fast(count=2, **options, base_channels=4, attention_groups=1)) < 1e-12


@pytest.mark.parametrize(("size", "grid"), [(32, 1), (32, 2), (64, 3), (32, 12), (32, 24), (224, 16), (32, 32)])
def test_unusual_grids_are_exact(size, grid):
    options = {"sample_size": size, "clip_grid": grid, "base_channels": 4, "attention_groups": 1}
    assert error(*plain_and_fast(**options)) < 1e-12


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new"])
def test_towers_with_another_activation_are_exact(hidden_act):
    """As in CLIPs that were not trained by OpenAI."""
    assert error(*plain_and_fast(hidden_act=hidden_act)) < 1e-12


@pytest.mark.filterwarnings("ignore:recurrence='batch_as_time'")
@pytest.mark.parametrize("preset", ["ratlip", "ratlip-released", "galip", "tiny"])
def test_presets_keep_their_promises_in_float32_and_bfloat16(preset):
    sizes = {name: TOY[name] for name in ("noise_dim", "text_dim", "clip_width", "clip_grid", "prompt_layers")}
    values = {**RATLIPGenerator.from_preset(preset, **sizes, sample_size=64, base_channels=16).config, **sizes}
    options = {name: value for name, value in values.items() if not name.startswith("_")}
    plain, fast = plain_and_fast(torch.float32, **options)
    assert fast.dtype == torch.float32
    assert error(plain, fast) < 1e-5
    plain, fast = plain_and_fast(torch.float32, torch.bfloat16, **options)
    assert fast.dtype == torch.bfloat16
    mean_square = (plain - fast.float()).square().mean() / (plain.max() - plain.min()).square()
    assert -10 * mean_square.log10() > 35


def test_without_onednn_the_images_are_the_same():
    with torch.backends.mkldnn.flags(enabled=False):
        assert error(*plain_and_fast(torch.float32, sample_size=224, base_channels=4, attention_groups=1)) < 1e-5


@pytest.mark.parametrize(
    ("size_in", "size_out", "kind"),
    [
        *((small, large, Doubling) for small, large in ((4, 8), (5, 10))),
        *((small, large, Periodic) for small, large in ((8, 14), (8, 12), (6, 8))),
        *((small, large, Resizing) for small, large in ((10, 12), (7, 8), (3, 8), (1, 8), (2, 8), (8, 8))),
    ],
)
@pytest.mark.parametrize("slope", [None, 0.01])
def test_upsampled_convolution_is_resize_then_convolution(size_in, size_out, kind, slope):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, size_in, size_in, generator=rng, dtype=torch.float64)
    weight = torch.randn(5, 3, 3, 3, generator=rng, dtype=torch.float64)
    bias = torch.randn(5, generator=rng, dtype=torch.float64)
    fast = upsampled_convolution(weight, bias, slope, size_in, size_out, torch.float64)
    assert type(fast) is kind
    expected = F.conv2d(F.interpolate(x, size=size_out, mode="nearest"), weight, bias, padding=1)
    expected = expected if slope is None else F.leaky_relu(expected, slope)
    torch.testing.assert_close(fast(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2), expected)


def test_text_cache_encodes_new_prompts_once_and_forgets_what_was_not_used_for_longest():
    asked = []

    def encode(prompts):
        asked.append(list(prompts))
        return torch.tensor([[float(len(prompt))] for prompt in prompts])

    cache = TextCache(capacity=2)
    assert cache(["a", "bb", "a"], encode).flatten().tolist() == [1, 2, 1]
    assert cache(["bb", "ccc"], encode).flatten().tolist() == [2, 3]
    assert cache(["a"], encode).flatten().tolist() == [1]
    assert cache(["ccc"], encode).flatten().tolist() == [3]
    assert cache(["dddd"], encode).flatten().tolist() == [4]
    assert cache(["ccc"], encode).flatten().tolist() == [3]
    assert asked == [["a", "bb"], ["ccc"], ["a"], ["dddd"]]


def test_the_tower_keeps_one_set_of_weights_in_the_dtype_that_they_have():
    """A second one would be most of what a batch takes in memory."""
    generator, encoder = RATLIPGenerator(**TOY).eval(), tower()
    for dtype, shared in ((torch.float32, True), (torch.bfloat16, False)):
        fast = FastGenerator(generator, encoder, dtype)
        for layer, plain in zip(fast.tower.layers, encoder.vision_model.encoder.layers, strict=True):
            linears = [*layer.qkv, layer.out, layer.fc1, layer.fc2]
            attention, mlp = plain.self_attn, plain.mlp
            sources = [attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, mlp.fc1, mlp.fc2]
            known = {source.weight.data_ptr() for source in sources}
            assert all(linear.weight.dtype == dtype for linear in linears)
            assert len(linears) == (6 if shared else 4)
            assert not shared or {linear.weight.data_ptr() for linear in linears} == known


class OtherUnit(FusionUnit):
    """The same parameters with another computation."""


class OtherBlock(BridgeBlock):
    pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: setattr(g.blocks[0], "fuse1", OtherUnit(16, 28)), r"blocks\.0\.fuse1, OtherUnit"),
        (lambda g: g.bridge.append(OtherBlock(8, 6, "plain", 1)), "bridge, ModuleList of BridgeBlock of OtherBlock"),
        (lambda g: g.blocks[0].fuse1.affines.append(Affine(16, 28)), r"blocks\.0\.fuse1\.affines"),
        (
            lambda g: setattr(g.blocks[0].conv1, "conv", torch.nn.Conv2d(16, 16, 5, padding=2)),
            r"conv1\.conv, Conv2d of 5",
        ),
        (lambda g: setattr(g.blocks[0].conv1.conv, "padding_mode", "reflect"), "unusual"),
        (lambda g: setattr(g.blocks[0].conv1, "norm", torch.nn.InstanceNorm2d(16)), "norm, InstanceNorm2d"),
        (lambda g: g.blocks[0].add_module("gate", torch.nn.Linear(1, 1)), r"blocks\.0\.gate"),
        (lambda g: g.add_module("head", torch.nn.Linear(1, 1)), "head, Linear"),
        (lambda g: g.blocks[0].fuse1.affines[0].gamma.append(torch.nn.Tanh()), "gamma, Sequential"),
        (lambda g: setattr(g.blocks[0], "upsampling", "bicubic"), "upsampling='bicubic'"),
        (lambda g: g.blocks[0].fuse1.register_parameter("scale", torch.nn.Parameter(torch.ones(1))), "tensor 'scale'"),
        (lambda g: setattr(g.blocks[0].conv2, "attention", None), "blocks, whose convolutions have several forms"),
        (lambda g: setattr(g.bridge[1].conv2, "attention", None), "bridge, whose convolutions have several forms"),
        (
            lambda g: setattr(g.bridge[0].conv1, "norm", torch.nn.BatchNorm2d(4)),
            r"bridge\.0\.conv1, which is not plain",
        ),
        (lambda g: g.blocks[0].conv2.attention.add_module("gate", torch.nn.Linear(1, 1)), r"attention\.gate, Linear"),
    ],
)
def test_a_part_without_a_fast_form_is_refused(change, message):
    generator = RATLIPGenerator(**TOY).eval()
    change(generator)
    with pytest.raises(ValueError, match=f"optimize.* has no fast form for .*{message}"):
        FastGenerator(generator, tower(), torch.float32)


@pytest.fixture
def asked_again():
    layers._packed_operators_work.cache_clear()
    yield
    layers._packed_operators_work.cache_clear()


def _refuse(*_):
    raise RuntimeError("called in another way")


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("_reorder_convolution_weight", _refuse),
        ("_linear_pointwise", lambda x, weight, bias, *_: 2 * F.linear(x, weight.to_dense(), bias)),
        ("_is_mkldnn_bf16_supported", lambda: False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_private_operators_the_images_are_the_same(name, instead, dtype, asked_again, monkeypatch):
    if name == "_is_mkldnn_bf16_supported" and dtype == torch.float32:
        pytest.skip("nobody asks it for float32")
    expected = plain_and_fast(torch.float32, dtype)[1]
    layers._packed_operators_work.cache_clear()
    monkeypatch.setattr(torch.ops.mkldnn, name, instead)
    assert not layers.packs(dtype)
    assert error(expected.float(), plain_and_fast(torch.float32, dtype)[1].float()) < (
        1e-5 if dtype == torch.float32 else 0.05
    )
    monkeypatch.setattr(layers, "_packed_linear", _refuse)  # the answer is kept: nothing is tried again
    assert not layers.packs(dtype)
