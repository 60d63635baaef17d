"""`ratlip explore` as a user types it: a labelled image and a manifest from every subcommand, one line for mistakes.
The networks are tiny and random."""

import copy
import json

import pytest
import torch
from PIL import Image
from transformers import CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from generating import OTHER, PROMPT
from ratlip_hf import RATLIPDiscriminator, RATLIPGenerator, RATLIPPipeline
from ratlip_hf.cli.main import main
from training_toys import DISCRIMINATOR


@pytest.fixture
def model(pipe, tmp_path) -> str:
    pipe.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def explore(model, tmp_path):
    """Runs a subcommand; returns the folder with its files."""

    def run(*arguments) -> dict:
        out = tmp_path / "out"
        assert main(["explore", *map(str, arguments), "--model", model, "--output_dir", str(out)]) == 0
        manifest = json.loads((out / f"{arguments[0]}.json").read_text())
        assert set(manifest["files"]) | {f"{arguments[0]}.json"} == {path.name for path in out.iterdir()}
        assert manifest["model"] == model
        with Image.open(out / f"{arguments[0]}.png") as image:
            manifest["size"] = image.size
        return manifest

    return run


def test_interpolate(explore, tmp_path):
    found = explore("interpolate", PROMPT, OTHER, "--steps", 3, "--frames", 5)
    assert found["prompts"] == [PROMPT, OTHER] and found["seeds"] == [0, 0]
    assert found["shares"][0] == 0 and found["shares"][-1] == 1
    with Image.open(tmp_path / "out" / "interpolate.gif") as film:
        assert film.n_frames == 8  # there and back


def test_edit(explore):
    found = explore("edit", PROMPT, OTHER, "a red bird", "--num_images", 2, "--seed", 3, "--keep_steps", 1)
    assert found["edited_prompts"] == [OTHER, "a red bird"] and found["seeds"] == [3, 4]
    assert found["size"][1] > 3 * 128


def test_mix(explore):
    found = explore("mix", PROMPT, OTHER, "--num_images", 2, "--image_seed", 7)
    assert found["seeds"] == [0, 1] and found["image_seeds"] == [7, 8]


def test_invert(explore, tmp_path):
    Image.new("RGB", (50, 40), "red").save(tmp_path / "given.png")
    found = explore("invert", tmp_path / "given.png", "--prompt", PROMPT, "--edit", OTHER, "--steps", 2)
    assert found["distance"] > 0
    stored = torch.load(tmp_path / "out" / "invert.pt")
    assert stored["latents"].shape == (1, 100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["interpolate", PROMPT, "--seeds", "1"], "no way"),
        (["interpolate", PROMPT, OTHER, PROMPT, "--seeds", "1", "2"], "no way"),
        (["interpolate", PROMPT, "--frames", "3"], "--frames"),
        (["edit", PROMPT, OTHER, "--num_images", "0"], "--num_images"),
        (["edit", PROMPT, OTHER, "--keep_steps", "-1"], "--keep_steps"),
        (["invert", "nowhere.png", "--prompt", PROMPT], "nowhere.png"),
        (["explain", PROMPT, "--word", "green"], "no word of the prompt"),
        (["angles", PROMPT, OTHER, "--swaps", "0"], "--swaps"),
        (["paint"], "invalid choice"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(arguments, message, model, tmp_path, capsys):
    where = ["--model", model, "--output_dir", str(tmp_path / "out")] if len(arguments) > 1 else []
    assert main(["explore", *arguments, *where]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists()


def test_explain(explore, model, tmp_path):
    found = explore("explain", PROMPT, "--word", "red", "--num_images", 2)
    assert found["seeds"] == [0, 1] and found["rows"][0] == "CLIP similarity, Grad-CAM" and len(found["rows"]) == 3
    assert [word.split()[1] for word in found["words"]] == PROMPT.split()
    names = {"explain.png", *(f"explain_{part}.png" for part in ("words", "states", "steps", "gates"))}
    assert set(found["files"]) == names


def test_explain_over_checkpoints_with_their_discriminators(explore, pipe, tmp_path):
    again = tmp_path / "again"
    pipe.save_pretrained(again)
    for folder in (again, tmp_path / "model"):
        RATLIPDiscriminator(**DISCRIMINATOR).save_pretrained(folder / "discriminator")
    found = explore("explain", PROMPT, "--also", again)
    assert len(found["rows"]) == 5 and len(found["models"]) == 2


def test_explain_a_picture(explore, tmp_path):
    Image.new("RGB", (50, 40), "red").save(tmp_path / "given.png")
    assert explore("explain", PROMPT, "--image", tmp_path / "given.png")["image"].endswith("given.png")


def test_compare_models_and_folders(pipe, model, tmp_path, capsys):
    images = tmp_path / "images"
    assert main(["generate", PROMPT, OTHER, "--num_images", "2", "--model", model, "--output_dir", str(images)]) == 0
    out = ["--sources", model, str(images), "--num_images", "1", "--output_dir", str(tmp_path / "out")]
    assert main(["explore", "compare", OTHER, PROMPT, *out]) == 0
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["prompts"] == [OTHER, PROMPT]
    with Image.open(tmp_path / "out" / "compare.png") as picture:
        assert picture.width > 190 + 3 * 128 and 2 * 128 < picture.height < 3 * 128
    assert main(["explore", "compare", "a cat", *out]) == 2
    capsys.readouterr()
    assert main(["explore", "compare", PROMPT, "--sources", "nowhere"]) == 2
    assert "--sources nowhere" in capsys.readouterr().err


def test_angles(explore):
    found = explore("angles", PROMPT, OTHER, "--num_images", 3, "--swaps", 2)
    assert len(found["swaps"]) == 2 and set(found["degrees"]) == {"raw", "centred", "centred, scaled"}
    assert found["degrees"]["raw"]["direction"] == found["degrees"]["centred"]["direction"]


@pytest.mark.slow
def test_a_pipeline_of_the_papers_size_with_random_weights(small_clip, tmp_path):
    torch.manual_seed(0)
    text = copy.deepcopy(small_clip.text_encoder.config)
    text.update({"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "projection_dim": 512})
    towers = CLIPTextModelWithProjection(text), CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=512))
    folder = tmp_path / "model"
    RATLIPPipeline(small_clip.tokenizer, *towers, RATLIPGenerator.from_preset("ratlip")).save_pretrained(folder)
    RATLIPDiscriminator.from_preset("ratlip").save_pretrained(folder / "discriminator")
    where = ["--model", str(folder), "--output_dir", str(tmp_path / "out"), "--num_images", "2"]
    for arguments in (["explain", PROMPT], ["edit", PROMPT, OTHER, "--keep_steps", "1"], ["mix", PROMPT, OTHER]):
        assert main(["explore", *arguments, *where]) == 0
    assert main(["explore", "angles", PROMPT, OTHER, "--swaps", "1", *where]) == 0
    assert json.loads((tmp_path / "out" / "explain.json").read_text())["rows"][-1].startswith("discriminator")
