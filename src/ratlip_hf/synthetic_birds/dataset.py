"""Synthetic birds as an ordinary `datasets` dataset, as a source of `ratlip data prepare`, and as the fixed prompts of
the evaluation. Images are rendered in memory, nothing is downloaded, and no torch is imported."""

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import datasets

from ..data.prepare.raw_files import clean_captions
from ..data.prepare.source_dataset import Origin, Record, Report, SourceDataset, SourceOptions
from .attributes import FIELD_VOCABULARIES, SPLITS, BirdAttributes
from .captions import full_caption, make_captions
from .renderer import render_png, sample_birds, wording_rng

PROMPT_FILE = "heldout_prompts.jsonl"
PROMPT_COUNT = 400

# Prompts are captions of birds of their own; render seeds 0 and 1 of the same purpose belong to the real images.
_PROMPT_SEEDS = {"test": 0, "validation": 2}

_FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "captions": datasets.List(datasets.Value("string")),
        **{name: datasets.ClassLabel(names=list(words)) for name, words in FIELD_VOCABULARIES.items()},
    }
)


def make_dataset(split: str, num_images: int, seed: int = 0, image_size: int = 64) -> datasets.Dataset:
    """Render `num_images` birds of the split "train", "validation" or "test", which share no colour triple.

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


def make_prompts(split: str, count: int = PROMPT_COUNT, seed: int | None = None) -> list[dict]:
    """Full captions of `count` birds of the "validation" or "test" split, the same for the same arguments.

    Each entry holds "prompt" and all attributes by name. Without a seed these are the split's fixed prompts.
    """
    birds, seeds = sample_birds("prompts", _PROMPT_SEEDS[split] if seed is None else seed, count, split)
    return [
        {"prompt": full_caption(bird, wording_rng(s)), **{name: getattr(bird, name) for name in FIELD_VOCABULARIES}}
        for bird, s in zip(birds, seeds, strict=True)
    ]


def load_prompts(split: str) -> list[dict]:
    """The 400 fixed prompts of a split, as from `make_prompts`; those of the test are read from the package."""
    if split != "test":
        return make_prompts(split)
    text = files("ratlip_hf.synthetic_birds").joinpath(PROMPT_FILE).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def prompt_bird(entry: dict) -> BirdAttributes:
    """The attributes stored in an entry of the prompts file."""
    return BirdAttributes(**{name: entry[name] for name in FIELD_VOCABULARIES})


# For `ratlip data prepare synthetic-birds`

ORIGIN = Origin("Synthetic birds", "", "apache-2.0", "Rendered by ratlip_hf.")
_TRAIN_IMAGES_PER_HELD_OUT_IMAGE = 10


@dataclass(frozen=True)
class RenderedImage:
    """A bird that is rendered when it is read, by the process that writes the shard."""

    bird: BirdAttributes
    seed: int
    size: int

    def read(self) -> bytes:
        return render_png(self.bird, self.seed, self.size)

    def fingerprint(self) -> str:
        return repr(self)

    def stored_bytes(self) -> int:
        return 0  # a few kilobytes, known when it is rendered


def read(source: Path | None, options: SourceOptions) -> SourceDataset:
    """Sample attributes and captions; no two splits show the same colour triple. No file is read."""
    report, records = Report(), []
    for split in SPLITS:
        count = options.num_images
        if split != "train":
            count = max(1, count // _TRAIN_IMAGES_PER_HELD_OUT_IMAGE)
        for index, (bird, seed) in enumerate(zip(*sample_birds(split, options.seed, count, split), strict=True)):
            image_id = f"{split}-{index:06d}"
            captions = clean_captions(make_captions(bird, wording_rng(seed)), image_id, report)
            records.append(Record(split, image_id, RenderedImage(bird, seed, options.image_size), captions))
    choices = {"seed": options.seed, "num_images": options.num_images, "image_size": options.image_size}
    return SourceDataset(
        records, "validation and test show colour triples that train never shows", report, choices=choices
    )
