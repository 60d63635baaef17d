"""Every script in examples/ is short and does what it says, on tiny networks where it takes a model."""

import importlib.util
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from generating import OTHER, PROMPT
from originals import FEATURE_LAYERS, original_content, wrapped
from ratlip_hf import RATLIPPipeline
from ratlip_hf.cli.main import main as ratlip
from ratlip_hf.convert.original import convert_original

EXAMPLES = Path(__file__).parents[1] / "examples"
PICTURES = ("sample", "interpolate", "edit", "explain", "invert")
SCRIPTS = (*PICTURES, "evaluate", "train_on_folder", "finetune_converted", "push")
LONGEST = 60
BRIEF = ["--train_batch_size", "4", "--max_train_images", "4", "--checkpointing_steps", "1", "--sample_every", "4"]


@pytest.fixture
def example():
    """Loads a script's `main`."""

    def load(name: str):
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.main

    return load


@pytest.fixture
def model(pipe, tmp_path) -> str:
    pipe.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def photographs(tmp_path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(8):
        Image.new("RGB", (80, 70), (30 * number, 90, 200)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"{PROMPT} {number}\n{OTHER}\n")
    return folder


@pytest.mark.parametrize("name", SCRIPTS)
def test_examples_are_short(name):
    assert (EXAMPLES / f"{name}.py").read_text().count("\n") < LONGEST


@pytest.mark.parametrize("name", PICTURES)
def test_scripts_that_make_a_picture(name, example, model, tmp_path):
    picture = tmp_path / "picture.png"
    further = {"sample": [PROMPT], "invert": []}.get(name, [])
    example(name)(model, *further, str(picture), *(["2"] if name == "invert" else []))
    with Image.open(picture) as image:
        assert image.width > 128 and len(image.convert("RGB").getcolors(10**6)) > 10


@pytest.mark.slow
def test_evaluate(example, capsys):
    example("evaluate")("synthetic-birds", "8")
    assert "attribute_accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_train_on_a_folder(example, photographs, tmp_path):
    assert example("train_on_folder")(str(photographs), str(tmp_path / "out"), *BRIEF) == 0
    assert RATLIPPipeline.from_pretrained(tmp_path / "out" / "run" / "pipeline").generator.config.sample_size == 64


@pytest.mark.slow
def test_fine_tune_a_converted_checkpoint(
    example, make_generator, small_clip, clip_dir, photographs, tmp_path, monkeypatch
):
    content = original_content("galip", make_generator, small_clip.image_encoder)
    torch.save(wrapped(content, "trainer"), tmp_path / "original.pth")
    data = str(tmp_path / "data")
    assert ratlip(["data", "prepare", "folder", "--source", str(photographs), "--output_dir", data]) == 0
    paths = [str(tmp_path / "original.pth"), data, str(tmp_path / "out")]
    finetune = example("finetune_converted")
    layers = {"prompt_layers": (0, 1), "feature_layers": FEATURE_LAYERS}  # of this CLIP, which has three
    monkeypatch.setitem(finetune.__globals__, "convert_original", partial(convert_original, **layers))
    assert finetune(*paths, "--clip", str(clip_dir), *BRIEF) == 0
    assert (tmp_path / "out" / "run" / "pipeline" / "model_index.json").is_file()


def test_push(example, model, online, capsys):
    example("push")(model, "someone/birds")
    assert "someone/birds" in capsys.readouterr().out
    assert RATLIPPipeline.from_pretrained("someone/birds").generator.config.sample_size == 32
