"""What a protocol shows: the sentences to draw, in order, and the real images beside them.
What can be scored: a pipeline, a folder with any system's images, or fresh renders of the synthetic birds."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol as Interface

import numpy as np
import torch

from ..clip import FrozenCLIP
from ..data.images import BadImage, decode, to_rgb
from ..data.read.rows import Columns, MapRows, load_captioned, row_pixels
from ..pipeline import RATLIPPipeline
from ..synthetic_birds.attributes import FIELD_VOCABULARIES
from ..utils.errors import UserError
from ..utils.networks import weights_sha256
from .protocols import SYNTHETIC_BIRDS, Protocol

FIELDS = tuple(FIELD_VOCABULARIES)
UNNAMED = -1  # in place of a word that a prompt leaves open


class Images(Interface):
    """Images by number. `digest(i)` is a hash of what is stored of image i, `first(n)` the first n of them."""

    def __len__(self) -> int: ...

    def first(self, count: int) -> "Images": ...

    def show(self, start: int, stop: int) -> torch.Tensor:
        """Images start to stop - 1 as [n, 3, S, S] in [-1, 1]."""

    def digest(self, index: int) -> bytes: ...


@dataclass(frozen=True)
class Material:
    """Attributes:
    prompts: sentence n is drawn as image n.
    clusters: number of the image (or held-out prompt) that sentence n speaks of; the images of one cluster
        are no independent evidence.
    real: the real images.
    real_clusters: the same for them.
    facts: of the data, for a record.
    wanted: word [N][field] that each sentence asks for, in the order of `FIELDS`, or `UNNAMED`; only for birds
        whose words are known.
    """

    prompts: list[str]
    clusters: list[int]
    real: Images
    real_clusters: list[int]
    facts: dict
    wanted: list[list[int]] | None = None

    def first(self, count: int | None) -> "Material":
        """The same with the first `count` prompts and real images."""
        if count is None:
            return self
        return Material(
            self.prompts[:count],
            self.clusters[:count],
            self.real.first(count),
            self.real_clusters[:count],
            self.facts,
            self.wanted and self.wanted[:count],
        )


def load_material(protocol: Protocol, data: str, split: str = "test") -> Material:
    """The prompts and images of a protocol.

    Args:
        protocol: which one.
        data: "synthetic-birds", the name of a dataset, or a folder from `ratlip data prepare`.
        split: of a dataset.

    Raises:
        UserError: for data that does not go with the protocol or cannot be loaded.
    """
    if (data == SYNTHETIC_BIRDS) != (protocol.prompts == "heldout"):
        raise UserError(
            f"the protocol {protocol.name!r} and the data {str(data)!r} do not go together: {SYNTHETIC_BIRDS} is a "
            "protocol and its data; for renders under another protocol see ratlip data prepare synthetic-birds"
        )
    return _heldout(protocol) if protocol.prompts == "heldout" else _corpus(protocol, data, split)


def prompts_sha256(prompts: Sequence[str]) -> str:
    """Hash of sentences, whatever their order."""
    return hashlib.sha256(json.dumps(sorted(prompts)).encode()).hexdigest()


def _heldout(protocol: Protocol) -> Material:
    from ..synthetic_birds.captions import named_scene
    from ..synthetic_birds.dataset import load_heldout_prompts, prompt_bird

    entries = load_heldout_prompts()
    wanted = [_wanted(entry, named_scene(entry["prompt"], prompt_bird(entry))) for entry in entries]
    clusters = list(range(len(entries))) * protocol.passes
    return Material(
        [entry["prompt"] for entry in entries] * protocol.passes,
        clusters,
        Renders([prompt_bird(entry) for entry in entries] * protocol.passes, protocol.size),
        clusters,
        {"data": SYNTHETIC_BIRDS, "split": "held-out prompts"},
        wanted * protocol.passes,
    )


def _wanted(entry: dict, named: Sequence[str]) -> list[int]:
    from ..synthetic_birds.attributes import PARTS

    return [FIELD_VOCABULARIES[name].index(entry[name]) if name in (*PARTS, *named) else UNNAMED for name in FIELDS]


@dataclass(frozen=True)
class Renders:
    """Renders of birds, one each; `seed` chooses among their poses."""

    birds: list
    size: int
    seed: int = 0

    def __len__(self) -> int:
        return len(self.birds)

    def first(self, count: int) -> "Renders":
        return replace(self, birds=self.birds[:count])

    def show(self, start: int, stop: int) -> torch.Tensor:
        return _as_images(self._pixels(start, stop))

    def digest(self, index: int) -> bytes:
        return hashlib.sha256(self._pixels(index, index + 1).numpy().tobytes()).digest()

    def _pixels(self, start: int, stop: int) -> torch.Tensor:
        from ..synthetic_birds.renderer import first_render_seed, render_pixels

        first = first_render_seed("prompts", self.seed)
        return render_pixels(self.birds[start:stop], list(range(first + start, first + stop)), self.size)


def _corpus(protocol: Protocol, data: str, split: str) -> Material:
    dataset = load_captioned(data, split)
    rows = MapRows(dataset, Columns(), protocol.seed)
    captions = list(rows.captions(len(rows)))
    drawn = _every_caption(captions, protocol) if protocol.prompts == "every_caption" else _random(captions, protocol)
    return Material(
        [captions[place][which] for place, which in drawn],
        [place for place, _ in drawn],
        Stored(rows, len(rows), protocol.size, protocol.resize),
        list(range(len(rows))),
        {"data": Path(data).name, "split": split},
    )


def _every_caption(captions: list[list[str]], protocol: Protocol) -> list[tuple[int, int]]:
    """(image, caption) pairs: the first captions of all images, then the second ones, and so on."""
    passes = max(map(len, captions))
    return [
        (place, which) for which in range(passes) for place in range(len(captions)) if which < len(captions[place])
    ]


def _random(captions: list[list[str]], protocol: Protocol) -> list[tuple[int, int]]:
    rng, drawn = np.random.default_rng(protocol.seed), []
    whole = len(captions) // protocol.whole_batches * protocol.whole_batches
    if not whole:
        raise UserError(f"the protocol {protocol.name!r} needs at least {protocol.whole_batches} images")
    for _ in range(protocol.passes):
        order = rng.permutation(len(captions))[:whole].tolist()
        drawn += [(place, int(rng.integers(len(captions[place])))) for place in order]
    return drawn


@dataclass(frozen=True)
class Stored:
    """The images of a dataset in the order of storage, cut to their boxes, scaled, and cut to squares."""

    rows: MapRows
    count: int
    size: int
    resize: str

    def __len__(self) -> int:
        return self.count

    def first(self, count: int) -> "Stored":
        return replace(self, count=min(count, self.count))

    def show(self, start: int, stop: int) -> torch.Tensor:
        rows = [self.rows.stored(place) for place in range(start, stop)]
        pixels = np.stack([row_pixels(row, self.size, self.resize) for row in rows])
        return _as_images(torch.from_numpy(pixels).permute(0, 3, 1, 2))

    def digest(self, index: int) -> bytes:
        return hashlib.sha256(self.rows.stored(index).content).digest()


def _as_images(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float().div(127.5).sub(1)


REAL_RENDERS = "real-renders"
IMAGE_MANIFEST = "manifest.jsonl"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class Subject(Interface):
    """`prompts` are the sentences the images were drawn for, image by image; None if nobody knows.
    `own_clip` is the CLIP that the generator was trained with, where there is one."""

    prompts: list[str] | None
    own_clip: FrozenCLIP | None

    def __len__(self) -> int: ...

    def show(self, start: int, stop: int) -> torch.Tensor:
        """Images start to stop - 1 as [n, 3, H, W] in [-1, 1]."""

    def describe(self) -> dict: ...


class Model:
    """A pipeline that draws the prompts of a protocol; image n has the seed `protocol.seed` + n, on any machine."""

    def __init__(self, source: str | os.PathLike, pipe: RATLIPPipeline, prompts: list[str], protocol: Protocol):
        self.source, self.pipe, self.prompts, self.seed = source, pipe, prompts, protocol.seed
        self.own_clip = FrozenCLIP(pipe.tokenizer, pipe.text_encoder, pipe.image_encoder, "of the pipeline")

    def __len__(self) -> int:
        return len(self.prompts)

    def show(self, start: int, stop: int) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(self.seed + index) for index in range(start, stop)]
        images = self.pipe(self.prompts[start:stop], generator=generators, output_type="pt").images
        return images.nan_to_num(0).clamp(0, 1) * 2 - 1

    def describe(self) -> dict:
        generator = self.pipe.generator
        return {
            "model": str(self.source),
            "weights_sha256": weights_sha256(generator),
            "clip_sha256": self.own_clip.describe()["weights_sha256"],
            "dtype": str(generator.dtype).removeprefix("torch."),
            "weights": "as saved: the trainer saves the averaged ones",
            "sample_size": generator.config.sample_size,
            "parameters": generator.num_parameters(),
        }


class Folder:
    """Images of any system. `manifest.jsonl` in the folder says which image is of which prompt, a line each with
    `file` and `prompt`, as `ratlip generate` and `ratlip evaluate --write_prompts` write it; without it, images are
    taken in the order of their names, and scores that need prompts are left out.

    Raises:
        UserError: for no images, images of several sizes, or a manifest that does not fit them.
    """

    own_clip = None

    def __init__(self, folder: str | os.PathLike, limit: int | None = None):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"--images {folder} is no folder")
        self.names, self.prompts = self._read_manifest()
        if limit is not None:
            self.names, self.prompts = self.names[:limit], self.prompts and self.prompts[:limit]
        if not self.names:
            raise UserError(f"--images {folder} holds no images ({', '.join(_SUFFIXES)})")

    def _read_manifest(self) -> tuple[list[str], list[str] | None]:
        manifest = self.folder / IMAGE_MANIFEST
        if not manifest.is_file():
            found = (path for path in self.folder.iterdir() if path.suffix.lower() in _SUFFIXES)
            return sorted(path.name for path in found if path.name != "grid.png"), None
        try:
            entries = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()]
            names, prompts = [entry["file"] for entry in entries], [entry["prompt"] for entry in entries]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{manifest} must have a line with 'file' and 'prompt' for each image: {error}") from error
        if missing := [name for name in names if not (self.folder / name).is_file()]:
            raise UserError(f"{len(missing)} images of {manifest} are missing, for example {missing[0]}")
        return names, prompts

    def __len__(self) -> int:
        return len(self.names)

    def show(self, start: int, stop: int) -> torch.Tensor:
        images = [self._read(name) for name in self.names[start:stop]]
        if len(sizes := {image.shape for image in images}) > 1:
            shown = ", ".join(sorted(f"{width} x {height}" for height, width, _ in sizes))
            raise UserError(f"the images in {self.folder} must have one size; there are {shown}")
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1)

    def _read(self, name: str) -> np.ndarray:
        try:
            return np.array(to_rgb(decode((self.folder / name).read_bytes())))
        except BadImage as error:
            raise UserError(f"{self.folder / name}: {error}") from error

    def describe(self) -> dict:
        return {"images": str(self.folder)}


class FreshRenders:
    """Other renders of the birds that a protocol's prompts speak of: what a perfect model would draw."""

    own_clip = None

    def __init__(self, material: Material):
        if not isinstance(material.real, Renders):
            raise UserError(f"--model {REAL_RENDERS} goes with the protocol of the synthetic birds only")
        self.prompts, self.renders = material.prompts, replace(material.real, seed=1)

    def __len__(self) -> int:
        return len(self.prompts)

    def show(self, start: int, stop: int) -> torch.Tensor:
        return self.renders.show(start, stop)

    def describe(self) -> dict:
        return {"model": "fresh renders of the same birds"}
