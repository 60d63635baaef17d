"""What users rely on in `pipe.optimize()`: the same images, the present weights, plain files, clear refusals.
That the rewrites themselves are right is in `test_fast`."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks import apply_group_offloading
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file

from generating import NETWORKS, OTHER, PROMPT, close, generate, needs_group_offloading, seeded
from ratlip_hf import RATLIPPipeline


@pytest.fixture
def optimized(pipe):
    return pipe.optimize()


@pytest.fixture
def calls(pipe) -> list[str]:
    """Grows whenever a plain network runs."""
    seen = []
    pipe.generator.register_forward_hook(lambda *_: seen.append("generator"))
    return seen


class TestImages:
    def test_are_the_same_and_the_switch_goes_both_ways(self, pipe):
        expected = generate(pipe)
        assert pipe.optimize() is pipe
        fast = generate(pipe)
        assert close(fast, expected) and not np.array_equal(fast, expected)
        assert pipe.optimize(False) is pipe
        assert np.array_equal(generate(pipe), expected)

    def test_many_at_once_and_batch_by_batch(self, pipe):
        expected = generate(pipe, prompt=[PROMPT, OTHER], num_images_per_prompt=3)
        pipe.optimize()
        assert close(generate(pipe, prompt=[PROMPT, OTHER], num_images_per_prompt=3), expected)
        assert close(generate(pipe, prompt=[PROMPT, OTHER], num_images_per_prompt=3, batch_size=2), expected)

    def test_bfloat16_on_request(self, pipe):
        expected = generate(pipe)
        pipe.optimize(dtype=torch.bfloat16)
        fast = generate(pipe)
        assert -10 * np.log10(np.square(fast - expected).mean()) > 35
        assert not close(fast, expected)
        assert pipe.generator.dtype == torch.float32

    def test_a_training_generator_generate_as_in_eval_mode_and_stays_in_training(self, pipe):
        expected = generate(pipe)
        pipe.generator.train()
        assert close(generate(pipe.optimize()), expected)
        assert pipe.generator.training

    def test_the_default_is_the_plain_path(self, pipe, calls):
        generate(pipe)
        assert calls == ["generator"]


class TestWeights:
    def test_changes_in_place_show(self, optimized):
        before = generate(optimized)
        with torch.no_grad():
            optimized.generator.to_rgb.bias[1:].add_(0.3)
        changed = generate(optimized)
        assert not close(changed, before, atol=1e-2)
        assert close(changed, generate(optimized.optimize(False)))

    def test_loaded_weights_statistics_and_another_tower_show(self, optimized, make_generator):
        for change in (
            lambda: optimized.generator.load_state_dict(make_generator(residual_scale=0.5).state_dict()),
            lambda: optimized.generator.blocks[0].conv1.norm.running_mean.add_(1),
            lambda: optimized.image_encoder.vision_model.pre_layrnorm.weight.mul_(3),
            lambda: setattr(optimized, "generator", make_generator(residual_scale=0.7)),
        ):
            with torch.no_grad():
                change()
            plain = RATLIPPipeline(**optimized.components)
            assert close(generate(optimized), generate(plain))

    def test_another_dtype_is_followed(self, optimized):
        expected = generate(optimized)
        optimized.to(torch.bfloat16)
        assert close(generate(optimized), expected, atol=0.1) and not close(generate(optimized), expected)
        assert optimized._fast.fast.dtype == torch.bfloat16

    def test_rounded_weights_in_the_place_of_the_old_ones_show(self, optimized):
        before = generate(optimized)
        optimized.to(torch.bfloat16).to(torch.float32)  # the allocator may well hand out the same memory again
        after = generate(optimized)
        assert not close(after, before) and close(after, generate(RATLIPPipeline(**optimized.components)))

    def test_averaged_weights_show(self, optimized, make_generator):
        """diffusers' EMA writes through `.data`, which torch does not count."""
        average = EMAModel(make_generator(residual_scale=0.1).to_rgb.parameters())
        average.shadow_params = [parameter + 0.5 for parameter in average.shadow_params]
        before, parameters = generate(optimized), list(optimized.generator.to_rgb.parameters())
        average.store(parameters)
        average.copy_to(parameters)
        assert close(generate(optimized), generate(RATLIPPipeline(**optimized.components)))
        assert not close(generate(optimized), before, atol=1e-2)
        average.restore(parameters)
        assert close(generate(optimized), before)

    def test_unchanged_weights_are_rewritten_once(self, optimized):
        first = optimized._fast.prepare(optimized.generator, optimized.image_encoder)
        generate(optimized)
        assert optimized._fast.prepare(optimized.generator, optimized.image_encoder) is first

    def test_files_hold_the_plain_weights(self, optimized, tmp_path):
        optimized.save_pretrained(tmp_path / "optimized")
        optimized.optimize(False).save_pretrained(tmp_path / "plain")
        files = sorted(path.relative_to(tmp_path / "plain") for path in (tmp_path / "plain").rglob("*.*"))
        assert files == sorted(p.relative_to(tmp_path / "optimized") for p in (tmp_path / "optimized").rglob("*.*"))
        for file in files:
            assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "optimized" / file).read_bytes()
        weights = load_file(tmp_path / "optimized/generator/diffusion_pytorch_model.safetensors")
        state = optimized.generator.state_dict()
        assert weights.keys() == state.keys() and all(torch.equal(weights[key], state[key]) for key in state)
        loaded = RATLIPPipeline.from_pretrained(tmp_path / "optimized")
        assert np.array_equal(generate(loaded), generate(optimized))

    def test_plain_networks_still_learn(self, optimized):
        generate(optimized)
        sample = optimized.generator(torch.randn(1, 100), torch.randn(1, 16), optimized.image_encoder).sample
        sample.sum().backward()
        assert optimized.generator.to_rgb.weight.grad is not None

    def test_copies_and_pickles_generate_on(self, optimized):
        expected = generate(optimized)
        assert close(generate(copy.deepcopy(optimized)), expected)
        assert pickle.loads(pickle.dumps(optimized._fast)).dtype is None


class TestFreedWeights:
    @pytest.fixture
    def freed(self, pipe):
        return copy.deepcopy(pipe).optimize(keep_plain=False)

    @pytest.mark.parametrize("dtype", [None, torch.float64])
    def test_images_are_the_same_and_the_plain_weights_are_gone(self, pipe, dtype):
        expected = generate(pipe)
        freed = copy.deepcopy(pipe).optimize(dtype=dtype, keep_plain=False)
        assert close(generate(freed), expected) and close(generate(freed), expected)
        weights = [*freed.generator.parameters(), *freed.image_encoder.parameters()]
        assert all(tensor.is_meta for tensor in weights)

    @pytest.mark.parametrize(
        ("use", "what"),
        [
            (lambda pipe, folder: pipe.save_pretrained(folder), "save_pretrained"),
            (lambda pipe, folder: pipe.optimize(False), "optimize"),
            (lambda pipe, folder: pipe.edit(PROMPT, OTHER), "edit"),
            (lambda pipe, folder: pipe(PROMPT, style_prompt_embeds=pipe.encode_prompt(OTHER)[0]), "style mixing"),
        ],
    )
    def test_what_needs_them_is_refused_and_leaves_the_rest_working(self, freed, use, what, tmp_path):
        expected = generate(freed)
        with pytest.raises(ValueError, match=rf"^{what}.* needs the plain weights, which .* load again$"):
            use(freed, tmp_path / "saved")
        assert np.array_equal(generate(freed), expected) and not (tmp_path / "saved").exists()

    def test_a_copy_has_none(self, freed):
        with pytest.raises(ValueError, match="were freed by optimize"):
            generate(copy.deepcopy(freed))

    def test_kept_ones_say_where_the_pipeline_is(self, optimized):
        optimized.image_encoder.to("meta"), optimized.text_encoder.to("meta"), optimized.generator.to("meta")
        assert optimized._execution_device == torch.device("meta")

    def test_edits_without_steps_need_none(self, pipe):
        expected = pipe.edit(PROMPT, OTHER, generator=seeded(), keep_steps=0, output_type="np").images
        freed = copy.deepcopy(pipe).optimize(keep_plain=False)
        assert close(freed.edit(PROMPT, OTHER, generator=seeded(), keep_steps=0, output_type="np").images, expected)


class TestThreads:
    def test_generate_as_one_would(self, optimized):
        """With the weights changed in between, so that all of them find the fast networks outdated at once."""
        expected = [generate(optimized, generator=seeded(seed)) for seed in range(4)]
        for _ in range(5):
            with torch.no_grad():
                optimized.generator.to_rgb.bias.add_(0)
            with ThreadPoolExecutor(4) as pool:
                generated = list(pool.map(lambda seed: generate(optimized, generator=seeded(seed)), range(4)))
            assert all(close(*pair) for pair in zip(generated, expected, strict=True))


class TestPrompts:
    @pytest.fixture
    def encoded(self, pipe) -> list[int]:
        seen = []
        pipe.text_encoder.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
        )
        return seen

    def test_are_encoded_once(self, optimized, encoded):
        expected = generate(optimized, prompt=[PROMPT, OTHER, PROMPT])
        assert np.array_equal(generate(optimized, prompt=[PROMPT, OTHER, PROMPT]), expected)
        assert encoded == [2]
        generate(optimized.optimize(False))
        generate(optimized)
        assert encoded == [2, 1, 1]

    @torch.no_grad()
    def test_are_encoded_again_by_a_changed_text_tower(self, optimized, encoded):
        before = optimized.encode_prompt(PROMPT)[0]
        optimized.text_encoder.text_projection.weight.mul_(2)
        torch.testing.assert_close(optimized.encode_prompt(PROMPT)[0], 2 * before)
        assert encoded == [1, 1]

    @torch.no_grad()
    def test_are_encoded_again_by_a_hooked_text_tower_or_another_tokenizer(self, optimized, encoded):
        before = optimized.encode_prompt(PROMPT)[0]
        handle = optimized.text_encoder.text_projection.register_forward_hook(lambda _, inputs, output: 3 * output)
        torch.testing.assert_close(optimized.encode_prompt(PROMPT)[0], 3 * before)
        handle.remove()
        torch.testing.assert_close(optimized.encode_prompt(PROMPT)[0], before)
        optimized.tokenizer = copy.deepcopy(optimized.tokenizer)
        optimized.encode_prompt(PROMPT)
        assert encoded == [1, 1, 1, 1]

    def test_can_be_learned_as_on_the_plain_path(self, optimized):
        optimized.text_encoder.requires_grad_(True)
        generate(optimized)
        optimized.encode_prompt(PROMPT)[0].sum().backward()
        assert optimized.text_encoder.text_projection.weight.grad is not None


class TestRefusals:
    def test_hooks_offloading_and_adapters(self, pipe):
        class Adapter(torch.nn.Linear):
            pass

        handle = pipe.generator.to_grid.register_forward_hook(lambda *_: None)
        with pytest.raises(ValueError, match="to_grid has hooks"):
            pipe.optimize()
        handle.remove()
        plain, pipe.generator.noise_proj = pipe.generator.noise_proj, Adapter(100, 8 * 16)
        with pytest.raises(ValueError, match=r"noise_proj is a .*Adapter: merge adapters"):
            pipe.optimize()
        pipe.generator.noise_proj = plain
        cpu_offload(pipe.image_encoder, execution_device="cpu")
        with pytest.raises(ValueError, match="offloaded"):
            pipe.optimize()

    def test_an_adapter_that_comes_later_is_not_passed_over(self, optimized):
        class Adapter(torch.nn.Linear):
            pass

        optimized.generator.noise_proj = Adapter(100, 8 * 16)
        with pytest.raises(ValueError, match="merge adapters"):
            generate(optimized)

    @needs_group_offloading
    @pytest.mark.parametrize("name", ["generator", "image_encoder"])
    @pytest.mark.parametrize("level", ["block_level", "leaf_level"])
    def test_group_offloading(self, pipe, name, level):
        blocks = {"num_blocks_per_group": 1} if level == "block_level" else {}
        apply_group_offloading(getattr(pipe, name), torch.device("cpu"), offload_type=level, **blocks)
        with pytest.raises(ValueError, match="offloaded"):
            pipe.optimize()

    def test_hooks_and_offloading_that_come_later_are_not_passed_over(self, optimized):
        expected = generate(optimized)
        handle = optimized.generator.to_rgb.register_forward_hook(lambda *_: None)
        with pytest.raises(ValueError, match="to_rgb has hooks"):
            generate(optimized)
        handle.remove()
        assert close(generate(optimized), expected)
        optimized.enable_model_cpu_offload(device="cpu")
        with pytest.raises(ValueError, match="offloaded"):
            generate(optimized)
        optimized.remove_all_hooks()
        assert close(generate(optimized), expected)

    def test_compiled_networks(self, pipe):
        pipe.generator = torch.compile(pipe.generator, backend="eager")
        with pytest.raises(ValueError, match=r"leave out torch\.compile"):
            pipe.optimize()

    @pytest.mark.parametrize("enabled", [torch.bfloat16, "bfloat16", None])
    def test_a_dtype_in_the_place_of_the_switch(self, pipe, enabled):
        with pytest.raises(TypeError, match="dtype="):
            pipe.optimize(enabled)

    @pytest.mark.parametrize("dtype", [torch.float16, "bfloat16"])
    def test_other_dtypes(self, pipe, dtype):
        with pytest.raises(ValueError, match="optimize\\(\\) computes in"):
            pipe.optimize(dtype=dtype)
        assert np.array_equal(generate(pipe), generate(RATLIPPipeline(**pipe.components)))

    def test_other_devices(self, pipe):
        pipe.generator.to("meta")
        with pytest.raises(ValueError, match="CPU"):
            pipe.optimize()

    @pytest.mark.parametrize("name", ["image_encoder", "generator"])
    def test_missing_networks(self, pipe, name):
        with pytest.raises(ValueError, match=name):
            RATLIPPipeline(**{**pipe.components, name: None}).optimize()

    def test_wrong_arguments_and_networks_as_on_the_plain_path(self, optimized, make_generator):
        with pytest.raises(ValueError, match="prompt_embeds must be"):
            generate(optimized, prompt_embeds=torch.ones(1, 3))
        assert set(NETWORKS) < set(optimized.components)
