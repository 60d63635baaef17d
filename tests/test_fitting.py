"""`ratlip init`: configurations that fit any CLIP, by its shapes; what does not fit is said in one line."""

import copy

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipConfig,
)

from ratlip_hf import RATLIPDiscriminator, RATLIPGenerator, bundled
from ratlip_hf.cli.main import main
from ratlip_hf.clip import clip_configs, image_features
from ratlip_hf.export.onnx_export import export_onnx
from ratlip_hf.models.fitting import fit_to_clip
from ratlip_hf.pipeline import RATLIPPipeline
from ratlip_hf.training.config import load_config

SHAPES = {  # side, patch, width, layers, heads, projection
    "ViT-B/32": (224, 32, 768, 12, 12, 512),
    "ViT-B/16": (224, 16, 768, 12, 12, 512),
    "ViT-L/14": (224, 14, 1024, 24, 16, 768),
    "ViT-L/14@336": (336, 14, 1024, 24, 16, 768),
    "OpenCLIP ViT-H/14": (224, 14, 1280, 32, 16, 1024),
}


def configs(name: str, **changes) -> tuple[CLIPVisionConfig, CLIPTextConfig]:
    side, patch, width, layers, heads, projection = SHAPES[name]
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    vision = {**sizes, "image_size": side, "patch_size": patch, "projection_dim": projection} | changes
    return CLIPVisionConfig(intermediate_size=4 * width, **vision), CLIPTextConfig(projection_dim=projection)


class TestShapes:
    def test_the_paper_s_clip_needs_no_change(self):
        found = fit_to_clip(*configs("ViT-B/32"), 224)
        for kind, name in ((RATLIPGenerator, "generator"), (RATLIPDiscriminator, "discriminator")):
            with torch.device("meta"):
                preset = kind.from_preset("ratlip").config
            for option, value in found[name].items():
                assert preset[option] == (tuple(value) if isinstance(value, list) else value), option

    @pytest.mark.parametrize(
        ("name", "grid", "prompts", "features"),
        [
            ("ViT-B/16", 14, [1, 2, 3, 4, 5, 6, 7, 8], [1, 4, 8]),
            ("ViT-L/14", 16, [2, 4, 6, 8, 10, 12, 14, 16], [2, 8, 16]),
            ("ViT-L/14@336", 24, [2, 4, 6, 8, 10, 12, 14, 16], [2, 8, 16]),
            ("OpenCLIP ViT-H/14", 16, [2, 5, 8, 10, 13, 16, 18, 21], [2, 10, 21]),
        ],
    )
    @pytest.mark.parametrize("sample_size", [224, 256, 512])
    def test_others_keep_the_depths_of_the_paper(self, name, grid, prompts, features, sample_size):
        found = fit_to_clip(*configs(name), sample_size)
        generator, discriminator = found["generator"], found["discriminator"]
        assert generator["clip_grid"] == discriminator["clip_grid"] == grid
        assert generator["prompt_layers"] == prompts and discriminator["feature_layers"] == features
        assert ("base_channels" in generator) == (sample_size > 256)

    @pytest.mark.parametrize(
        ("changes", "sample_size", "message"),
        [
            ({}, 200, "sample_size must be one of"),
            ({"patch_size": 2}, 64, "clip_grid must lie in 1..sample_size"),
            ({"patch_size": 15}, 224, "no whole patches of 15 px"),
            ({"projection_dim": 640}, 224, "images to 640, texts to 512"),
        ],
    )
    def test_what_does_not_fit_is_said(self, changes, sample_size, message):
        with pytest.raises(ValueError, match=message):
            fit_to_clip(*configs("ViT-B/32", **changes), sample_size)


class TestCommand:
    def test_its_file_is_a_configuration_of_the_trainer(self, tmp_path, capsys):
        file = tmp_path / "new" / "tiny.json"
        command = ["init", "--clip", "synthetic-birds", "--sample_size", "128", "--output_file", str(file)]
        assert main(command) == 0
        assert "6 layers of width 96, 8 x 8 patches" in capsys.readouterr().out
        config = load_config(["--config", str(file), "--dataset_name", "synthetic-birds"])
        assert config.generator["clip_width"] == 96 and config.generator["sample_size"] == 128
        assert config.clip == "synthetic-birds"
        assert main(command) == 2
        assert "exists" in capsys.readouterr().err

    def test_folders_of_clips_and_of_pipelines_are_read_without_weights(self, clip_model, tmp_path):
        clip_model.config.save_pretrained(tmp_path)
        (text, vision), expected = clip_configs(tmp_path), clip_model.config
        assert (vision.hidden_size, text.projection_dim) == (expected.vision_config.hidden_size, 16)
        assert clip_configs(bundled.model_dir())[1].hidden_size == 96

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda folder: None, "no CLIP was found"),
            (lambda folder: SiglipConfig().save_pretrained(folder), "architecture 'siglip'"),
            (lambda folder: CLIPConfig(vision_config={"patch_size": 30}).save_pretrained(folder), "whole patches"),
        ],
    )
    def test_mistakes_are_one_line_and_leave_nothing(self, make, message, tmp_path, capsys):
        make(tmp_path)
        assert main(["init", "--clip", str(tmp_path), "--output_file", str(tmp_path / "out.json")]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not (tmp_path / "out.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sample_size"), [("ViT-B/16", 224), ("ViT-B/16", 256), ("ViT-L/14", 256), ("ViT-L/14@336", 256)]
)
def test_networks_of_full_size_generate_learn_and_are_exported(name, sample_size, small_clip, tmp_path):
    """With random weights: forward, backward with checkpointing, the fast path, and ONNX."""
    vision, text = configs(name)
    fitting = fit_to_clip(vision, text, sample_size)
    tower = CLIPVisionModelWithProjection(vision).requires_grad_(False).eval()
    generator = RATLIPGenerator.from_preset("ratlip", **fitting["generator"])
    discriminator = RATLIPDiscriminator.from_preset("ratlip", **fitting["discriminator"])
    generator.enable_gradient_checkpointing()
    noise, embeds = torch.randn(2, 100), torch.randn(2, text.projection_dim)
    sample = generator(noise, embeds, tower).sample
    assert sample.shape == (2, 3, sample_size, sample_size)
    features = image_features(tower, sample, fitting["discriminator"]["feature_layers"])
    discriminator(features, embeds).logits.mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in generator.parameters())
    small = copy.deepcopy(small_clip.text_encoder.config)  # the tokenizer fits it; only its output must be as wide
    small.projection_dim = text.projection_dim
    small_text = CLIPTextModelWithProjection(small)
    pipe = RATLIPPipeline(small_clip.tokenizer, small_text.eval(), tower, generator.eval())
    given = {"prompt_embeds": embeds, "latents": noise, "output_type": "pt"}
    plain = pipe(**given).images
    pipe.optimize()
    torch.testing.assert_close(pipe(**given).images, plain, atol=1e-3, rtol=0)
    pipe.optimize(False)
    if name == "ViT-B/16":  # larger graphs are beyond the 2 GiB of one file
        export_onnx(pipe, tmp_path / "onnx")
