"""What users of diffusers rely on in `RATLIPPipeline`: seeds, batches, outputs, errors, offloading.
All of it runs on random weights; the networks themselves are tested elsewhere."""

import ast
import contextlib
import copy
import inspect
import textwrap
import warnings

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module

from generating import NETWORKS, NOISE_DIM, OTHER, PROMPT, TEXT_DIM, TOO_LONG, close, dtypes, generate, seeded
from ratlip_hf import RATLIPPipeline
from ratlip_hf.latents import prepare_latents


class TestOutputs:
    def test_output_types_show_the_same_image(self, pipe):
        array, tensor, pil = (generate(pipe, output_type=kind) for kind in ("np", "pt", "pil"))
        assert array.shape == (1, 32, 32, 3)
        assert 0 <= array.min() < array.max() <= 1
        assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)
        assert (pil[0].mode, pil[0].size) == ("RGB", (32, 32))
        assert np.array_equal(np.asarray(pil[0]), (array[0] * 255).round().astype("uint8"))

    def test_images_are_pil_by_default(self, pipe):
        assert pipe(PROMPT).images[0].size == (32, 32)

    def test_tuple_holds_what_the_output_class_holds(self, pipe):
        as_tuple = pipe(PROMPT, generator=seeded(), output_type="np", return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert np.array_equal(as_tuple[0], generate(pipe))

    @pytest.mark.parametrize("prompts", [1, 2])
    @pytest.mark.parametrize("per_prompt", [1, 2])
    def test_number_of_images(self, pipe, prompts, per_prompt):
        assert len(generate(pipe, prompt=prompts * [PROMPT], num_images_per_prompt=per_prompt)) == prompts * per_prompt

    def test_prompt_and_seed_both_matter(self, pipe):
        assert not close(generate(pipe), generate(pipe, prompt=OTHER), atol=1e-2)
        assert not close(generate(pipe), generate(pipe, generator=seeded(1)), atol=1e-2)

    def test_optional_parameters_of_diffusers_are_there(self):
        parameters = set(inspect.signature(RATLIPPipeline.__call__).parameters)
        assert {"num_images_per_prompt", "generator", "latents", "output_type", "return_dict"} <= parameters


class TestSeeds:
    @pytest.mark.parametrize("count", [1, 3, 8])
    def test_one_seed_is_one_image_at_every_batch_size(self, pipe, count):
        together = generate(pipe, num_images_per_prompt=count, generator=[seeded(seed) for seed in range(count)])
        alone = [generate(pipe, generator=seeded(seed)) for seed in range(count)]
        assert close(together, np.concatenate(alone))

    @pytest.mark.parametrize("count", [3, 8])
    def test_images_take_turns_at_a_shared_generator(self, pipe, count):
        shared = seeded()
        alone = [generate(pipe, generator=shared) for _ in range(count)]
        assert close(generate(pipe, num_images_per_prompt=count), np.concatenate(alone))

    @pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 9])
    def test_images_do_not_depend_on_batch_size(self, pipe, batch_size):
        assert close(
            generate(pipe, num_images_per_prompt=5, batch_size=batch_size), generate(pipe, num_images_per_prompt=5)
        )

    @pytest.mark.parametrize(("batch_size", "passes"), [(None, [5]), (2, [2, 2, 1]), (8, [5])])
    def test_batch_size_bounds_the_forward_passes(self, pipe, batch_size, passes):
        seen = []
        pipe.generator.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
        generate(pipe, num_images_per_prompt=5, batch_size=batch_size)
        assert seen == passes

    def test_over_long_prompt_leaves_its_neighbours_alone(self, pipe):
        together = generate(pipe, prompt=[PROMPT, OTHER, TOO_LONG], generator=[seeded(seed) for seed in range(3)])
        assert close(together[:2], np.concatenate([generate(pipe), generate(pipe, prompt=OTHER, generator=seeded(1))]))

    def test_global_seed_makes_images_reproducible(self, pipe):
        images = []
        for _ in range(2):
            torch.manual_seed(3)
            images.append(generate(pipe, generator=None))
        assert np.array_equal(*images)
        assert close(images[0], generate(pipe, generator=seeded(3)))

    def test_noise_is_plain_normal_noise_of_the_seed(self, pipe):
        assert close(generate(pipe, latents=torch.randn(1, NOISE_DIM, generator=seeded())), generate(pipe))

    def test_latents_run_prompt_by_prompt(self, pipe):
        latents = prepare_latents(4, NOISE_DIM, seeded())
        together = generate(pipe, prompt=[PROMPT, OTHER], num_images_per_prompt=2, latents=latents)
        prompts = [PROMPT, PROMPT, OTHER, OTHER]
        alone = [generate(pipe, prompt=prompt, latents=z[None]) for prompt, z in zip(prompts, latents, strict=True)]
        assert close(together, np.concatenate(alone))


class TestTruncation:
    def test_generate_only_the_entries_outside_again(self):
        plain = prepare_latents(20, NOISE_DIM, [seeded(seed) for seed in range(20)])
        truncated = prepare_latents(20, NOISE_DIM, [seeded(seed) for seed in range(20)], truncation=0.7)
        inside = plain.abs() <= 0.7
        assert torch.equal(truncated[inside], plain[inside])
        resampled = truncated[~inside]
        assert resampled.abs().max() < 0.7, "entries outside are sampled again, not clamped"
        assert resampled.std() > 0.3

    def test_changes_the_image_unless_it_cuts_nothing(self, pipe):
        assert not close(generate(pipe, truncation=0.5), generate(pipe), atol=1e-3)
        assert np.array_equal(generate(pipe, truncation=10), generate(pipe))

    def test_keeps_one_seed_one_image(self, pipe):
        together = generate(pipe, num_images_per_prompt=2, generator=[seeded(0), seeded(1)], truncation=0.5)
        assert close(together[1:], generate(pipe, generator=seeded(1), truncation=0.5))


class TestBatchAsTime:
    """Models with the released code's recurrence, in which the images of a batch influence each other."""

    @pytest.fixture
    def coupled(self, pipe, make_generator):
        pipe.generator = make_generator(recurrence="batch_as_time")
        return pipe

    @pytest.mark.parametrize("options", [{}, {"batch_size": 1}])
    def test_images_are_independent_unless_asked_otherwise(self, coupled, options):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            together = generate(coupled, prompt=[PROMPT, OTHER], **options)
            assert close(together[:1], generate(coupled))

    def test_explicit_batch_size_couples_them_with_a_warning(self, coupled):
        with pytest.warns(UserWarning, match="batch_as_time"):
            together = generate(coupled, prompt=[PROMPT, OTHER], batch_size=2)
        assert not close(together[:1], generate(coupled), atol=1e-3)


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"prompt": None}, ValueError, "either prompt or prompt_embeds"),
            ({"prompt_embeds": torch.ones(1, TEXT_DIM), "prompt": PROMPT}, ValueError, "and not both"),
            ({"prompt": 3}, TypeError, "string or a list"),
            ({"prompt": [PROMPT, 3]}, TypeError, "must be a string"),
            ({"prompt": []}, ValueError, "empty list"),
            ({"prompt_embeds": [1.0] * TEXT_DIM}, TypeError, "torch.Tensor"),
            ({"prompt_embeds": torch.ones(TEXT_DIM)}, ValueError, r"\[prompts, 16\]"),
            ({"prompt_embeds": torch.ones(1, TEXT_DIM + 1)}, ValueError, r"\[prompts, 16\]"),
            ({"prompt_embeds": torch.ones(0, TEXT_DIM)}, ValueError, r"\[prompts, 16\]"),
            ({"prompt_embeds": torch.full((1, TEXT_DIM), torch.nan)}, ValueError, "NaN"),
            ({"prompt_embeds": torch.full((1, TEXT_DIM), torch.inf)}, ValueError, "infinite"),
            ({"truncation": "0.5"}, TypeError, "truncation must be a number"),
            ({"truncation": True}, TypeError, "truncation must be a number"),
            ({"truncation": 0}, ValueError, "truncation must be at least"),
            ({"truncation": -1.0}, ValueError, "truncation must be at least"),
            ({"truncation": float("nan")}, ValueError, "truncation must be at least"),
            ({"truncation": 0.5, "latents": torch.zeros(1, NOISE_DIM)}, ValueError, "cannot be combined"),
            ({"output_type": "jpeg"}, ValueError, "output_type"),
            ({"output_type": "latent"}, ValueError, "output_type"),
            ({"generator": 3}, TypeError, "torch.Generator"),
            ({"generator": [3]}, TypeError, "torch.Generator"),
            ({"generator": []}, ValueError, "0 generators were given for 1"),
            ({"generator": [seeded(), seeded()]}, ValueError, "2 generators were given for 1"),
            ({"latents": [[0.0] * NOISE_DIM]}, TypeError, "latents must be a torch.Tensor"),
            ({"latents": torch.zeros(2, NOISE_DIM)}, ValueError, r"latents must be \[1, 100\]"),
            ({"latents": torch.zeros(1, NOISE_DIM + 1)}, ValueError, r"latents must be \[1, 100\]"),
            ({"latents": torch.full((1, NOISE_DIM), torch.nan)}, ValueError, "NaN"),
            ({"num_images_per_prompt": None}, ValueError, "num_images_per_prompt must be a positive integer"),
            ({"promt": PROMPT}, TypeError, "does not take 'promt'"),
        ],
    )
    def test_bad_arguments_are_refused(self, pipe, options, error, message):
        with pytest.raises(error, match=message):
            generate(pipe, **options)

    @pytest.mark.parametrize("name", ["num_images_per_prompt", "batch_size"])
    @pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
    def test_counts_must_be_positive_integers(self, pipe, name, value):
        with pytest.raises(ValueError, match=f"{name} must be a positive integer"):
            generate(pipe, **{name: value})

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("height", "sample_size"),
            ("width", "sample_size"),
            ("num_inference_steps", "one step"),
            ("guidance_scale", "truncation="),
            ("callback_on_step_end", "one step"),
            ("negative_prompt", "prompt="),
            ("negative_prompt_embeds", "prompt_embeds="),
        ],
    )
    def test_habits_from_diffusion_models_are_explained(self, pipe, name, hint):
        with pytest.raises(ValueError, match=f"{name} has no meaning here: .*{hint}"):
            generate(pipe, **{name: 1})

    def test_the_network_is_not_a_random_generator(self, pipe):
        with pytest.raises(TypeError, match=r"torch\.Generator"):
            generate(pipe, generator=pipe.generator)

    @pytest.mark.parametrize("name", ["tokenizer", *NETWORKS])
    def test_a_component_that_is_needed_but_missing_is_named(self, pipe, name):
        incomplete = RATLIPPipeline(**{**pipe.components, name: None})
        with pytest.raises(ValueError, match=name):
            generate(incomplete)

    def test_a_tower_of_another_size_is_refused(self, pipe, make_generator):
        pipe.generator = make_generator(clip_width=64)
        with pytest.raises(ValueError, match="width 64"):
            generate(pipe)


class TestPrompts:
    def test_lost_words_of_an_over_long_prompt_are_named(self, pipe, caplog):
        prompt = "a purple finch " + 30 * "red bird " + "beside a green zebra"
        generate(pipe, prompt=prompt)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        lost = caplog.messages[0].rpartition("lost: ")[2]
        kept = pipe.tokenizer.decode(pipe.tokenizer(prompt, truncation=True).input_ids, skip_special_tokens=True)
        assert (kept + lost).replace(" ", "") == prompt.replace(" ", "")

    def test_prompts_that_fit_are_silent(self, pipe, caplog):
        generate(pipe, prompt="a small red bird with white wings on a branch")
        assert not caplog.records

    def test_over_long_prompt_keeps_its_end_token(self, pipe):
        seen = []
        pipe.text_encoder.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
        )
        generate(pipe, prompt=TOO_LONG)
        assert seen[0].shape == (1, pipe.tokenizer.model_max_length)
        assert seen[0][0, -1] == pipe.tokenizer.eos_token_id
        assert (seen[0][0, :-1] != pipe.tokenizer.eos_token_id).all()

    def test_a_tokenizer_without_a_limit_takes_the_text_towers(self, pipe):
        expected = generate(pipe, prompt=TOO_LONG)
        pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
        pipe.tokenizer.model_max_length = int(1e30)
        assert np.array_equal(generate(pipe, prompt=TOO_LONG), expected)

    def test_a_tokenizer_of_another_clip_is_refused(self, pipe):
        pipe.text_encoder.config.eos_token_id = 7
        with pytest.raises(ValueError, match="does not fit"):
            generate(pipe)

    def test_embeddings_are_clips_own_text_features(self, pipe, clip_model):
        (embeds,) = pipe.encode_prompt([PROMPT, OTHER])
        tokens = pipe.tokenizer([PROMPT, OTHER], padding="max_length", return_tensors="pt")
        assert torch.allclose(embeds, clip_model.get_text_features(**tokens).pooler_output, atol=1e-6)
        assert torch.allclose(pipe.encode_prompt(OTHER)[0], embeds[1:], atol=1e-6)

    @pytest.mark.parametrize(("text_norm", "warned"), [(None, True), (8.0, False)])
    def test_normalised_embeddings_are_noticed_where_length_matters(self, pipe, make_generator, text_norm, warned):
        pipe.generator = make_generator(text_norm=text_norm)
        embeds = torch.nn.functional.normalize(pipe.encode_prompt([PROMPT])[0], dim=1)
        with pytest.warns(UserWarning, match="not normalised") if warned else contextlib.nullcontext():
            generate(pipe, prompt_embeds=embeds)

    def test_encoding_works_without_the_image_half_and_generating_without_the_text_half(self, pipe):
        encoder = RATLIPPipeline(pipe.tokenizer, pipe.text_encoder, image_encoder=None, generator=None)
        (embeds,) = encoder.encode_prompt([PROMPT])
        painter = RATLIPPipeline(None, None, pipe.image_encoder, pipe.generator)
        assert close(generate(painter, prompt_embeds=embeds), generate(pipe, prompt=[PROMPT]))

    def test_encode_prompt_returns_call_arguments_by_name(self):
        """diffusers' own tests read the names from the source."""
        source = textwrap.dedent(inspect.getsource(RATLIPPipeline.encode_prompt))
        (result,) = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Return))
        assert isinstance(result, ast.Tuple)
        assert all(isinstance(item, ast.Name) for item in result.elts)
        assert {item.id for item in result.elts} <= set(inspect.signature(RATLIPPipeline.__call__).parameters)


class TestModes:
    @pytest.mark.parametrize("training", [True, False])
    def test_calls_run_in_eval_mode_and_restores_the_mode(self, pipe, training):
        expected, before = generate(pipe), copy.deepcopy(pipe.generator.state_dict())
        pipe.generator.train(training)
        assert close(generate(pipe, num_images_per_prompt=2)[:1], expected)
        assert all(torch.equal(value, before[name]) for name, value in pipe.generator.state_dict().items())
        assert {module.training for module in pipe.generator.modules()} == {training}

    def test_mode_is_restored_after_an_error(self, pipe):
        pipe.generator.train()
        pipe.generator.to_rgb = None
        with pytest.raises(TypeError):
            generate(pipe)
        assert pipe.generator.training

    def test_frozen_parts_of_a_training_generator_stay_frozen(self, pipe):
        pipe.generator.train().bridge.eval()
        generate(pipe)
        assert pipe.generator.training
        assert not pipe.generator.bridge.training

    def test_no_gradients_are_recorded(self, pipe):
        assert not generate(pipe, output_type="pt").requires_grad


class TestComponents:
    def test_are_those_of_the_constructor(self, pipe):
        assert set(pipe.components) == {"tokenizer", *NETWORKS}

    def test_from_pipe_shares_them(self, pipe):
        other = RATLIPPipeline.from_pipe(pipe)
        assert all(other.components[name] is part for name, part in pipe.components.items())
        assert np.array_equal(generate(other), generate(pipe))

    @pytest.mark.parametrize(("dtype", "atol"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
    def test_to_another_dtype(self, pipe, dtype, atol):
        expected = generate(pipe)
        assert pipe.to(dtype=dtype) is pipe
        assert dtypes(pipe) == 3 * [dtype]
        assert close(generate(pipe), expected, atol)


class TestOffload:
    """Offloading hangs on hooks of a component's `forward`, which the borrowed image tower never runs as a whole."""

    def test_hook_of_the_image_tower_is_called_around_its_use(self, pipe):
        calls = []

        class Recorder(ModelHook):
            def pre_forward(self, module, *args, **kwargs):
                calls.append("load")
                return args, kwargs

            def post_forward(self, module, output):
                calls.append("unload")
                return output

        add_hook_to_module(pipe.image_encoder, Recorder())
        pipe.image_encoder.vision_model.encoder.layers[0].register_forward_hook(lambda *_: calls.append("use"))
        generate(pipe)
        assert calls == ["load", "use", "unload"]

    def test_sequential_offload_generate_the_same_image(self, pipe):
        expected = generate(pipe)
        networks = [getattr(pipe, name) for name in NETWORKS]
        for network in networks:
            cpu_offload(network, execution_device="cpu")
        for image in (generate(pipe), generate(pipe)):
            assert close(image, expected)
            assert {parameter.device.type for network in networks for parameter in network.parameters()} == {"meta"}
