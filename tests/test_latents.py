"""Ways between samples, edits with held noise, style mixing and inversion, on tiny random networks."""

import pytest
import torch

from generating import NOISE_DIM, OTHER, PROMPT, TEXT_DIM, close, generate, seeded
from ratlip_hf import latents
from ratlip_hf.clip import FrozenCLIP
from ratlip_hf.inversion import edit, fit, image_distance, invert


@pytest.fixture
def ends() -> torch.Tensor:
    return torch.randn(2, 3, 8, generator=seeded())


class TestWays:
    def test_spherical_ends_and_lengths(self, ends):
        start, end = ends[0], 3 * ends[1]
        assert torch.allclose(latents.slerp(start, end, 0.0), start, atol=1e-5)
        assert torch.allclose(latents.slerp(start, end, 1.0), end, atol=1e-5)
        middle = latents.slerp(start, end, 0.5)
        assert torch.allclose(middle.norm(dim=1), (start.norm(dim=1) + end.norm(dim=1)) / 2, atol=1e-5)

    def test_spherical_angles_are_even(self):
        start, end = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        assert torch.allclose(latents.slerp(start, end, 1 / 3)[0], torch.tensor([0.75**0.5, 0.5]))

    def test_parallel_and_opposite_vectors(self, ends):
        same = latents.slerp(ends[0], 2 * ends[0], 0.5)
        assert torch.allclose(same, 1.5 * ends[0], atol=1e-4)
        for wrong in (-ends[0], 0 * ends[0]):
            with pytest.raises(ValueError):
                latents.slerp(ends[0], wrong, 0.5)

    def test_a_way_passes_through_its_points(self, ends):
        points = torch.cat([ends[0], ends[1]])[:5]
        assert torch.allclose(latents.path(points, torch.linspace(0, 1, 5)), points, atol=1e-5)
        assert torch.allclose(latents.path(points, torch.tensor([0.125]), latents.lerp)[0], points[:2].mean(0))
        with pytest.raises(ValueError):
            latents.path(points, torch.tensor([1.5]))

    def test_blends_are_weighted_means(self, ends):
        assert torch.allclose(latents.blend(ends[0], [1, 1, 2]), ends[0].T @ torch.tensor([0.25, 0.25, 0.5]))
        for wrong in ([1, 2], [1, -1, 0]):
            with pytest.raises(ValueError):
                latents.blend(ends[0], wrong)

    def test_even_shares_even_out_uneven_steps(self):
        def lengths_at(shares):  # nearly all happens near the end
            return (shares**6)[1:] - (shares**6)[:-1]

        shares = latents.even_shares(lengths_at, 9)
        lengths = lengths_at(shares)
        assert (shares[0], shares[-1]) == (0, 1) and len(shares) == 9
        assert lengths.max() / lengths.min() < 1.3
        uneven = lengths_at(torch.linspace(0, 1, 9))
        assert uneven.max() / uneven.min() > 100


class TestEdits:
    def test_the_noise_is_held(self, pipe):
        edited = pipe.edit(PROMPT, OTHER, seeded(), keep_steps=0, output_type="np").images
        assert close(edited[:1], generate(pipe))
        assert close(edited[1:], generate(pipe, prompt=OTHER))

    def test_keeping_brings_the_image_closer_to_the_one_before(self, pipe):
        edits = [pipe.edit(PROMPT, OTHER, seeded(), keep_steps=steps, output_type="pt").images for steps in (0, 8)]
        assert torch.equal(edits[0][0], edits[1][0])
        before, plain, kept = edits[0][:1], edits[0][1:], edits[1][1:]
        assert image_distance(kept, before) < image_distance(plain, before)
        assert all(parameter.grad is None for parameter in pipe.generator.parameters())

    def test_half_precision(self, pipe):
        edited = pipe.to(torch.bfloat16).edit(PROMPT, OTHER, seeded(), keep_steps=1, output_type="np").images
        assert edited.shape == (2, 32, 32, 3)

    def test_lists_of_different_lengths_are_refused(self, pipe):
        with pytest.raises(ValueError, match="2 prompts"):
            pipe.edit([PROMPT, PROMPT], [OTHER])


class TestMixing:
    def test_equal_styles_change_nothing(self, pipe):
        z = torch.randn(1, NOISE_DIM, generator=seeded())
        (text,) = pipe.encode_prompt(PROMPT)
        same = generate(pipe, latents=z, style_latents=z, style_prompt_embeds=text)
        assert close(same, generate(pipe, latents=z))

    def test_bridge_and_image_generator_read_their_own(self, pipe):
        z, other = torch.randn(2, 1, NOISE_DIM, generator=seeded())
        text, style = pipe.encode_prompt([PROMPT, OTHER])[0].detach().split(1)
        plain = [generate(pipe, prompt_embeds=t, latents=n) for t, n in ((text, z), (style, other))]
        mixed = generate(pipe, prompt_embeds=text, latents=z, style_prompt_embeds=style, style_latents=other)
        assert not any(close(mixed, image, atol=1e-3) for image in plain)
        # Blocks that see nothing but style: with a bridge of the other, the image is the other's.
        swapped = generate(pipe, prompt_embeds=style, latents=other, style_prompt_embeds=text, style_latents=z)
        assert not close(mixed, swapped, atol=1e-3)

    def test_the_fast_path_mixes_too(self, pipe):
        options = {"num_images_per_prompt": 2, "style_latents": torch.randn(2, NOISE_DIM, generator=seeded(1))}
        plain = generate(pipe, **options)
        assert close(generate(pipe.optimize(), **options), plain)

    def test_styles_that_do_not_fit_are_refused(self, pipe):
        with pytest.raises(ValueError, match="style_prompt_embeds"):
            generate(pipe, style_prompt_embeds=torch.randn(2, TEXT_DIM))
        with pytest.raises(ValueError, match="latents must be"):
            generate(pipe, style_latents=torch.randn(1, 3))


def test_truncation_trades_variety(pipe):
    rows = latents.truncation_curve(pipe, FrozenCLIP.of(pipe), [PROMPT, OTHER], [0.05, None], per_prompt=3)
    assert [row["truncation"] for row in rows] == [0.05, None]
    assert 0 <= rows[0]["spread"] < rows[1]["spread"]
    assert all(-1 <= row["similarity"] <= 1 for row in rows)


class TestInversion:
    def test_noise_of_a_generated_image_comes_nearer(self, pipe):
        (text,) = pipe.encode_prompt(PROMPT)
        target = 2 * pipe(PROMPT, generator=seeded(5), output_type="pt").images - 1
        networks = pipe.generator, pipe.image_encoder
        start = invert(*networks, target, text, steps=0, candidates=2)
        found = invert(*networks, target, text, steps=15, candidates=2)
        assert found.distance < 0.9 * start.distance
        again = pipe(prompt_embeds=found.prompt_embeds, latents=found.noise, output_type="pt").images
        assert torch.allclose(2 * again - 1, found.images, atol=1e-4)
        held = fit(*networks, target, text, start.noise, 2)
        assert torch.equal(held.prompt_embeds, text)
        assert not torch.equal(found.prompt_embeds, text)

    def test_other_words_for_what_was_found(self, pipe):
        text = pipe.encode_prompt([PROMPT, OTHER])[0].detach()
        target = 2 * pipe(PROMPT, generator=seeded(5), output_type="pt").images - 1
        found = invert(pipe.generator, pipe.image_encoder, target, text[:1], steps=1, candidates=2)
        plain, kept = (edit(pipe.generator, pipe.image_encoder, found, text[1:] - text[:1], steps) for steps in (0, 6))
        assert torch.equal(plain.noise, found.noise)
        assert torch.allclose(plain.prompt_embeds, found.prompt_embeds + text[1:] - text[:1])
        assert image_distance(kept.images, found.images) < image_distance(plain.images, found.images)

    def test_more_draws_start_nearer(self, pipe):
        (text,) = pipe.encode_prompt(PROMPT)
        target = 2 * pipe(PROMPT, generator=seeded(5), output_type="pt").images - 1
        few, many = (invert(pipe.generator, pipe.image_encoder, target, text, steps=0, candidates=n) for n in (1, 12))
        assert many.distance < few.distance

    def test_images_of_another_size_are_refused(self, pipe):
        with pytest.raises(ValueError, match="images must be"):
            invert(pipe.generator, pipe.image_encoder, torch.zeros(1, 3, 16, 16), torch.zeros(1, TEXT_DIM))
