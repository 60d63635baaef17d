"""Synthetic birds as an ordinary `datasets` dataset, and the fixed prompts on which alignment is measured.
Owns the columns and the prompts file; images are rendered in memory, nothing is downloaded."""

import io
import json
from importlib.resources import files

import datasets

from .attributes import COLOURS, FIELD_VOCABULARIES, PARTS, SPLITS, BirdAttributes
from .captions import full_caption, make_captions
from .renderer import render_bird, sample_birds, wording_rng

PROMPT_FILE = "heldout_prompts.jsonl"
PROMPT_COUNT = 400

_FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "captions": datasets.List(datasets.Value("string")),
        **{name: datasets.ClassLabel(names=list(words)) for name, words in FIELD_VOCABULARIES.items()},
    }
)


def render_png(bird: BirdAttributes, seed: int, image_size: int) -> bytes:
    """A bird as a PNG file of image_size x image_size pixels."""
    buffer = io.BytesIO()
    render_bird(bird, seed, image_size).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def make_dataset(split: str, num_images: int, seed: int = 0, image_size: int = 64) -> datasets.Dataset:
    """Render `num_images` birds of the "train" split (seen colour triples) or the "test" split (held-out ones).

    Columns: `image` (PIL, image_size x image_size), `captions` (10 strings), and one class label each for `crown`,
    `belly`, `wing`, `direction`, `background`, `perch` and `size`. The same arguments give the same dataset.
    Raises `ValueError` for an unknown split, a size below 64 or fewer than one image.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    if num_images < 1:
        raise ValueError(f"num_images must be at least 1; got {num_images}")
    birds, seeds = sample_birds(split, seed, num_images, split)
    columns = {
        "image": [
            {"bytes": render_png(bird, s, image_size), "path": None} for bird, s in zip(birds, seeds, strict=True)
        ],
        "captions": [make_captions(bird, wording_rng(s)) for bird, s in zip(birds, seeds, strict=True)],
    }
    for name in FIELD_VOCABULARIES:
        columns[name] = [getattr(bird, name) for bird in birds]
    return datasets.Dataset.from_dict(columns, features=_FEATURES)


def make_heldout_prompts() -> list[dict]:
    """Generate the content of `heldout_prompts.jsonl`: 400 full captions of held-out triples.

    Each entry holds "prompt" and all attributes by name; the seed is fixed, so the result never changes.
    """
    birds, seeds = sample_birds("prompts", 0, PROMPT_COUNT, "test")
    return [
        {"prompt": full_caption(bird, wording_rng(s)), **{name: getattr(bird, name) for name in FIELD_VOCABULARIES}}
        for bird, s in zip(birds, seeds, strict=True)
    ]


def load_heldout_prompts() -> list[dict]:
    """Read the prompts file that ships with the package; entries as from `make_heldout_prompts`."""
    text = files("ratlip_hf.synthetic_birds").joinpath(PROMPT_FILE).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def prompt_bird(entry: dict) -> BirdAttributes:
    """The attributes stored in an entry of the prompts file."""
    return BirdAttributes(**{name: entry[name] for name in FIELD_VOCABULARIES})


def prompt_labels(entries: list[dict]) -> list[list[int]]:
    """Colour indices [N][3] of crown, belly and wing."""
    return [[COLOURS.index(entry[part]) for part in PARTS] for entry in entries]
