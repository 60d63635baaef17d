"""The tables of README and docs are what the records say."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def load(name: str):
    """A fresh copy of a script of docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tables():
    """The script that makes the tables."""
    return load("tables")


@pytest.fixture
def pictures():
    """The script that makes the pictures of explore.md and explain.md."""
    return load("pictures")


def test_pages_agree_with_the_records(tables, capsys):
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


def test_every_table_stands_somewhere(tables):
    text = "".join(page.read_text() for page in tables.PAGES)
    assert set(re.findall(r"<!-- table: ([\w-]+) -->", text)) == set(tables.TABLE_MAKERS)
    assert text.count("<!-- table:") == text.count("<!-- end -->")


def test_another_record_is_noticed_and_written(tables, tmp_path, monkeypatch, capsys):
    shutil.copy(tables.RECORDS / "explore.jsonl", tmp_path)
    for name in ("bundled.jsonl", "recipe.jsonl", "study_birds.jsonl"):
        lines = [json.loads(line) for line in (tables.RECORDS / name).read_text().splitlines()]
        lines[-1]["scores"]["attribute_accuracy"]["value"] = 0.123
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    pages = [tmp_path / page.name for page in tables.PAGES]
    for page, copy in zip(tables.PAGES, pages, strict=True):
        copy.write_text(page.read_text())
    monkeypatch.setattr(tables, "RECORDS", tmp_path)
    monkeypatch.setattr(tables, "PAGES", tuple(pages))
    assert tables.main(["--check"]) == 1
    assert "differs from the records" in capsys.readouterr().out
    assert tables.main([]) == 0
    assert "0.123" in (tmp_path / "README.md").read_text()
    assert tables.main(["--check"]) == 0


def test_pictures_stand_above_their_commands(pictures):
    text = "".join(
        (ROOT / "docs" / name).read_text().replace(" \\\n    ", " ") for name in ("explore.md", "explain.md")
    )
    for picture, (_, command) in pictures.PICTURES.items():
        assert (ROOT / "docs" / "images" / picture).is_file()
        shown, made = text.index(f"(images/{picture})"), text.find(command, text.index(f"(images/{picture})"))
        assert shown < made, picture
        assert text[shown:made].count("```bash") == 1, picture  # the next command, not a later one
