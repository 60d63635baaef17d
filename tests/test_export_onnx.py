"""What users of `ratlip export onnx` rely on: graphs equal to PyTorch, the pipeline's call over them, clean refusals.
One tiny export serves most tests; every option is exported by slow ones."""

import copy
import importlib.util
import inspect
import json
import logging
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from generating import NOISE_DIM, OTHER, PROMPT, TEXT_DIM, TOO_LONG, close, seeded
from generating import generate as draw
from ratlip_hf import RATLIPPipeline
from ratlip_hf.cli.main import main
from ratlip_hf.export import onnx_export
from ratlip_hf.export.onnx_export import BOUNDS, Difference, export_onnx, one_by_one, refuse_differences
from ratlip_hf.export.onnx_runner import IMAGE_GRAPH, TEXT_GRAPH, OnnxRunner
from ratlip_hf.export.repository import ONNX_RECORD as RECORD
from ratlip_hf.latents import prepare_latents
from ratlip_hf.models.blocks import ImageBlock

SMALL = {"bridge_blocks": 1, "prompt_layers": (1,)}


@pytest.fixture(scope="module")
def runner(exported) -> OnnxRunner:
    return OnnxRunner(exported)


@pytest.fixture
def model(torch_pipe, tmp_path) -> str:
    torch_pipe.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


class TestGraphs:
    """Read by onnxruntime alone, as a program without this package would."""

    @pytest.mark.parametrize("batch", [1, 5])
    def test_prompts_are_encoded_as_by_the_pipeline(self, exported, torch_pipe, batch):
        prompts = [PROMPT, OTHER, TOO_LONG, "", "a bird"][:batch]
        ids = torch_pipe.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="np").input_ids
        (embeds,) = onnxruntime.InferenceSession(exported / TEXT_GRAPH).run(["prompt_embeds"], {"input_ids": ids})
        assert np.allclose(embeds, torch_pipe.encode_prompt(prompts)[0].detach(), atol=1e-5)

    @pytest.mark.parametrize("batch", [1, 5])
    def test_images_are_those_of_the_generator_one_by_one(self, exported, torch_pipe, batch):
        noise, embeds = torch.randn(batch, NOISE_DIM, generator=seeded()), torch.randn(batch, TEXT_DIM)
        inputs = {"noise": noise.numpy(), "prompt_embeds": embeds.numpy()}
        (samples,) = onnxruntime.InferenceSession(exported / IMAGE_GRAPH).run(["sample"], inputs)
        with torch.no_grad():
            pairs = zip(noise[:, None], embeds[:, None], strict=True)
            alone = [torch_pipe.generator(z, text, torch_pipe.image_encoder).sample for z, text in pairs]
        assert np.allclose(samples, torch.cat(alone), atol=1e-4)

    def test_graphs_do_not_name_the_machine_s_files(self, exported):
        for name in (TEXT_GRAPH, IMAGE_GRAPH):
            assert b".py" not in (exported / name).read_bytes()
            assert onnx.checker.check_model(onnx.load(exported / name)) is None

    def test_a_coupled_generator_is_refused_where_its_graph_is_made(self, torch_pipe, tmp_path):
        with pytest.raises(ValueError, match="depend on each other"):
            onnx_export.write_image_graph(tmp_path / "x", torch_pipe.generator, torch_pipe.image_encoder)

    def test_independent_generators_are_exported_as_they_are(self, small_generator):
        assert one_by_one(small_generator) is small_generator

    def test_a_resize_whose_factor_is_rounded_takes_torch_s_rows(self, tmp_path):
        """From ViT-B/16's 14 patches to 16 px: by the factor, row 8 would be row 6 instead of 7."""

        class Resize(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.blocks = torch.nn.ModuleList([ImageBlock(2, 2, 16, 4, "plain", 1, "nearest")])

            def forward(self, x):
                return self.blocks[0].resize(x)

        network, small = Resize(), torch.randn(2, 2, 14, 14, generator=seeded())
        with onnx_export._rows_by_number(network):
            onnx_export._write(tmp_path / "resize.onnx", network, {"x": small}, "y")
        (large,) = onnxruntime.InferenceSession(tmp_path / "resize.onnx").run(["y"], {"x": small.numpy()})
        assert np.array_equal(large, network(small))

    def test_weights_beyond_one_file_are_told_before_the_export(self, torch_pipe, tmp_path, monkeypatch):
        monkeypatch.setattr(onnx_export, "_LARGEST_FILE", 1000)
        with pytest.raises(ValueError, match="GiB of weights"):
            export_onnx(torch_pipe, tmp_path / "out")
        assert not list(tmp_path.iterdir())


class TestRunner:
    def test_it_is_called_like_the_pipeline(self, runner):
        ours, theirs = (inspect.signature(thing.__call__) for thing in (runner, RATLIPPipeline))
        assert list(ours.parameters) == list(theirs.parameters)[1:]

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"prompt": [PROMPT, OTHER], "num_images_per_prompt": 2, "truncation": 0.7},
            {"latents": torch.ones(1, NOISE_DIM)},
            {"prompt_embeds": torch.ones(3, TEXT_DIM), "num_images_per_prompt": 2},
            {"prompt": TOO_LONG},
        ],
    )
    def test_same_prompts_and_seeds_give_the_pipeline_s_images(self, runner, torch_pipe, options):
        expected = draw(torch_pipe, **{"batch_size": 1, **options})
        assert close(draw(runner, **options), expected, atol=1e-4)

    def test_styles_are_mixed_in_torch_only(self, runner):
        with pytest.raises(ValueError, match="mixes no styles"):
            runner(PROMPT, style_latents=torch.zeros(1, NOISE_DIM))

    def test_images_are_pil_by_default(self, runner):
        assert runner(PROMPT).images[0].size == (32, 32)
        assert runner(PROMPT, return_dict=False)[0][0].mode == "RGB"

    def test_prompts_can_be_encoded_once(self, runner, torch_pipe):
        (embeds,) = runner.encode_prompt([PROMPT, OTHER])
        assert torch.allclose(embeds, torch_pipe.encode_prompt([PROMPT, OTHER])[0], atol=1e-5)
        assert close(draw(runner, prompt_embeds=embeds[:1]), draw(runner))

    def test_it_uses_torch_s_number_of_threads(self, exported, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        session = OnnxRunner(exported)._pipeline.generator.session
        assert session.get_session_options().intra_op_num_threads == 3

    def test_words_lost_by_cutting_are_told(self, runner, caplog):
        with caplog.at_level(logging.WARNING, logger="ratlip_hf"):
            runner(TOO_LONG)
        assert "these words were lost" in caplog.text

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"guidance_scale": 7}, "no guidance"),
            ({"latents": torch.zeros(2, NOISE_DIM)}, "latents must be"),
            ({"prompt_embeds": torch.zeros(1, TEXT_DIM + 1)}, "prompt_embeds must be"),
            ({"output_type": "latent"}, "output_type"),
        ],
    )
    def test_bad_arguments_are_refused_as_by_the_pipeline(self, runner, options, message):
        with pytest.raises(ValueError, match=message):
            draw(runner, **options)

    def test_folders_that_are_no_export_are_told(self, exported, tmp_path):
        with pytest.raises(ValueError, match="holds no ONNX export"):
            OnnxRunner(tmp_path)
        (tmp_path / RECORD).write_text("{}")
        with pytest.raises(ValueError, match="not written by this version"):
            OnnxRunner(tmp_path)
        record = json.loads((exported / RECORD).read_text())
        (tmp_path / RECORD).write_text(json.dumps({**record, "text_encoder": None}).replace("text_encoder", "gone"))
        with pytest.raises(ValueError, match="lacks text_encoder"):
            OnnxRunner(tmp_path)
        (tmp_path / RECORD).write_text((exported / RECORD).read_text())
        (tmp_path / TEXT_GRAPH).write_bytes(b"half a graph")
        with pytest.raises(ValueError, match="differs from its checksum"):
            OnnxRunner(tmp_path)

    def test_unknown_providers_are_told(self, exported):
        with pytest.raises(ValueError, match=r"no Abacus; there are .*CPUExecutionProvider"):
            OnnxRunner(exported, providers=["Abacus"])

    def test_running_an_export_imports_no_exporter(self, exported, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnx", None)  # importing it raises
        spec = importlib.util.find_spec("ratlip_hf.export.onnx_runner")
        again = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(again)
        assert again.OnnxRunner(exported)(PROMPT).images

    def test_a_missing_onnxruntime_names_the_extra(self, exported, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(ImportError, match=r"pip install 'ratlip_hf\[export\]'"):
            OnnxRunner(exported)


class TestCommand:
    def test_it_writes_checks_and_tells(self, instant_graphs, model, tmp_path, capsys):
        assert main(["export", "onnx", str(tmp_path / "out"), "--model", model]) == 0
        output = capsys.readouterr().out
        assert "batches of 1 and 5" in output and "every image by itself" in output
        record = json.loads((tmp_path / "out" / RECORD).read_text())
        assert 0 < record["difference_to_torch"]["images"]["largest"] < 1e-4
        assert str(tmp_path) not in json.dumps(record)
        assert OnnxRunner(tmp_path / "out")(PROMPT).images

    def test_an_earlier_export_is_replaced_and_nothing_else(self, instant_graphs, model, tmp_path, capsys):
        out = tmp_path / "out"
        command = ["export", "onnx", str(out), "--model", model]
        assert main(command) == 0 and main(command) == 0
        (out / "mine.txt").write_text("keep")
        assert main(command) == 2
        assert "mine.txt" in capsys.readouterr().err
        (out / RECORD).unlink()
        assert main(command) == 2
        assert "not empty" in capsys.readouterr().err
        assert (out / "mine.txt").read_text() == "keep"

    def test_wrong_graphs_are_refused_and_the_earlier_export_stays(self, instant_graphs, torch_pipe, tmp_path):
        export_onnx(torch_pipe, tmp_path / "out")
        before = (tmp_path / "out" / RECORD).read_text()
        other = copy.deepcopy(torch_pipe.generator)
        torch.nn.init.normal_(other.to_rgb.weight)
        parts = torch_pipe.tokenizer, torch_pipe.text_encoder, torch_pipe.image_encoder
        wrong = RATLIPPipeline(*parts, other)
        with pytest.raises(ValueError, match=r"graphs are wrong: images differ"):
            export_onnx(wrong, tmp_path / "out")
        assert (tmp_path / "out" / RECORD).read_text() == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "target"),
            (["onnx"], "folder"),
            (["onnx", "{tmp}/x", "--dtype", "bfloat16"], "--dtype"),
            (["onnx", "{tmp}/x", "--model", "{tmp}"], "no model_index.json"),
            (["onnx", "{tmp}/file"], "is a file"),
            (["onnx", "{tmp}"], "not empty"),
        ],
    )
    def test_mistakes_end_in_one_line_and_exit_code_2(self, arguments, message, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        assert main(["export", *(argument.format(tmp=tmp_path) for argument in arguments)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and message in error
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    @pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
    def test_a_missing_package_names_the_extra(self, package, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, package, None)
        assert main(["export", "onnx", str(tmp_path / "out")]) == 2
        assert f"{package}: pip install 'ratlip_hf[export]'" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["tokenizer", "text_encoder", "image_encoder", "generator"])
    def test_incomplete_pipelines_are_refused(self, name, pipe, tmp_path):
        setattr(pipe, name, None)
        with pytest.raises(ValueError, match=f"has no {name}"):
            export_onnx(pipe, tmp_path / "out")

    def test_networks_in_training_are_exported_as_in_eval_mode_and_stay_in_training(
        self, instant_graphs, torch_pipe, tmp_path, monkeypatch
    ):
        write, modes = onnx_export.write_image_graph, []
        monkeypatch.setattr(
            onnx_export, "write_image_graph", lambda *args: (write(*args), modes.append(args[1].training))
        )
        parts = torch_pipe.tokenizer, torch_pipe.text_encoder, torch_pipe.image_encoder
        pipe = RATLIPPipeline(*parts, copy.deepcopy(torch_pipe.generator).train())
        export_onnx(pipe, tmp_path / "out")
        assert modes == [False] and pipe.generator.training

    def test_half_precision_pipelines_are_refused(self, pipe, tmp_path):
        with pytest.raises(ValueError, match="must be in float32"):
            export_onnx(pipe.to(torch.float16), tmp_path / "out")


@pytest.mark.parametrize(
    ("difference", "dtype"),
    [
        (Difference(2e-3, 1e-6), "float32"),
        (Difference(4e-2, 1e-4), "float16"),
        (Difference(5e-3, 2e-3), "float16"),
        (Difference(float("nan"), float("nan")), "float16"),
    ],
)
def test_differences_beyond_the_precision_are_refused(difference, dtype):
    with pytest.raises(ValueError, match="embeddings differ"):
        refuse_differences({"embeddings": difference}, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "options",
    [
        {"recurrence": "across_layers", "upsampling": "nearest"},
        {"recurrence": "per_layer", "upsampling": "bilinear"},
        {"recurrence": "batch_as_time", "bridge_conv": "plain"},
        {"fusion": "cat", "bridge_conv": "bn_act", "image_conv": "bn_act"},
        {"fusion": "cat", "bridge_conv": "plain", "image_conv": "plain", "sample_size": 224},
        {"sample_size": 224, "upsampling": "bilinear", "image_conv": "plain"},
        {"text_center": True, "text_norm": 8.0, "prompt_layers": (0, 2)},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_option_exports_and_agrees(options, dtype, small_clip, make_generator, tmp_path):
    generator = make_generator(**{**SMALL, **options})
    pipe = RATLIPPipeline(small_clip.tokenizer, small_clip.text_encoder, small_clip.image_encoder, generator)
    export_onnx(pipe, tmp_path / "out", dtype)  # compares with PyTorch, or raises
    images = draw(OnnxRunner(tmp_path / "out"), prompt=[PROMPT, OTHER], generator=[seeded(0), seeded(1)])
    expected = draw(pipe, prompt=[PROMPT, OTHER], generator=[seeded(0), seeded(1)])
    # The bounds are parts of the largest value, which for random weights is far outside of what images show.
    noise = prepare_latents(2, generator.config.noise_dim, [seeded(0), seeded(1)])
    with torch.no_grad():
        values = generator(noise, pipe.encode_prompt([PROMPT, OTHER])[0], pipe.image_encoder).sample
    assert close(images, expected, atol=BOUNDS[dtype].largest * max(1, values.abs().max().item()))
