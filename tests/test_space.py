"""`ratlip export space`: folders that are Spaces as they stand, and their upload to a local Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import RepoCard
from PIL import Image

from generating import PROMPT, seeded
from ratlip_hf.app import space
from ratlip_hf.cli.main import main
from ratlip_hf.export.repository import SPACE_RECORD
from ratlip_hf.web.export import CSP, read_description

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


@pytest.fixture
def model(torch_pipe, tmp_path) -> str:
    torch_pipe.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_static_one_is_the_page_with_a_card(instant_graphs, model, tmp_path, capsys):
    assert main(["export", "space", str(tmp_path / "out"), "--model", model]) == 0
    assert "a static Space" in capsys.readouterr().out
    card = RepoCard.load(tmp_path / "out" / "README.md", ignore_metadata_errors=False)
    assert card.data.to_dict()["sdk"] == "static" and "browser" in card.text
    assert CSP.replace("'", "&#x27;") in (tmp_path / "out" / "index.html").read_text()
    assert read_description(tmp_path / "out")["model"] == "model"
    record = json.loads((tmp_path / "out" / SPACE_RECORD).read_text())
    assert set(record["files"]) | {SPACE_RECORD} == files(tmp_path / "out")
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "out").glob("*.*"))


def test_the_app_brings_code_model_and_requirements(torch_pipe, tmp_path):
    space.export_space(torch_pipe, tmp_path / "out", "user/tiny", "gradio")
    data = RepoCard.load(tmp_path / "out" / "README.md").data.to_dict()
    assert (data["sdk"], data["app_file"]) == ("gradio", "app.py")
    assert f"gradio=={data['sdk_version']}" in CONSTRAINTS.read_text().splitlines()
    needed = (tmp_path / "out" / "requirements.txt").read_text()
    assert "\ntorch>=" in needed and "gradio" not in needed and "pytest" not in needed
    found = files(tmp_path / "out")
    assert {"app.py", "model/model_index.json", "ratlip_hf/app/interface.py", SPACE_RECORD} <= found
    assert not [path for path in found if "__pycache__" in path or "/assets/" in path or path.endswith(".wasm.gz")]
    assert sum((tmp_path / "out" / path).stat().st_size for path in found if path.startswith("ratlip_hf")) < 2e6
    compile((tmp_path / "out" / "app.py").read_text(), "app.py", "exec")


@pytest.mark.slow
def test_the_app_runs_from_its_folder_alone(torch_pipe, tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'ratlip_hf[demo]'")
    from gradio_client import Client

    space.export_space(torch_pipe, tmp_path / "out", "user/tiny", "gradio")
    code = (tmp_path / "out" / "app.py").read_text().replace("7860", "7871").replace("0.0.0.0", "127.0.0.1")
    (tmp_path / "out" / "app.py").write_text(
        code.replace("threading.Event().wait()", "print('up', flush=True); input()")
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "app.py"], cwd=tmp_path / "out", env=environment, **pipes) as app:
        try:
            assert app.stdout.readline() == "up\n"
            client = Client("http://127.0.0.1:7871", verbose=False)
            (found,) = client.predict(prompt=PROMPT, num_images_per_prompt=1, seed=3, api_name="/generate")
        finally:
            app.kill()
    with Image.open(found["image"]) as image:
        expected = torch_pipe(PROMPT, generator=seeded(3)).images[0]
        assert np.abs(np.asarray(image, dtype=int) - np.asarray(expected, dtype=int)).max() <= 1


@pytest.mark.parametrize("kind", space.KINDS)
def test_it_is_uploaded_as_it_stands(kind, online, instant_graphs, model, tmp_path, capsys):
    command = ["export", "space", str(tmp_path / "out"), "--model", model, "--kind", kind, "--push", f"ada/{kind}"]
    assert main(command) == 0
    assert f"{online.url}/spaces/ada/{kind}" in capsys.readouterr().out
    repository = online.store.get("spaces", f"ada/{kind}")
    for path, content in repository.snapshots[repository.head].items():
        assert (tmp_path / "out" / path).read_bytes() == content, path
    assert repository.snapshots[repository.head].keys() == files(tmp_path / "out")


def test_a_refused_upload_leaves_the_folder_and_is_one_line(online, instant_graphs, model, tmp_path, capsys):
    online.store.create("spaces", "ada/closed")
    online.store.get("spaces", "ada/closed").read_only = True
    command = ["export", "space", str(tmp_path / "out"), "--model", model, "--push", "ada/closed"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is written, but the upload to ada/closed failed" in error
    assert (tmp_path / "out" / "index.html").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "docker"], "--kind"),
        (["--push", "birds"], "--push must be user/name"),
        (["--model", "{tmp}"], "no model_index.json"),
    ],
)
def test_mistakes_end_in_one_line(options, message, tmp_path, capsys):
    options = [option.format(tmp=tmp_path) for option in options]
    assert main(["export", "space", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error and not list(tmp_path.iterdir())


def test_a_folder_with_anything_else_in_it_is_refused(torch_pipe, tmp_path):
    space.export_space(torch_pipe, tmp_path / "out", "user/tiny", "gradio")
    space.export_space(torch_pipe, tmp_path / "out", "user/tiny", "gradio")
    (tmp_path / "out" / "app.py").write_text("mine")
    with pytest.raises(ValueError, match=r"app\.py was changed"):
        space.export_space(torch_pipe, tmp_path / "out", "user/tiny", "gradio")
