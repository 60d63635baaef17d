"""The range of versions that setup.py allows: its floors are what is tested, older spellings are served.
Whether everything else works at both ends of the range is seen by `make test-oldest` and `make test-newest`."""

import re
from pathlib import Path

import diffusers
import pytest
import torch

from ratlip_hf.utils.compat import for_diffusers

ROOT = Path(__file__).parents[1]


def test_the_floors_are_the_versions_of_test_oldest():
    # nothing that is tested needs the extra "demo"; torch see constraints-oldest.txt
    requirements = re.findall(r'"([\w-]+)([<>=!~]=[^"]*)"', (ROOT / "setup.py").read_text())
    pins = dict(re.findall(r"^([\w-]+)(==.+)$", (ROOT / "constraints-oldest.txt").read_text(), re.MULTILINE))
    floors = {f"{name.lower()}{floor}" for name, floor in requirements if name not in ("gradio", "torch")}
    tested = {f"{name.lower()}{pin.replace('==', '>=')}" for name, pin in pins.items()}
    assert len(floors) > 15 and floors <= tested, floors - tested


@pytest.mark.parametrize(
    "given, before",
    [
        ({"dtype": torch.float16, "variant": "fp16"}, {"torch_dtype": torch.float16, "variant": "fp16"}),
        ({"torch_dtype": torch.float16, "dtype": None}, {"torch_dtype": torch.float16}),
        ({"torch_dtype": None, "dtype": torch.float16}, {"torch_dtype": torch.float16}),
        ({}, {}),
    ],
)
def test_dtype_is_spelled_as_the_installed_diffusers_reads_it(given, before, monkeypatch):
    monkeypatch.setattr(diffusers, "__version__", "0.39.0")
    assert for_diffusers(given) == before
    for release in ("0.40.0", "0.42.1", "1.0.0.dev0"):
        monkeypatch.setattr(diffusers, "__version__", release)
        assert for_diffusers(given) == given
