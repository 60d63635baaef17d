"""`ratlip data check` finds what was broken on purpose; `ratlip data push` publishes what `load_dataset` streams.
The Hub is the local one; a fresh interpreter talks to it."""

import json
import textwrap
from pathlib import Path

import datasets
import pytest

from hub_server import hub_environment
from ratlip_hf.cli.main import main
from ratlip_hf.data.prepare.check import check
from ratlip_hf.data.prepare.shards import Storage, prepare
from ratlip_hf.utils.errors import UserError
from ratlip_hf.utils.files import file_sha256
from raw_datasets import encoded_image, make_birds, make_folder, write


def problems(folder: Path) -> dict[str, int]:
    return {kind: entry["count"] for kind, entry in check(folder)["problems"].items()}


def test_a_sound_dataset_has_counts_and_no_problems(tmp_path, capsys):
    prepare("birds", make_birds(tmp_path / "birds"), tmp_path / "out")
    assert main(["data", "check", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["problems"] == {}
    assert result["splits"] == {
        "test": {"images": 4, "captions": 40, "captions_per_image": {"10": 4}, "classes": 1},
        "train": {"images": 8, "captions": 80, "captions_per_image": {"10": 8}, "classes": 2},
    }
    assert main(["data", "check", str(tmp_path / "out")]) == 0
    assert "no problems found" in capsys.readouterr().out


def rewrite(folder: Path, rows: dict[str, list[dict]]) -> None:
    """Give a prepared dataset other rows, with a manifest that fits them."""
    manifest = json.loads((folder / "manifest.json").read_text())
    names = ["red", "green", "blue"]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "captions": datasets.List(datasets.Value("string")),
            "label": datasets.ClassLabel(names=names),
            "image_id": datasets.Value("string"),
        }
    )
    manifest["splits"], manifest["label_names"] = {}, names
    for split, entries in rows.items():
        path = folder / "data" / f"{split}.parquet"
        datasets.Dataset.from_list(entries, features=features).to_parquet(path)
        file = {"path": f"data/{split}.parquet", "rows": len(entries), "sha256": file_sha256(path)}
        manifest["splits"][split] = {"rows": len(entries), "files": [file]}
    write(folder / "manifest.json", json.dumps(manifest))


def test_every_kind_of_problem_is_found(tmp_path, capsys):
    prepare("folder", make_folder(tmp_path / "raw"), tmp_path / "out")

    def row(name: str, content: bytes | None, captions: list[str], label: int = 0) -> dict:
        image = None if content is None else {"bytes": content, "path": None}
        return {"image": image, "captions": captions, "label": label, "image_id": name}

    train = [
        row("same", encoded_image(1), ["shared words"]),
        row("again", encoded_image(1), ["shared words"]),
        row("page", b"<html>", ["a page"]),
        row("gone", None, ["gone"]),
        row("silent", encoded_image(2), []),
        row("empty", encoded_image(3), [" "]),
        row("twice", encoded_image(4), ["said twice", "said twice"]),
        row("long", encoded_image(5), ["word " * 76]),
        row("odd", encoded_image(6), ["odd \ufffd", "bell \a"], label=1),
    ]
    rewrite(tmp_path / "out", {"train": train, "test": [row("leak", encoded_image(6), ["leaked"], label=1)]})
    assert problems(tmp_path / "out") == {
        "caption of more than 75 words and marks: CLIP reads its beginning only": 1,
        "caption that several images share": 2,
        "caption with U+FFFD or control characters": 2,
        "class in both train and test": 1,
        "empty caption": 1,
        "image that is in two splits": 1,
        "image that is there more than once": 1,
        "image with the same caption twice": 1,
        "image without captions": 1,
        "row without an image": 1,
        "unreadable image: web page instead of an image": 1,
    }
    assert main(["data", "check", str(tmp_path / "out")]) == 0
    screen = capsys.readouterr().out
    assert "class in both train and test (green)" in screen
    assert len(screen.splitlines()) <= 24 and max(map(len, screen.splitlines())) <= 160


def test_missing_changed_and_damaged_shards_are_found(tmp_path, capsys):
    prepare("folder", make_folder(tmp_path / "raw", 8), tmp_path / "out", storage=Storage(images_per_shard=2))
    gone, changed, cut, _ = sorted((tmp_path / "out/data").iterdir())
    gone.unlink()
    changed.write_bytes(changed.read_bytes().replace(b" caption 0", b" Caption 0"))
    cut.write_bytes(cut.read_bytes()[:-50])
    assert problems(tmp_path / "out") == {
        "image in a shard that cannot be read": 2,
        "shard that is not there": 1,
        "shard that differs from its checksum": 2,
        "shard that cannot be read": 1,
    }
    for path in (tmp_path / "out/data").iterdir():
        path.unlink()
    assert main(["data", "check", str(tmp_path / "out")]) == 2
    assert "no shard" in capsys.readouterr().err


def test_a_folder_that_was_not_prepared_is_refused(tmp_path):
    with pytest.raises(UserError, match="no prepared dataset"):
        check(tmp_path)
    write(tmp_path / "manifest.json", "{}")
    with pytest.raises(UserError, match="damaged"):
        check(tmp_path)


SESSION = """
    import sys

    import datasets

    from ratlip_hf.cli.main import main
    from ratlip_hf.training.config import TrainingConfig
    from ratlip_hf.training.samples import load_training_data

    first, second = sys.argv[1:]
    for folder in (first, second):
        assert main(["data", "push", folder, "ada/captions"]) == 0

    streamed = list(datasets.load_dataset("ada/captions", split="train", streaming=True))
    loaded = datasets.load_dataset("ada/captions", split="train")
    assert len(streamed) == len(loaded) == 5
    assert streamed[0]["captions"] == loaded[0]["captions"] and streamed[0]["image"].size == (60, 40)

    batches = []
    for streaming in (False, True):
        config = TrainingConfig(dataset_name="ada/captions", streaming=streaming)
        batches.append(load_training_data(config, 16, 3).batch(range(5)))
    assert sorted(b.split()[1] for b in batches[0].captions) == sorted(b.split()[1] for b in batches[1].captions)
"""


@pytest.mark.slow
def test_a_pushed_dataset_is_streamed_and_loaded_and_replaced_by_the_next(hub, run_python, tmp_path):
    for count, name in ((8, "first"), (5, "second")):
        raw = make_folder(tmp_path / f"raw_{name}", count)
        prepare("folder", raw, tmp_path / name, storage=Storage(images_per_shard=2))
    folders = (tmp_path / "first", tmp_path / "second")
    run_python(textwrap.dedent(SESSION), *folders, env=hub_environment(hub.url, tmp_path / "home"))
    repository = hub.store.get("datasets", "ada/captions")
    files = repository.snapshots[repository.head]
    assert {"README.md", "manifest.json"} < files.keys()
    assert [path for path in files if path.startswith("data/")] == [
        f"data/train-0000{i}-of-00003.parquet" for i in range(3)
    ]
    local = tmp_path / "second/data/train-00001-of-00003.parquet"
    assert files["data/train-00001-of-00003.parquet"] == local.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nobody"], "user/name"), (["a/b/c"], "user/name"), (["ada/bad name!"], "cannot publish")],
)
def test_push_says_what_is_wrong_in_one_line(arguments, message, tmp_path, capsys):
    prepare("folder", make_folder(tmp_path / "raw", 2), tmp_path / "out")
    assert main(["data", "push", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_an_incomplete_dataset_is_not_pushed(tmp_path, capsys):
    prepare("folder", make_folder(tmp_path / "raw", 2), tmp_path / "out")
    next((tmp_path / "out/data").iterdir()).unlink()
    assert main(["data", "push", str(tmp_path / "out"), "ada/captions"]) == 2
    assert "incomplete" in capsys.readouterr().err
