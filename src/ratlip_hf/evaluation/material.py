"""What a protocol shows: the sentences to draw, in order, and the real pictures beside them.
Owns how both follow from a protocol and a data set; pictures are read when they are asked for."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol as Interface

import numpy as np
import torch

from ..data.loading import load_captioned, row_pixels
from ..data.rows import Columns, MapRows
from ..synthetic_birds.attributes import FIELD_VOCABULARIES
from ..utils.errors import UserError
from .protocols import SYNTHETIC_BIRDS, Protocol

FIELDS = tuple(FIELD_VOCABULARIES)
UNNAMED = -1  # in place of a word that a prompt leaves open


class Pictures(Interface):
    """Pictures by number. `digest(i)` is a hash of what is stored of picture i, `first(n)` the first n of them."""

    def __len__(self) -> int: ...

    def first(self, count: int) -> "Pictures": ...

    def show(self, start: int, stop: int) -> torch.Tensor:
        """Pictures start to stop - 1 as [n, 3, S, S] in [-1, 1]."""

    def digest(self, index: int) -> bytes: ...


@dataclass(frozen=True)
class Material:
    """Attributes:
    prompts: sentence n is drawn as picture n.
    clusters: number of the picture (or held-out prompt) that sentence n speaks of; the pictures of one cluster
        are no independent evidence.
    real: the real pictures.
    real_clusters: the same for them.
    facts: of the data, for a record.
    wanted: word [N][field] that each sentence asks for, in the order of `FIELDS`, or `UNNAMED`; only for birds
        whose words are known.
    """

    prompts: list[str]
    clusters: list[int]
    real: Pictures
    real_clusters: list[int]
    facts: dict
    wanted: list[list[int]] | None = None

    def first(self, count: int | None) -> "Material":
        """The same with the first `count` prompts and real pictures."""
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
    """The prompts and pictures of a protocol.

    Args:
        protocol: which one.
        data: "synthetic-birds", the name of a data set, or a folder from `ratlip data prepare`.
        split: of a data set.

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
        from ..synthetic_birds.rendering import first_render_seed, render_pixels

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
    """(picture, caption) pairs: the first captions of all pictures, then the second ones, and so on."""
    passes = max(map(len, captions))
    return [
        (place, which) for which in range(passes) for place in range(len(captions)) if which < len(captions[place])
    ]


def _random(captions: list[list[str]], protocol: Protocol) -> list[tuple[int, int]]:
    rng, drawn = np.random.default_rng(protocol.seed), []
    whole = len(captions) // protocol.whole_batches * protocol.whole_batches
    if not whole:
        raise UserError(f"the protocol {protocol.name!r} needs at least {protocol.whole_batches} pictures")
    for _ in range(protocol.passes):
        order = rng.permutation(len(captions))[:whole].tolist()
        drawn += [(place, int(rng.integers(len(captions[place])))) for place in order]
    return drawn


@dataclass(frozen=True)
class Stored:
    """The pictures of a data set in the order of storage, cut to their boxes, scaled, and cut to squares."""

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
