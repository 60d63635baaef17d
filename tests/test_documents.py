"""The tables of README and docs are what the records say."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tables():
    """A fresh copy of the script that makes the tables."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_agree_with_the_records(tables, capsys):
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


def test_every_table_stands_somewhere(tables):
    text = "".join(page.read_text() for page in tables.PAGES)
    assert set(re.findall(r"<!-- table: ([\w-]+) -->", text)) == set(tables.TABLE_MAKERS)
    assert text.count("<!-- table:") == text.count("<!-- end -->")


def test_another_record_is_noticed_and_written(tables, tmp_path, monkeypatch, capsys):
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
