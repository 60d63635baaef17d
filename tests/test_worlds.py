"""Small worlds plug themselves in: nothing below knows one by name, and preparing their data stays light."""

import io
import tokenize
from pathlib import Path

import pytest
import torch

from ratlip_hf.bundled import WORLDS, find_world

SRC = Path(__file__).parents[1] / "src" / "ratlip_hf"
PACKAGES = ("training", "evaluation", "metrics", "data")


def named(source: str) -> list[str]:
    """Names and strings of code with a bird in them; in comments, docstrings and help texts birds are examples."""
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    return [
        token.string
        for token in tokens
        if "bird" in token.string.lower()
        and (token.type == tokenize.NAME or (token.type == tokenize.STRING and " " not in token.string))
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_below_names_a_world(package):
    for path in (SRC / package).rglob("*.py"):
        found = named(path.read_text())
        if path.parent.name == "importers":  # there are the CUB birds as well, a dataset
            found = [text for text in found if "synthetic" in text]
        assert not found, path


def test_every_world_has_what_training_and_evaluation_ask_for():
    for name in WORLDS:
        world, dataset = find_world(name), find_world(name, "dataset")
        assert world.PROTOCOL.name == name and callable(dataset.read) and dataset.ORIGIN.title
        assert len(world.load_training_dataset(3, 0, 64)) == 3
        eval_data = world.load_eval_data(world.PROTOCOL).first(5)
        assert len(world.fresh_renders(eval_data)) == len(eval_data.real) == len(eval_data.targets) == 5
        scorer = world.load_scorer()
        assert scorer.encode(["a bird"]).shape == scorer.embed_images(torch.zeros(1, 3, 64, 64)).shape
    assert find_world("flowers") is None and find_world(None) is None


def test_a_worker_that_renders_imports_no_networks(run_python):
    run_python(
        """
import pickle, sys
from ratlip_hf.synthetic_birds import attributes, captions, renderer
from ratlip_hf.synthetic_birds.dataset import RenderedImage
image = RenderedImage(attributes.BirdAttributes("red", "red", "red"), 3, 64)
assert pickle.loads(pickle.dumps(image)).read()[:4] == b"\\x89PNG"
loaded = {"torch", "transformers", "diffusers"} & sys.modules.keys()
assert not loaded, loaded
"""
    )
