"""Publishing a training run: what is checked before it, what is uploaded during it, and what a failure may not do.
In this process against the local Hub."""

import copy
import dataclasses
import json
import logging
import math
import os
import subprocess
import threading
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard

from hub_server import HubServer, Repository
from ratlip_hf import RATLIPPipeline
from ratlip_hf.training import hub, loop
from ratlip_hf.training.config import TrainingConfig
from ratlip_hf.training.hub import HubRepository, code_commit
from ratlip_hf.utils.compat import validate_card
from ratlip_hf.utils.errors import UserError
from ratlip_hf.utils.files import atomic_directory

CLIP = {"source": "openai/clip", "revision": "a" * 40, "weights_sha256": "b" * 64}
LOCAL_CLIP = {**CLIP, "source": "somewhere/clip", "revision": None}
WAIT = 60  # seconds after which a test that hangs gives up


@pytest.fixture
def run(tmp_path) -> TrainingConfig:
    """A run that has left its files, small stand-ins with the names of the real ones."""
    # The folder gives the repository its name, and all tests share one Hub.
    output = tmp_path / f"{tmp_path.name}-birds"
    config = TrainingConfig(dataset_name="synthetic-birds", push_to_hub=True, output_dir=str(output))
    write_models(config, "first")
    write(output / "config.json", config.to_json())
    write(output / "clip.json", json.dumps(CLIP))
    write(output / "log.jsonl", "one line\n")
    write(output / "checkpoints" / "step-00000001" / "state.pt", "state")
    for step in range(1, 7):
        write(output / "samples" / f"step-{step:08d}.png", f"grid {step}")
    return config


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_models(config: TrainingConfig, content: str) -> None:
    """What `save_models` does: whole folders are replaced."""
    for part, name in (("pipeline", "generator/model.safetensors"), ("discriminator", "model.safetensors")):
        with atomic_directory(Path(config.output_dir) / part) as folder:
            write(folder / name, f"{part} {content}")


def repository(hub: HubServer, opened: HubRepository) -> Repository:
    return hub.store.get("models", opened.name)


def commits(repository: Repository) -> list[dict[str, bytes]]:
    return list(repository.snapshots.values())[1:]


def local_files(config: TrainingConfig) -> dict[str, bytes]:
    output = Path(config.output_dir)
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


# Before the first step


def test_the_repository_is_named_after_the_output_folder_under_the_users_name(online, run):
    assert HubRepository.open(run).name == f"ada/{Path(run.output_dir).name}"
    run.hub_model_id, run.hub_private_repo = "birds-private", True
    assert repository(online, HubRepository.open(run)).private
    run.hub_model_id = "team/birds"
    assert HubRepository.open(run).name == "team/birds"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"hub_model_id": "ada/my birds"}, "hub_model_id.*my birds"),
        ({"hub_model_id": "a/b/c"}, "hub_model_id.*a/b/c"),
        ({"output_dir": "my--birds"}, "hub_model_id.*my--birds"),
        ({"hub_license": "CC BY 4.0"}, "hub_license.*spelling"),
        ({"hub_license": ""}, "hub_license.*spelling"),
        ({"hub_license": "not-a-license"}, "cannot publish.*BadMetadata"),
    ],
)
def test_bad_names_and_licenses_are_refused(online, run, options, message):
    with pytest.raises(UserError, match=message) as refusal:
        HubRepository.open(dataclasses.replace(run, **options))
    assert "\n" not in str(refusal.value)


def test_without_a_token_one_is_asked_for(online, run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"push_to_hub needs a token.*hf auth login"):
        HubRepository.open(run)


def test_a_repository_that_may_not_be_written_is_refused(online, run):
    name = HubRepository.open(run).name
    online.store.get("models", name).read_only = True
    with pytest.raises(UserError, match=f"cannot publish {name}.*write permission") as refusal:
        HubRepository.open(run)
    assert "\n" not in str(refusal.value)


def test_a_public_repository_is_not_taken_for_a_private_one(online, run):
    HubRepository.open(run)
    run.hub_private_repo = True
    with pytest.raises(UserError, match="is public already"):
        HubRepository.open(run)


def test_a_hub_out_of_reach_is_one_line(online, run, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"cannot publish .*offline mode") as refusal:
        HubRepository.open(run)
    assert "\n" not in str(refusal.value)


def test_what_a_killed_upload_left_is_removed(online, run):
    left = Path(run.output_dir) / ".upload-abc"
    write(left / "model.safetensors", "")
    HubRepository.open(run)
    assert not left.exists()


# During the run


def test_an_upload_is_one_commit_in_the_layout_of_a_pipeline(online, run, capfd):
    before = local_files(run)
    hub = HubRepository.open(run)
    hub.upload(32, prompts=["a red bird"], evaluation={"scores": {"kid": 0.25}, "protocol": {"samples": 8}})
    hub.close()
    (files,) = commits(repository(online, hub))
    assert files.keys() == {
        "README.md",
        "generator/model.safetensors",
        "discriminator/model.safetensors",
        "training/config.json",
        "training/clip.json",
        "training/log.jsonl",
        *(f"samples/step-{step:08d}.png" for step in (3, 4, 5, 6)),
    }
    assert files["generator/model.safetensors"] == b"pipeline first"
    assert b"Real images seen: 32\n" in files["README.md"]
    assert b'| kid | 0.25 | quick evaluation, {"samples": 8} |' in files["README.md"]
    assert local_files(run) == before  # and no snapshot lies around
    assert capfd.readouterr().err == ""  # bars would cut through the log of the training


def test_sample_grids_in_the_repository_stay_few(online, run):
    hub = HubRepository.open(run)
    hub.upload(32)
    write(Path(run.output_dir) / "samples" / "step-00000007.png", "grid 7")
    hub._last.result(WAIT)
    hub.upload(64)
    hub.close()
    last = commits(repository(online, hub))[-1]
    assert sorted(path for path in last if path.startswith("samples/")) == [
        f"samples/step-{step:08d}.png" for step in (4, 5, 6, 7)
    ]


@pytest.fixture
def held(monkeypatch) -> tuple[threading.Event, threading.Event]:
    """Commits that wait: an event that says that one has begun, and one that lets all go on."""
    begun, go_on = threading.Event(), threading.Event()
    create_commit = HfApi.create_commit

    def waiting(*args, **kwargs):
        begun.set()
        assert go_on.wait(WAIT)
        return create_commit(*args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", waiting)
    return begun, go_on


def refuse(*args) -> None:
    raise PermissionError("not on this file system")


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_training_goes_on_during_an_upload_and_cannot_change_it(online, run, held, links, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    begun, go_on = held
    hub = HubRepository.open(run)
    hub.upload(1)
    assert begun.wait(WAIT)
    for content in ("second", "third"):
        write_models(run, content)
        with (Path(run.output_dir) / "log.jsonl").open("a") as log:
            log.write(f"{content} line\n")
        hub.upload(2)
    assert not commits(repository(online, hub))  # here training already is, and nothing has been sent
    write_models(run, "after the last upload")
    go_on.set()
    hub.close()
    first, last = commits(repository(online, hub))
    assert first["generator/model.safetensors"] == b"pipeline first"
    assert first["discriminator/model.safetensors"] == b"discriminator first"
    assert first["training/log.jsonl"] == b"one line\n"
    # The second request was still waiting when the third came.
    assert last["generator/model.safetensors"] == b"pipeline third"
    assert last["training/log.jsonl"] == b"one line\nsecond line\nthird line\n"
    assert not list(Path(run.output_dir).glob(".upload-*"))


def test_a_card_of_the_pipeline_folder_stays_as_it_is(online, run):
    card = Path(run.output_dir) / "pipeline" / "README.md"
    write(card, "mine")
    hub = HubRepository.open(run)
    hub.upload(1)
    hub.close()
    assert card.read_text() == "mine"
    assert b"Real images seen" in commits(repository(online, hub))[0]["README.md"]


def test_a_refused_upload_is_a_warning_and_the_next_one_is_tried(online, run, caplog):
    hub = HubRepository.open(run)
    before = local_files(run)
    repository(online, hub).read_only = True
    hub.upload(1)
    hub._last.result(WAIT)
    (warning,) = warnings(caplog)
    assert "Forbidden" in warning and f"hf upload {hub.name} {run.output_dir}/pipeline" in warning
    assert "\n" not in warning
    repository(online, hub).read_only = False
    hub.upload(2)
    hub.close()
    assert local_files(run) == before
    assert len(commits(repository(online, hub))) == 1


def test_an_upload_that_cannot_be_prepared_is_a_warning(online, run, caplog):
    hub = HubRepository.open(run)
    (Path(run.output_dir) / "clip.json").unlink()
    hub.upload(1)
    hub.close()
    (warning,) = warnings(caplog)
    assert "clip.json" in warning
    assert not list(Path(run.output_dir).glob(".upload-*"))


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# The card


def card_of(config: TrainingConfig, **facts) -> ModelCard:
    """A card, read again from its text as the Hub does."""
    return ModelCard(str(hub.model_card(config, "ada/birds", **facts)))


def test_the_card_names_everything_and_is_valid(online, run):
    run = dataclasses.replace(run, dataset_name="ada/captions", hub_license="cc-by-4.0")
    protocol = {"samples": "1,000 images, seed 0 | test split"}
    evaluation = {"scores": {"Toy FID": np.float32(12.5), "broken": math.nan}, "protocol": protocol}
    prompts = ['a "red": bird', "two", "three", "four"]
    samples = ["samples/step-1.png", "samples/step-2.png"]
    shown = {"prompts": prompts, "samples": samples, "evaluation": evaluation}
    card = card_of(run, commit="c0ffee", images=4096, clip=CLIP, **shown)
    validate_card(card)
    data = card.data.to_dict()
    (index,) = data.pop("model-index")
    assert data == {
        "license": "cc-by-4.0",
        "language": ["en"],
        "library_name": "ratlip_hf",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "gan", "clip", "ratlip"],
        "datasets": ["ada/captions"],
        "base_model": ["openai/clip"],
        "widget": [{"text": text, "output": {"url": "samples/step-2.png"}} for text in prompts[:3]],
    }
    (result,) = index["results"]
    assert result["dataset"] == {"name": "ada/captions", "type": "ada/captions"}
    measured = f"quick evaluation, {json.dumps(protocol)}"
    assert result["metrics"] == [{"type": "toy_fid", "name": "Toy FID", "value": 12.5, "args": {"protocol": measured}}]
    for text in (
        "commit `c0ffee`",
        "seen: 4,096",
        CLIP["revision"],
        CLIP["weights_sha256"],
        "![samples](samples/step-2",
    ):
        assert text in card.text, text
    assert '| Toy FID | 12.5 | quick evaluation, {"samples": "1,000 images, seed 0 \\| test split"} |' in card.text
    assert 'pipe("a \\"red\\": bird", ' in card.text
    assert json.loads(card.text.split("```json\n")[1].split("```")[0]) == dataclasses.asdict(run)


@pytest.mark.parametrize("prompt", ["a bird", "'''quotes''' \"\"\" and \\ back", "rot und blau, schön"])
def test_the_cards_program_is_one(run, prompt):
    program = card_of(run, prompts=[prompt]).text.split("```python\n")[1].split("```")[0]
    compile(program, "README.md", "exec")
    assert len([line for line in program.splitlines() if line]) <= 6


def test_the_card_is_silent_about_what_is_not_known(run):
    card = card_of(run)
    assert card.data.to_dict().keys() == {"license", "language", "library_name", "pipeline_tag", "tags"}
    assert not any(word in card.text for word in ("None", "Evaluation", "samples]", "images seen", "CLIP:", "commit"))
    with_local_clip = card_of(run, clip=LOCAL_CLIP)
    assert "base_model" not in with_local_clip.data.to_dict()
    assert "None" not in with_local_clip.text.split("<details>")[0]


def test_only_repositories_are_linked_as_data_and_base_models(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here/birds").mkdir(parents=True)  # a folder that could be a repository by its name
    run = dataclasses.replace(
        run,
        dataset_name=None,
        data_mixture={str(tmp_path): 1, "here/birds": 1, "ada/captions": 2},
        pretrained_model_name_or_path="ada/older",
    )
    data = card_of(run, clip=CLIP).data.to_dict()
    assert (data["datasets"], data["base_model"]) == (["ada/captions"], ["ada/older", "openai/clip"])
    run.pretrained_model_name_or_path = "here/birds"
    assert card_of(run, clip=LOCAL_CLIP).data.to_dict().keys().isdisjoint({"base_model"})


def test_the_commit_is_that_of_the_packages_own_repository(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    module = tmp_path / "model_card.py"
    write(module, "one")
    monkeypatch.setattr(hub, "__file__", str(module))
    git("init")
    git("commit", "--allow-empty", "-m", "somebody else's")
    assert code_commit() is None  # installed into a folder of another repository
    git("add", ".")
    git("commit", "-m", "ours")
    assert code_commit() == git("rev-parse", "HEAD")
    write(module, "two")
    assert code_commit() == git("rev-parse", "HEAD") + "-dirty"
    monkeypatch.setenv("PATH", "")
    assert code_commit() is None  # no git at all


# The whole story


def test_a_run_is_published_and_loaded_by_its_name(online, config, tmp_path):
    config.push_to_hub = True
    output = loop.train(copy.copy(config))
    local, published = (
        RATLIPPipeline.from_pretrained(place, cache_dir=tmp_path / "cache").generator.state_dict()
        for place in (output / "pipeline", "ada/run")
    )
    assert local.keys() == published.keys()
    assert all(torch.equal(value, published[name]) for name, value in local.items())
    repository = online.store.get("models", "ada/run")
    files = repository.snapshots[repository.head]
    assert {"model_index.json", "discriminator/config.json", "samples/step-00000004.png"} <= files.keys()
    assert json.loads(files["training/config.json"])["push_to_hub"] is True
    assert b"Real images seen: 16\n" in files["README.md"]


def test_a_hub_that_fails_in_the_middle_does_not_end_training(online, config, monkeypatch, caplog):
    config.push_to_hub = True
    opened = HubRepository.open.__func__

    def then_refusing(cls, config: TrainingConfig) -> HubRepository:
        hub = opened(cls, config)
        repository(online, hub).read_only = True
        return hub

    monkeypatch.setattr(HubRepository, "open", classmethod(then_refusing))
    output = loop.train(copy.copy(config))
    assert "Forbidden" in warnings(caplog)[-1]
    for name in ("pipeline/model_index.json", "discriminator/config.json", "log.jsonl", "checkpoints/step-00000004"):
        assert (output / name).exists(), name


def test_a_run_that_cannot_be_published_does_not_begin(config):
    config.push_to_hub, config.hub_license = True, "CC BY"
    with pytest.raises(UserError, match="hub_license"):
        loop.train(config)
    assert not Path(config.output_dir).exists()


def test_without_push_to_hub_nothing_is_asked_of_it(config, monkeypatch):
    monkeypatch.setattr(HubRepository, "open", None)
    config.max_train_images = 4
    loop.train(config)
