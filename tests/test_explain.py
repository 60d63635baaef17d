"""Explanations as functions on tensors: small networks whose right explanation is known, and tiny random ones."""

from functools import partial

import pytest
import torch
from torch import nn

from generating import NOISE_DIM, OTHER, PROMPT, seeded
from ratlip_hf import RATLIPDiscriminator, explain
from ratlip_hf.clip import FrozenCLIP
from ratlip_hf.explain import figures
from ratlip_hf.explain.saliency import grad_cam
from training_toys import DISCRIMINATOR

CORNER = (slice(4, 12), slice(20, 28))  # where the toy score looks


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=seeded()) * 2 - 1


class Toy(nn.Module):
    """A convolution, and as score the sums of its map in one corner and in the opposite one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU())
        self.window = torch.zeros(16, 16)
        self.window[2:6, 10:14] = 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.conv(images)
        return torch.stack([(maps * window).sum(dim=(1, 2, 3)) for window in (self.window, self.window.T)], dim=1)


@pytest.fixture
def embedder(pipe) -> FrozenCLIP:
    return FrozenCLIP.of(pipe)


class TestSaliency:
    @pytest.mark.parametrize("method", [explain.gradient_x_input, explain.occlusion])
    def test_maps_are_where_the_score_looks(self, method, images):
        maps = method(Toy(), images)
        assert maps.shape == (2, 2, 32, 32)
        mask = torch.zeros(32, 32)
        mask[CORNER] = 1
        assert explain.energy_inside(maps[:, 0], mask.expand(2, 32, 32)).min() > 0.3  # chance: 0.06
        assert explain.energy_inside(maps[:, 1], mask.T.expand(2, 32, 32)).min() > 0.3

    def test_grad_cam_is_its_definition(self, images):
        toy = Toy()
        maps = explain.grad_cam(toy, images, toy.conv)
        values = toy.conv(images)
        weights = toy.window.mean() * torch.ones(6)  # the gradient is the window, for every channel
        by_hand = (weights[:, None, None] * values).sum(1).relu()
        small = nn.functional.interpolate(maps[:, :1], (16, 16), mode="area")[:, 0]
        assert torch.corrcoef(torch.stack([small.flatten(), by_hand.flatten()]))[0, 1] > 0.95

    def test_grad_cam_agrees_with_captum(self, images):
        attribution = pytest.importorskip("captum.attr")
        toy = Toy()
        theirs = attribution.LayerGradCam(toy, toy.conv).attribute(images, target=1, relu_attributions=True)
        ours = grad_cam(toy, images, toy.conv)[:, 1]
        resized = nn.functional.interpolate(theirs, (32, 32), mode="bicubic", align_corners=False)[:, 0].relu()
        assert torch.allclose(ours, resized.detach(), atol=1e-6)

    def test_a_layer_of_a_vit_before_its_last_attention(self, embedder, images):
        score = explain.similarity(embedder, [PROMPT, OTHER])
        layers = embedder.image_encoder.vision_model.encoder.layers
        assert explain.grad_cam(score, images, layers[-1].layer_norm1).abs().max() > 0
        assert explain.grad_cam(score, images, layers[-1]).max() == 0  # patch tokens behind it have no gradient

    def test_attention_x_gradient_of_similarity_and_logit(self, embedder, images):
        tower = embedder.image_encoder
        torch.manual_seed(0)
        discriminator = RATLIPDiscriminator(**DISCRIMINATOR).eval()
        text = embedder.encode([PROMPT])
        for score in (explain.similarity(embedder, [PROMPT]), explain.discriminator_logit(discriminator, tower, text)):
            before = score(images)
            maps = explain.attention_x_gradient(score, images, tower)
            assert maps.shape == (2, 1, 32, 32) and maps.min() >= 0 and maps.max() > 0
            assert torch.equal(score(images), before)  # the tower is left as it was
            alone = explain.attention_x_gradient(score, images[1:], tower)
            assert torch.allclose(alone[0], maps[1], rtol=1e-3, atol=1e-6)
        with pytest.raises(ValueError, match="reads nothing of the image tower"):
            explain.attention_x_gradient(lambda x: 0 * tower(x).image_embeds.detach() + x.mean(), images, tower)

    def test_a_contrast_is_a_difference(self, embedder, images):
        score = explain.similarity(embedder, [PROMPT, OTHER, "a bird"])
        columns = score(images)
        found = explain.contrast(score, [(0, 1, 2), (2, 0)])(images)
        assert torch.allclose(found[:, 0], columns[:, 0] - columns[:, 1:].mean(1))
        assert torch.allclose(found[:, 1], columns[:, 2] - columns[:, 0])

    def test_a_layer_that_is_never_called_is_refused(self, images):
        with pytest.raises(ValueError, match="0 calls"):
            explain.grad_cam(Toy(), images, nn.Identity())


class TestTruth:
    def test_pointing_and_energy(self):
        masks = torch.zeros(2, 8, 8)
        masks[:, 2:4, 2:4] = 1
        maps = torch.zeros(2, 8, 8)
        maps[0, 3, 3], maps[0, 7, 7], maps[0, 0, 0] = 3, 1, -5
        assert explain.pointing_hits(maps, masks).tolist() == [1, 0]  # a flat map points nowhere
        assert explain.energy_inside(maps, masks).tolist() == [0.75, 0]


class TestInsides:
    def test_words_left_out(self, embedder, images):
        words = explain.word_importance(partial(explain.similarity, embedder), images, "a red bird")
        assert [word for word, _ in words] == ["a", "red", "bird"]
        scores = explain.similarity(embedder, ["a red bird", "a bird"])(images).mean(0)
        assert words[1][1] == pytest.approx(float(scores[0] - scores[1]), abs=1e-6)

    def test_the_trace_is_what_the_generator_computes(self, pipe):
        z = torch.randn(2, NOISE_DIM, generator=seeded())
        text = pipe.encode_prompt([PROMPT, OTHER])[0].detach()
        trace = explain.trace_states(pipe.generator, z, text)
        states = torch.stack(pipe.generator.states(z, pipe.generator.text_conditioning(text)), dim=1)
        assert torch.equal(trace.hidden, states)
        assert torch.allclose(trace.output * trace.cell.tanh(), states, atol=1e-6)  # Eq. 6
        previous = torch.cat([pipe.generator.states.initial_cell(z)[:, None], trace.cell[:, :-1]], dim=1)
        assert torch.allclose(trace.forget * previous + trace.written, trace.cell, atol=1e-6)  # Eq. 5

    def test_word_traces_see_the_text_alone(self, pipe):
        z, text = torch.randn(1, NOISE_DIM), pipe.encode_prompt([PROMPT, OTHER])[0].detach()
        moved = explain.word_traces(pipe.generator, z, text[:1], torch.cat([text[:1], text[1:]]))
        assert moved.shape == (2, 8)
        assert moved[0].max() < 1e-6 and moved[1].min() > 0

    def test_other_recurrences_are_refused(self, make_generator):
        for options in ({"recurrence": "per_layer"}, {"fusion": "cat"}):
            with pytest.raises(ValueError, match="across_layers"):
                explain.trace_states(make_generator(**options), torch.randn(1, NOISE_DIM), torch.randn(1, 16))

    def test_attention_gates(self, pipe):
        z, text = torch.randn(2, NOISE_DIM, generator=seeded()), pipe.encode_prompt([PROMPT, OTHER])[0].detach()
        gates = explain.attention_gates(pipe.generator, pipe.image_encoder, z, text)
        assert [each.name for each in gates][:2] == ["bridge.0.conv2.attention", "bridge.1.conv2.attention"]
        for each in gates:
            assert each.channels.shape[0] == each.places.shape[0] == 2
            assert 0 < each.channels.min() < each.channels.max() < 1
            assert 0 < each.places.min() < each.places.max() < 1

    def test_nearest(self):
        bank = torch.eye(4)
        distances, places = explain.nearest(torch.tensor([[0.1, 5.0, 0, 0]]), bank, 2)
        assert places.tolist() == [[1, 0]] and distances[0, 0] < 0.01 < distances[0, 1]


class TestAngles:
    def test_a_word_that_always_does_the_same_has_one_direction(self):
        before = torch.randn(50, 64, generator=seeded())
        way, noise = torch.randn(64, generator=seeded(1)), torch.randn(3, 50, 64, generator=seeded(2))
        found = explain.edit_angles(before, before + way, list(before + noise))
        assert found["direction"] < 1e-3
        assert 80 < found["direction_swap"] < 100 and 80 < found["seeds"] < 100

    def test_centring_takes_away_what_all_share(self):
        before = torch.randn(50, 64, generator=seeded()) + 20
        after = before + torch.randn(50, 64, generator=seeded(1))
        raw = explain.edit_angles(before, after, [after])
        centred = explain.edit_angles(before, after, [after], centre=before.mean(0))
        assert raw["seeds"] < 10 < 80 < centred["seeds"]
        assert raw["edit"] < 10 < centred["edit"]
        assert raw["direction"] == pytest.approx(centred["direction"], abs=1e-3)

    def test_swaps_replace_one_word(self):
        for swap in explain.random_swaps("a red bird", ["blue", "green"], 6):
            pairs = list(zip(swap.split(), ["a", "red", "bird"], strict=True))
            assert sum(one != other for one, other in pairs) == 1


def test_figures_have_the_size_of_their_content(pipe, images):
    trace = explain.trace_states(pipe.generator, torch.randn(1, NOISE_DIM), pipe.encode_prompt(PROMPT)[0].detach())
    maps = {"one": torch.rand(2, 32, 32), "two": torch.zeros(2, 32, 32)}
    pictures = [
        figures.saliency_figure(images, maps, ["a", "b"]),
        figures.words_figure([("a", 0.1), ("red", -0.2)]),
        figures.states_figure(trace),
        figures.gates_figure(explain.attention_gates(
            pipe.generator, pipe.image_encoder, torch.randn(1, NOISE_DIM), pipe.encode_prompt(PROMPT)[0].detach()
        )),
        figures.neighbours_figure([figures.as_pil(images[0])], [[figures.as_pil(images[1])]], torch.rand(1, 1)),
    ]  # fmt: skip
    assert all(len(picture.getcolors(10**6)) > 3 for picture in pictures)
    assert pictures[0].size[1] > 3 * 128
    assert figures.heat(torch.tensor([[0.0, 1.0]])).getpixel((1, 0)) == (220, 0, 0)
