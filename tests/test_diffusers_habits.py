"""What users do with pipelines and models of diffusers besides calling them: sharing, casting, offloading, compiling.
Loading, saving, seeds and errors of the call are in `test_pipeline` and `test_pipeline_saving`."""

import io
from contextlib import redirect_stderr

import diffusers
import numpy as np
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from diffusers.utils.source_code_parsing_utils import ReturnNameVisitor
from torch._dynamo.testing import CompileCounter

from generating import NETWORKS, PROMPT, close, dtypes, generate, needs_group_offloading
from ratlip_hf import RATLIPDiscriminator, RATLIPPipeline
from training_toys import DISCRIMINATOR

LEVELS = [{"offload_type": "block_level", "num_blocks_per_group": 1}, {"offload_type": "leaf_level"}]


@pytest.fixture
def discriminator():
    torch.manual_seed(0)
    return RATLIPDiscriminator(**DISCRIMINATOR).eval()


class TestSharing:
    def test_a_second_pipeline_may_replace_a_part_and_share_the_rest(self, pipe, make_generator):
        before = generate(pipe)
        other = RATLIPPipeline.from_pipe(pipe, generator=make_generator(residual_scale=5.0))
        assert other.image_encoder is pipe.image_encoder
        assert not close(generate(other), before, atol=1e-3)
        assert np.array_equal(generate(pipe), before)

    def test_from_pipe_casts_the_shared_parts_and_construction_does_not(self, pipe):
        pipe.to(torch.bfloat16)
        assert dtypes(RATLIPPipeline(**pipe.components)) == 3 * [torch.bfloat16]
        assert dtypes(RATLIPPipeline.from_pipe(pipe, dtype=torch.float16)) == dtypes(pipe) == 3 * [torch.float16]
        assert dtypes(RATLIPPipeline.from_pipe(pipe)) == dtypes(pipe) == 3 * [torch.float32]

    def test_parts_that_are_none_stay_none(self, pipe):
        half = RATLIPPipeline(None, None, pipe.image_encoder, pipe.generator)
        other = RATLIPPipeline.from_pipe(half)
        assert (other.tokenizer, other.text_encoder) == (None, None)
        assert (half.dtype, half.device) == (torch.float32, torch.device("cpu"))

    def test_the_class_is_where_diffusers_own_tests_look_for_it(self):
        visitor = ReturnNameVisitor()
        visitor.visit(visitor.get_ast_tree(cls=RATLIPPipeline))
        assert visitor.return_names == ["prompt_embeds"]
        assert diffusers.pipelines.RATLIPPipeline is RATLIPPipeline


class TestMoving:
    def test_to_takes_device_and_dtype_together(self, pipe):
        expected = generate(pipe)
        assert pipe.to("cpu", torch.float16) is pipe
        assert (pipe.dtype, pipe.device) == (torch.float16, torch.device("cpu"))
        assert close(generate(pipe), expected, atol=0.02)

    def test_a_device_map_can_be_reset(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        loaded = RATLIPPipeline.from_pretrained(tmp_path, device_map="cpu")
        assert loaded.hf_device_map == "cpu"
        loaded.reset_device_map()
        assert loaded.hf_device_map is None
        assert close(generate(loaded.to("cpu")), generate(pipe))

    @pytest.mark.parametrize("variant", [None, "fp16"])
    def test_sharded_weights(self, pipe, tmp_path, variant):
        pipe.save_pretrained(tmp_path, max_shard_size="300KB", variant=variant)
        assert len(list((tmp_path / "generator").glob("*.safetensors"))) > 1
        loaded = RATLIPPipeline.from_pretrained(tmp_path, variant=variant)
        weights = loaded.generator.state_dict()
        assert all(torch.equal(weights[name], value) for name, value in pipe.generator.state_dict().items())
        assert close(generate(loaded), generate(pipe))

    def test_there_is_no_progress_bar_to_hide(self, pipe):
        pipe.set_progress_bar_config(disable=False)
        output = io.StringIO()
        with redirect_stderr(output):
            generate(pipe, num_images_per_prompt=2, batch_size=1)
        assert output.getvalue() == ""


class TestOffloading:
    """Without an accelerator an offloaded weight is as good as any other; on disk it is gone, and set to NaN here."""

    @needs_group_offloading
    @pytest.mark.parametrize("level", LEVELS, ids=["blocks", "leaves"])
    @pytest.mark.parametrize("name", NETWORKS)
    def test_groups_come_back_before_they_are_used(self, pipe, tmp_path, level, name):
        expected, part = generate(pipe), getattr(pipe, name)
        apply_group_offloading(part, torch.device("cpu"), offload_to_disk_path=str(tmp_path), **level)
        offloaded = _overwrite_what_is_on_disk(part)
        assert offloaded
        for image in (generate(pipe), generate(pipe)):
            assert close(image, expected)

    @needs_group_offloading
    @pytest.mark.parametrize("level", LEVELS, ids=["blocks", "leaves"])
    def test_of_a_whole_pipeline(self, pipe, level):
        expected = generate(pipe)
        pipe.enable_group_offload(onload_device="cpu", offload_device="cpu", **level)
        assert close(generate(pipe), expected)

    def test_whole_models_take_turns(self, pipe):
        expected = generate(pipe)
        for _ in range(2):
            pipe.enable_model_cpu_offload(device="cpu")
            assert close(generate(pipe), expected)
        pipe.remove_all_hooks()
        assert close(generate(pipe), expected)

    @pytest.mark.parametrize("method", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
    def test_without_an_accelerator_it_is_refused(self, pipe, method, monkeypatch):
        monkeypatch.setattr("diffusers.pipelines.pipeline_utils.get_device", lambda: "cpu")
        with pytest.raises(RuntimeError, match="requires accelerator"):
            getattr(pipe, method)()


def _overwrite_what_is_on_disk(module: torch.nn.Module) -> int:
    """Set all offloaded floating-point tensors to NaN; how many there were."""
    registries = [part._diffusers_hook for part in module.modules() if hasattr(part, "_diffusers_hook")]
    tensors = [tensor for each in registries for tensor in each.get_hook("group_offloading").group.tensor_to_key]
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    for tensor in floating:
        tensor.data = torch.full_like(tensor.data, torch.nan)
    return len(floating)


class TestModels:
    def test_size_is_reported(self, small_generator, discriminator):
        for model in (small_generator, discriminator):
            assert model.num_parameters() == sum(parameter.numel() for parameter in model.parameters())
            tensors = [*model.parameters(), *model.buffers()]
            assert model.get_memory_footprint() == sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @pytest.mark.parametrize("storage", [torch.float16, torch.float8_e4m3fn])
    def test_layerwise_casting_stores_less_and_computes_as_before(self, pipe, storage):
        expected, size = generate(pipe), pipe.generator.get_memory_footprint()
        pipe.generator.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
        assert pipe.generator.get_memory_footprint() < 0.7 * size
        assert pipe.generator.dtype == torch.float32
        assert close(generate(pipe), expected, atol=0.1)

    def test_layerwise_casting_of_the_discriminator(self, discriminator):
        features = torch.randn(2, len(DISCRIMINATOR["feature_layers"]), 32, 4, 4)
        text = torch.randn(2, 16)
        expected = discriminator(features, text).logits
        discriminator.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
        torch.testing.assert_close(discriminator(features, text).logits, expected, atol=1e-2, rtol=1e-2)

    def test_gradient_checkpointing_is_switched_on_and_off(self, small_generator, discriminator):
        for model in (small_generator, discriminator):
            model.enable_gradient_checkpointing()
            assert model.is_gradient_checkpointing
            model.disable_gradient_checkpointing()
            assert not model.is_gradient_checkpointing

    def test_switches_for_attention_of_diffusers_change_nothing(self, pipe):
        expected = generate(pipe)
        pipe.enable_attention_slicing()
        pipe.generator.set_attention_backend("native")
        assert np.array_equal(generate(pipe), expected)

    def test_attention_of_the_tower_is_chosen_as_in_transformers(self, pipe):
        expected = generate(pipe)
        pipe.image_encoder.set_attn_implementation("eager")
        assert pipe.image_encoder.vision_model.config._attn_implementation == "eager"
        assert close(generate(pipe), expected)


class TestCompile:
    @pytest.mark.slow
    def test_one_graph_serves_all_batch_sizes_above_one(self, pipe, make_generator):
        """Two graphs until the batch size is known to vary, one for single images; `fullgraph` allows no break."""
        pipe.generator = make_generator(bridge_blocks=1, prompt_layers=(0,))
        expected = {count: generate(pipe, prompt=count * [PROMPT]) for count in (1, 2, 3, 5)}
        backend = CompileCounter()
        torch.compiler.reset()
        pipe.generator = torch.compile(pipe.generator, fullgraph=True, backend=backend)
        graphs = []
        for count in (3, 2, 5, 1, 3, 5, 1):
            assert close(generate(pipe, prompt=count * [PROMPT]), expected[count])
            graphs.append(backend.frame_count)
        assert graphs == [1, 2, 2, 3, 3, 3, 3]

    def test_one_graph_of_the_discriminator_too(self, discriminator):
        graphs = CompileCounter()
        torch.compiler.reset()
        compiled = torch.compile(discriminator, fullgraph=True, backend=graphs, dynamic=True)
        for count in (5, 2, 7):  # not 3, which would be taken for the number of layers
            features, text = torch.randn(count, 3, 32, 4, 4), torch.randn(count, 16)
            with torch.no_grad():
                torch.testing.assert_close(compiled(features, text).logits, discriminator(features, text).logits)
        assert graphs.frame_count == 1

    def test_a_compiled_generator_is_saved_as_itself(self, pipe, tmp_path):
        expected = generate(pipe)
        pipe.generator = torch.compile(pipe.generator, backend="eager")
        pipe.save_pretrained(tmp_path)
        assert close(generate(RATLIPPipeline.from_pretrained(tmp_path)), expected)
