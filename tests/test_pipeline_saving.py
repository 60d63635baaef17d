"""What users of diffusers rely on when a `RATLIPPipeline` is saved, loaded, or assembled from a CLIP.
All of it runs on random weights; loading from the Hub is in `test_hub`."""

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from generating import NETWORKS, PROMPT, close, dtypes, generate, settings
from ratlip_hf import RATLIPGenerator, RATLIPPipeline
from ratlip_hf.clip import load_clip


@pytest.fixture
def saved(pipe, tmp_path):
    """Folder of the saved pipeline."""
    pipe.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


class TestSaving:
    @pytest.mark.parametrize("cls", [RATLIPPipeline, DiffusionPipeline])
    @pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": False}, {"device_map": "cpu"}])
    def test_round_trip_is_exact(self, pipe, saved, cls, options):
        loaded = cls.from_pretrained(saved, **options)
        assert type(loaded) is RATLIPPipeline
        assert not any(getattr(loaded, name).training for name in NETWORKS)
        for name in NETWORKS:
            weights = getattr(pipe, name).state_dict()
            copied = getattr(loaded, name).state_dict()
            assert weights.keys() == copied.keys()
            assert all(torch.equal(copied[key], value) for key, value in weights.items())
        assert settings(loaded.generator) == settings(pipe.generator)
        assert np.array_equal(generate(loaded), generate(pipe))

    def test_index_names_the_package_and_not_its_modules(self, saved):
        index = json.loads((saved / "model_index.json").read_text())
        assert index["generator"] == ["ratlip_hf", "RATLIPGenerator"]

    def test_frozen_towers_are_not_in_the_generator_file(self, pipe, saved):
        names = load_file(saved / "generator/diffusion_pytorch_model.safetensors")
        assert names.keys() == pipe.generator.state_dict().keys()
        assert not any("clip" in name or "encoder" in name for name in names)

    def test_pickled_weights(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path, safe_serialization=False)
        assert not list(tmp_path.rglob("diffusion_pytorch_model.safetensors"))
        assert np.array_equal(generate(RATLIPPipeline.from_pretrained(tmp_path)), generate(pipe))

    def test_variant(self, pipe, tmp_path):
        pipe.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
        assert len(list(tmp_path.rglob("*.fp16.safetensors"))) == len(list(tmp_path.rglob("*.safetensors"))) == 3
        loaded = RATLIPPipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
        assert dtypes(loaded) == 3 * [torch.float16]
        assert np.array_equal(generate(loaded), generate(pipe))

    @pytest.mark.parametrize(("saved_as", "asked_for"), [("fp16", None), (None, "fp16"), ("fp16", "no_ema")])
    def test_another_variant_is_not_taken_in_its_place(self, pipe, tmp_path, saved_as, asked_for):
        pipe.save_pretrained(tmp_path, variant=saved_as)
        with pytest.raises((OSError, ValueError)):
            RATLIPPipeline.from_pretrained(tmp_path, variant=asked_for)

    @pytest.mark.parametrize("keyword", ["dtype", "torch_dtype"])
    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            (torch.bfloat16, 3 * [torch.bfloat16]),
            ({"generator": torch.float16, "default": torch.float32}, [torch.float32, torch.float32, torch.float16]),
            ({"text_encoder": torch.float16}, [torch.float16, torch.float32, torch.float32]),
        ],
    )
    def test_dtype_at_loading(self, saved, keyword, wanted, expected):
        loaded = RATLIPPipeline.from_pretrained(saved, **{keyword: wanted})
        assert dtypes(loaded) == expected
        assert np.isfinite(generate(loaded)).all()

    @pytest.mark.parametrize("keyword", ["dtype", "torch_dtype"])
    @pytest.mark.parametrize("wanted", ["float16", "auto", {"generator": "float16"}])
    def test_dtype_as_a_string_is_refused(self, saved, keyword, wanted):
        with pytest.raises(ValueError, match=r"pass a torch\.dtype"):
            RATLIPPipeline.from_pretrained(saved, **{keyword: wanted})
        if isinstance(wanted, str):
            with pytest.raises(ValueError, match=r"pass a torch\.dtype"):
                RATLIPGenerator.from_pretrained(saved / "generator", **{keyword: wanted})

    @pytest.mark.parametrize("left_out_of_folder", [True, False])
    def test_text_half_may_be_left_out(self, pipe, tmp_path, left_out_of_folder):
        nothing = {"tokenizer": None, "text_encoder": None}
        stored = {**pipe.components, **nothing} if left_out_of_folder else pipe.components
        RATLIPPipeline(**stored).save_pretrained(tmp_path)
        loaded = RATLIPPipeline.from_pretrained(tmp_path, **nothing)
        assert (loaded.tokenizer, loaded.text_encoder) == (None, None)
        (embeds,) = pipe.encode_prompt(PROMPT)
        assert np.array_equal(generate(loaded, prompt_embeds=embeds), generate(pipe))

    def test_network_may_be_replaced_at_loading(self, saved, make_generator):
        other = make_generator(residual_scale=0.5)
        assert RATLIPPipeline.from_pretrained(saved, generator=other).generator is other

    @pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
    def test_missing_weight_is_an_error(self, saved, low_cpu_mem_usage):
        file = saved / "generator/diffusion_pytorch_model.safetensors"
        weights = load_file(file)
        del weights["to_rgb.weight"]
        save_file(weights, file, metadata={"format": "pt"})
        for cls, folder in ((RATLIPGenerator, saved / "generator"), (RATLIPPipeline, saved)):
            with pytest.raises(ValueError, match=r"to_rgb\.weight"):
                cls.from_pretrained(folder, low_cpu_mem_usage=low_cpu_mem_usage)

    @pytest.mark.parametrize("tower", ["text_encoder", "image_encoder"])
    def test_missing_weight_of_a_tower_is_an_error(self, saved, tower):
        file = saved / tower / "model.safetensors"
        weights = load_file(file)
        lost = sorted(weights)[-1]
        save_file({name: value for name, value in weights.items() if name != lost}, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=lost.replace(".", r"\.")):
            RATLIPPipeline.from_pretrained(saved)


class TestFromClip:
    @pytest.fixture
    def clip_folder(self, clip_model, pipe, tmp_path):
        clip_model.save_pretrained(tmp_path / "clip")
        pipe.tokenizer.save_pretrained(tmp_path / "clip")
        return tmp_path / "clip"

    def test_folder_of_a_clip(self, pipe, clip_folder):
        assert close(generate(RATLIPPipeline.from_clip(clip_folder, pipe.generator)), generate(pipe))

    def test_folder_of_a_pipeline(self, pipe, saved):
        assert close(generate(RATLIPPipeline.from_clip(saved, pipe.generator)), generate(pipe))

    def test_model_in_memory(self, pipe, clip_model):
        assembled = RATLIPPipeline.from_clip(clip_model, pipe.generator, tokenizer=pipe.tokenizer)
        assert close(generate(assembled), generate(pipe))

    def test_towers_of_a_model_in_memory_share_no_weights_with_it(self, pipe, clip_model):
        assembled = RATLIPPipeline.from_clip(clip_model, pipe.generator, tokenizer=pipe.tokenizer)
        assembled.image_encoder.visual_projection.weight.zero_()
        assert clip_model.visual_projection.weight.abs().max() > 0
        assert clip_model.visual_projection.weight.requires_grad

    @pytest.mark.parametrize("in_memory", [True, False])
    def test_dtype_reaches_the_towers(self, pipe, clip_model, clip_folder, in_memory):
        clip = clip_model if in_memory else clip_folder
        assembled = RATLIPPipeline.from_clip(clip, pipe.generator, pipe.tokenizer, dtype=torch.float16)
        assert dtypes(assembled) == [torch.float16, torch.float16, torch.float32]

    def test_towers_are_frozen(self, pipe, clip_folder):
        assembled = RATLIPPipeline.from_clip(clip_folder, pipe.generator)
        towers = (assembled.text_encoder, assembled.image_encoder)
        assert not any(parameter.requires_grad for tower in towers for parameter in tower.parameters())
        assert not any(tower.training for tower in towers)

    def test_source_is_recorded(self, clip_folder, small_clip):
        clip = load_clip(clip_folder)
        assert (clip.source, clip.revision) == (str(clip_folder), None)
        assert clip.describe()["weights_sha256"] == small_clip.describe()["weights_sha256"]

    def test_model_in_memory_needs_a_tokenizer(self, pipe, clip_model):
        with pytest.raises(ValueError, match="pass tokenizer="):
            RATLIPPipeline.from_clip(clip_model, pipe.generator)

    def test_folder_without_a_clip_is_a_one_line_error(self, pipe, tmp_path):
        with pytest.raises(ValueError, match="no CLIP could be loaded") as raised:
            RATLIPPipeline.from_clip(tmp_path, pipe.generator)
        assert "\n" not in str(raised.value)

    def test_incomplete_clip_is_an_error(self, pipe, clip_folder):
        weights = load_file(clip_folder / "model.safetensors")
        del weights["visual_projection.weight"]
        save_file(weights, clip_folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"visual_projection\.weight"):
            RATLIPPipeline.from_clip(clip_folder, pipe.generator)
