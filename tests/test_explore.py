"""`ratlip explore` as a user types it: a labelled image and a manifest from every subcommand, one line for mistakes.
The networks are tiny and random."""

import json

import pytest
import torch
from PIL import Image

from generating import OTHER, PROMPT
from ratlip_hf.cli.main import main


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
        (["paint"], "invalid choice"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(arguments, message, model, tmp_path, capsys):
    where = ["--model", model, "--output_dir", str(tmp_path / "out")] if len(arguments) > 1 else []
    assert main(["explore", *arguments, *where]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists()
