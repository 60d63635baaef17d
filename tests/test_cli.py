"""`ratlip generate` as a user types it: files, seeds, metadata, and one clear line for every mistake.
Generates with the model that ships with the package."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from ratlip_hf import RATLIPPipeline, __version__, bundled
from ratlip_hf.cli.main import main

RED = "a small red bird with black wings"


@pytest.fixture
def images(tmp_path):
    return tmp_path / "images"


def test_images_grid_and_manifest(images, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a white bird\n\n  a blue bird  \n")
    arguments = ["generate", RED, "--prompts_file", prompts, "--num_images", 2, "--seed", 5, "--output_dir", images]
    assert main([str(argument) for argument in arguments]) == 0
    assert str(images) in capsys.readouterr().out

    records = [json.loads(line) for line in (images / "manifest.jsonl").read_text().splitlines()]
    assert [record["prompt"] for record in records] == [RED] * 2 + ["a white bird"] * 2 + ["a blue bird"] * 2
    assert [record["seed"] for record in records] == [5, 6, 7, 8, 9, 10]
    assert {path.name for path in images.iterdir()} == {"grid.png", "manifest.jsonl", *(r["file"] for r in records)}
    for record in records:
        with Image.open(images / record["file"]) as image:
            assert image.size == (64, 64)
            assert image.text == {key: str(record[key]) for key in ("prompt", "seed", "model")}

    pipe = RATLIPPipeline.from_pretrained(bundled.model_dir())
    again = pipe("a white bird", generator=torch.Generator().manual_seed(7)).images[0]
    assert again.tobytes() == Image.open(images / records[2]["file"]).tobytes()


def test_a_second_run_keeps_other_files(images):
    images.mkdir()
    (images / "mine.txt").write_text("keep")
    assert main(["generate", RED, "--output_dir", str(images)]) == 0
    assert (images / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no prompt"),
        (["  "], "no prompt"),
        ([RED, "--prompts_file", "nowhere.txt"], "nowhere.txt"),
        ([RED, "--model", "no-such-user/no-such-model"], "no-such-user/no-such-model"),
        ([RED, "--model", "{tmp}"], "no model_index.json"),
        ([RED, "--dtype", "int8"], "--dtype"),
        ([RED, "--device", "warp"], "--device"),
        ([RED, "--device", "meta"], "--device"),
        ([RED, "--num_images", "0"], "--num_images"),
        ([RED, "--num_images", "two"], "invalid int"),
        ([RED, "--seed", "-1"], "--seed"),
        ([RED, "--steps", "50"], "unrecognized"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(arguments, message, images, tmp_path, capsys):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    assert main(["generate", *arguments, "--output_dir", str(images)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())


def test_binary_prompts_broken_models_and_files_as_folders_are_refused(tmp_path, capsys):
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model_index.json").write_text('{"_class_name": "RATLIPPipeline"')
    for arguments in (["--prompts_file", binary], ["--output_dir", binary], ["--model", broken]):
        assert main(["generate", RED, *map(str, arguments)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_nothing_is_left_when_generating_fails(images, tmp_path, monkeypatch):
    monkeypatch.setattr(RATLIPPipeline, "__call__", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["generate", RED, "--output_dir", str(images)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        "generate",
        "data",
        "data prepare",
        "data check",
        "data embed",
        "data push",
        "export hub",
        "export onnx",
        "export web",
        "demo",
    ],
)
def test_every_help_says_in_a_sentence_what_the_command_does(command, capsys):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    sentence = capsys.readouterr().out.split("\n\n")[1]
    assert sentence[0].isupper() and sentence.endswith(".")


@pytest.mark.slow
def test_an_unknown_model_is_one_line_in_a_real_process():
    """The libraries log to stderr by themselves, which only a process of its own shows."""
    command = [sys.executable, "-m", "ratlip_hf.cli.main", "generate", RED, "--model", "no-such-user/no-such-model"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("name", ["generate", "study", "convert", "export", "demo", "benchmark"])
def test_subcommands_import_their_libraries_only_when_they_run(name, run_python):
    run_python(
        "import importlib, sys\n"
        "importlib.import_module(f'ratlip_hf.cli.{sys.argv[1]}')\n"
        "assert not {'torch', 'diffusers', 'transformers', 'PIL'} & sys.modules.keys()",
        name,
    )


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == f"ratlip {__version__}"
