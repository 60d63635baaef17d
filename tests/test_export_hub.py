"""`ratlip export hub`: a folder that loads with this package, and with its own code where the package is not there.
Without it a fresh interpreter loads folder and local Hub; images are compared with those of the source."""

import importlib.util
import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from generating import PROMPT
from generating import generate as draw
from hub_server import hub_environment
from ratlip_hf import RATLIPDiscriminator, RATLIPGenerator, RATLIPPipeline, __version__, bundled
from ratlip_hf.cli.main import main
from ratlip_hf.export import repository as export
from training_toys import DISCRIMINATOR

WITHOUT_PACKAGE = """
    import sys

    sys.modules["ratlip_hf"] = None  # importing it raises, wherever it may be installed
    import numpy as np
    import torch
    from diffusers import DiffusionPipeline

    folder, prompt, out = sys.argv[1:]

    def draw(pipe, **options):
        options = {"generator": torch.Generator().manual_seed(0), "output_type": "np", **options}
        return pipe(prompt, **options).images

    images = {}
    for name in (folder, "ada/coded"):
        try:
            DiffusionPipeline.from_pretrained(name)
        except ValueError as error:
            assert "trust_remote_code" in str(error), error
        else:
            raise AssertionError("code from a repository must not run unasked")
        pipe = DiffusionPipeline.from_pretrained(name, trust_remote_code=True)
        images[name.replace(folder, "folder")] = draw(pipe)
    # diffusers before 0.40 reads no other spelling
    half = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, torch_dtype=torch.float16)
    images["half"] = draw(half)
    images["truncated"] = draw(pipe, truncation=0.5)
    assert pipe.generator.dtype == torch.float32 and half.generator.dtype == torch.float16
    for part in (pipe, pipe.generator):
        assert type(part).__module__.startswith("diffusers_modules."), type(part)
    assert not [name for name, module in sys.modules.items() if name.startswith("ratlip_hf") and module is not None]
    sys.path.insert(0, folder)
    from handler import EndpointHandler

    image = EndpointHandler(folder)({"inputs": prompt, "parameters": {"seed": 0}})
    images["endpoint"] = np.asarray(image)[None] / np.float32(255)
    pipe.save_pretrained(out + "-saved")
    np.savez(out, **images)
"""


@pytest.fixture(scope="module")
def source(small_clip, make_generator, tmp_path_factory) -> Path:
    """Folder of a pipeline, its discriminator inside as on the Hub."""
    folder = tmp_path_factory.mktemp("source") / "birds"
    pipe = RATLIPPipeline(small_clip.tokenizer, small_clip.text_encoder, small_clip.image_encoder, make_generator())
    pipe.save_pretrained(folder)
    RATLIPDiscriminator(**DISCRIMINATOR).save_pretrained(folder / "discriminator")
    return folder


@pytest.fixture(scope="module")
def coded(source, tmp_path_factory) -> Path:
    """Folder exported with code. Not to be modified."""
    return run_export(source, tmp_path_factory.mktemp("coded") / "coded", "--with_code", "--repo_id", "ada/coded")


def run_export(source: Path, folder: Path, *options: str) -> Path:
    assert main(["export", "hub", str(folder), "--model", str(source), *options]) == 0
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Loading


def test_without_the_package_the_images_are_the_same(hub, source, coded, run_python, tmp_path):
    hub.store.publish(coded, "ada/coded")
    environment = hub_environment(hub.url, tmp_path / "home")
    run_python(textwrap.dedent(WITHOUT_PACKAGE), coded, PROMPT, tmp_path / "images.npz", env=environment)
    images, pipe = np.load(tmp_path / "images.npz"), RATLIPPipeline.from_pretrained(source)
    for name in ("folder", "ada/coded"):
        assert np.abs(images[name] - draw(pipe)).max() <= 1e-6
    assert np.abs(images["truncated"] - draw(pipe, truncation=0.5)).max() <= 1e-6
    assert np.abs(images["half"] - draw(pipe)).max() <= 2e-2
    assert np.abs(images["endpoint"] - draw(pipe)).max() <= 1 / 255
    saved = RATLIPPipeline.from_pretrained(f"{tmp_path / 'images.npz'}-saved")
    assert np.abs(draw(saved) - draw(pipe)).max() <= 1e-6


def test_with_the_package_the_same_repository_loads_and_runs_none_of_its_code(online, source, coded, tmp_path):
    online.store.publish(coded, "ada/coded")
    expected, cache = draw(RATLIPPipeline.from_pretrained(source)), tmp_path / "cache"
    for name in (coded, "ada/coded"):
        pipe = RATLIPPipeline.from_pretrained(name, cache_dir=cache)
        assert type(pipe) is RATLIPPipeline and type(pipe.generator) is RATLIPGenerator
        assert np.abs(draw(pipe) - expected).max() <= 1e-6
    fetched = [path.parent.name for path in cache.rglob("*.safetensors")]
    assert sorted(fetched) == ["generator", "image_encoder", "text_encoder"]
    for kind, folder in ((RATLIPGenerator, "generator"), (RATLIPDiscriminator, "discriminator")):
        assert type(kind.from_pretrained("ada/coded", subfolder=folder, cache_dir=cache)) is kind
    assert all((coded / path).read_text() == text for path, text in export.code_files().items())


def test_commands_take_a_folder_with_code(coded, tmp_path):
    assert main(["generate", PROMPT, "--model", str(coded), "--output_dir", str(tmp_path / "images")]) == 0
    again = run_export(coded, tmp_path / "again")
    assert "Without ratlip_hf" not in (again / "README.md").read_text()
    assert [path.name for path in again.rglob("*.py")] == ["handler.py"]


# Inference endpoints


def load_handler(folder: Path):
    """As the endpoints do: the repository's file, by its path."""
    spec = importlib.util.spec_from_file_location("handler", folder / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(folder))


def test_an_endpoint_answers_with_the_pipeline_s_images(source, coded):
    handler, pipe = load_handler(coded), RATLIPPipeline.from_pretrained(source)
    image = handler({"inputs": PROMPT, "parameters": {"seed": 3, "truncation": 0.5}})
    expected = pipe(PROMPT, generator=torch.Generator().manual_seed(3), truncation=0.5).images[0]
    assert np.array_equal(np.asarray(image), np.asarray(expected))
    several = handler({"inputs": [PROMPT, "a white bird"], "parameters": {"num_images_per_prompt": 2, "seed": 3}})
    seeds = [torch.Generator().manual_seed(3 + index) for index in range(4)]
    for found, wanted in zip(
        several, pipe([PROMPT, "a white bird"], num_images_per_prompt=2, generator=seeds).images, strict=True
    ):
        assert np.abs(np.asarray(found, dtype=int) - np.asarray(wanted, dtype=int)).max() <= 1
    assert handler({"inputs": PROMPT}).size == image.size


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "inputs must be"),
        ({"inputs": [1]}, "inputs must be"),
        ({"inputs": PROMPT, "parameters": {"seed": -1}}, "seed must be"),
        ({"inputs": PROMPT, "parameters": {"num_images_per_prompt": 1000}}, "between 1 and 64"),
        ({"inputs": PROMPT, "parameters": {"guidance_scale": 7}}, "unknown parameters: guidance_scale"),
        ({"inputs": PROMPT, "parameters": {"truncation": -1}}, "truncation"),
    ],
)
def test_an_endpoint_refuses_what_cannot_be_made(coded, data, message):
    with pytest.raises(ValueError, match=message):
        load_handler(coded)(data)


# The folder


def test_without_code_it_is_the_plain_pipeline_with_its_discriminator_and_a_card(source, tmp_path):
    folder = run_export(source, tmp_path / "plain")
    assert files(folder).keys() == files(source).keys() | {"README.md", "hub_export.json", "handler.py"}
    for path, content in files(source).items():
        if path.endswith(".safetensors"):
            assert (folder / path).read_bytes() == content, path
    index = json.loads((folder / "model_index.json").read_text())
    assert (index["_class_name"], index["generator"]) == ("RATLIPPipeline", ["ratlip_hf", "RATLIPGenerator"])
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "ratlip_hf" and 'from_pretrained("user/plain")' in card.text
    assert "trust_remote_code" not in card.text
    assert np.array_equal(draw(RATLIPPipeline.from_pretrained(folder)), draw(RATLIPPipeline.from_pretrained(source)))


def test_code_comes_with_notice_version_and_card(source, coded):
    assert files(coded).keys() == files(source).keys() | {"README.md", "hub_export.json", "handler.py", *export.CODE}
    for path in export.CODE:
        text = (coded / path).read_text()
        assert f"ratlip_hf {__version__}" in text.splitlines()[0]
        assert "# SPDX-License-Identifier: Apache-2.0" in text
    text = (coded / "README.md").read_text()
    assert 'DiffusionPipeline.from_pretrained("ada/coded", trust_remote_code=True)' in text
    assert 'RATLIPPipeline.from_pretrained("ada/coded")' in text


def test_nothing_in_the_folder_names_a_place_on_this_machine(source, coded):
    assert not [path for path, content in files(coded).items() if str(source.parent).encode() in content]


def test_a_card_that_the_model_has_is_taken_along(source, tmp_path):
    written = tmp_path / "written"
    for path, content in files(source).items():
        (written / path).parent.mkdir(parents=True, exist_ok=True)
        (written / path).write_bytes(content)
    (written / "README.md").write_text("---\nlicense: mit\n---\n\n# Birds\n\nTrained for a week.\n")
    card = ModelCard.load(run_export(written, tmp_path / "out", "--with_code") / "README.md")
    assert card.data.license == "mit"
    assert "Trained for a week." in card.text and "trust_remote_code=True" in card.text


def test_the_bundled_model_is_the_default(tmp_path, capsys):
    assert main(["export", "hub", str(tmp_path / "birds")]) == 0
    assert "hf upload user/birds" in capsys.readouterr().out
    card = ModelCard.load(tmp_path / "birds" / "README.md")
    assert card.data.license == ModelCard.load(bundled.model_dir().parent / "README.md").data.license
    assert json.loads((tmp_path / "birds" / "hub_export.json").read_text())["model"] == bundled.NAME
    RATLIPDiscriminator.from_pretrained(tmp_path / "birds", subfolder="discriminator")


# What may be overwritten


def test_an_untouched_export_is_replaced(source, tmp_path):
    folder = run_export(source, tmp_path / "out", "--with_code")
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "sent").write_text("left by an upload")
    run_export(source, folder)
    assert not (folder / "pipeline.py").exists()
    run_export(source, folder)


def add_file(folder: Path) -> str:
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("keep")
    return "notes/mine.txt"


def change_card(folder: Path) -> str:
    (folder / "README.md").write_text("mine")
    return "README.md"


def lose_record(folder: Path) -> str:
    (folder / "hub_export.json").unlink()
    return "is not empty"


def break_record(folder: Path) -> str:
    (folder / "hub_export.json").write_text("[]")
    return "is not empty"


@pytest.mark.parametrize("touch", [add_file, change_card, lose_record, break_record])
def test_a_folder_with_anything_else_in_it_is_refused(source, tmp_path, capsys, touch):
    folder = run_export(source, tmp_path / "out")
    message = touch(folder)
    before = files(folder)
    assert main(["export", "hub", str(folder), "--model", str(source)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert files(folder) == before


@pytest.mark.parametrize("kind", ["file", "link"])
def test_files_and_links_are_refused(source, tmp_path, capsys, kind):
    (tmp_path / "real").mkdir()
    target = tmp_path / "out"
    target.write_text("mine") if kind == "file" else target.symlink_to(tmp_path / "real")
    assert main(["export", "hub", str(target), "--model", str(source)]) == 2
    assert f"is a {kind}" in capsys.readouterr().err
    assert target.is_symlink() or target.read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "{tmp}"], "no model_index.json"),
        (["--model", "no-such-user/no-such-model"], "cannot be loaded"),
        (["--repo_id", "birds"], "user/name"),
        (["--repo_id", "user/"], "user/name"),
        (["--repo_id", "ada/some birds"], "user/name"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, capsys, options, message):
    options = [option.format(tmp=tmp_path) for option in options]
    assert main(["export", "hub", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_name_for_a_repository_needs_one(source, tmp_path, capsys):
    folder = tmp_path / "meine Vögel"
    assert main(["export", "hub", str(folder), "--model", str(source)]) == 2
    assert "--repo_id must be user/name" in capsys.readouterr().err and not folder.exists()
    run_export(source, folder, "--repo_id", "ada/birds")
    assert f"hf upload ada/birds '{folder}'" in capsys.readouterr().out


@pytest.mark.parametrize("target", ["hub", "onnx"])
def test_the_folder_that_one_is_in_is_refused(source, tmp_path, monkeypatch, capsys, target):
    monkeypatch.chdir(tmp_path)
    assert main(["export", target, ".", "--model", str(source)]) == 2
    assert "the folder that you are in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_pipeline_without_its_networks_is_refused(pipe, tmp_path):
    alone = RATLIPPipeline(pipe.tokenizer, pipe.text_encoder, None, pipe.generator)
    with pytest.raises(ValueError, match="no image_encoder"):
        export.export_hub(alone, tmp_path / "out", "ada/birds", tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_and_the_old_export_stays_when_it_fails(source, tmp_path, monkeypatch):
    folder = run_export(source, tmp_path / "out")
    before = files(folder)
    monkeypatch.setattr(export, "code_files", lambda: 1 / 0)
    for target in (folder, tmp_path / "new"):
        with pytest.raises(ZeroDivisionError):
            main(["export", "hub", str(target), "--model", str(source), "--with_code"])
    assert files(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_weights_keep_their_values_whatever_precision_they_are_stored_in(source, tmp_path):
    RATLIPPipeline.from_pretrained(source, dtype=torch.float16).save_pretrained(tmp_path / "half")
    exported = RATLIPPipeline.from_pretrained(run_export(tmp_path / "half", tmp_path / "out"))
    stored = RATLIPPipeline.from_pretrained(tmp_path / "half")
    for name in ("generator", "image_encoder", "text_encoder"):
        weights = getattr(exported, name).state_dict()
        assert all(torch.equal(weights[key], value) for key, value in getattr(stored, name).state_dict().items())
