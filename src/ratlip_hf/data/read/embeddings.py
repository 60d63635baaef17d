"""Text embeddings computed once, in folders `text_embeddings/`: next to the shards of a dataset, or in a run's folder.
Each is bound to one CLIP and to its captions; embeddings of another CLIP or of other captions are never used."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
from tqdm import tqdm

from ...utils.errors import UserError
from ...utils.files import atomic_directory, read_json
from ..manifest import read_manifest, require_recorded_shards

FOLDER = "text_embeddings"
_EMBEDS, _STARTS, _FACTS = "embeds.npy", "starts.npy", "facts.json"
_BATCH = 256


def embed_captions(folder: Path, encode: Callable[[list[str]], torch.Tensor], clip_sha256: str) -> list[Path]:
    """Encode all captions of a prepared dataset and return the folders written, one per split. `encode` turns N
    captions into embeddings [N, D]; `clip_sha256` is the fingerprint of the CLIP behind it."""
    manifest = read_manifest(folder)
    require_recorded_shards(folder)  # the hashes that are noted must be those of what is encoded
    written = []
    for split, entry in manifest["splits"].items():
        per_row = [captions for file in entry["files"] for captions in _captions(folder / file["path"])]
        facts = _facts_of_shards(manifest, split, clip_sha256)
        written.append(_write(_place(folder, split, clip_sha256), per_row, encode, facts, split))
    return written


class OtherFacts(Exception):
    """The embeddings of a folder belong to another CLIP or to other captions."""


class EmbeddingTable:
    """Embeddings of every caption of every row, in one folder, read from disk as they are needed. Raises OSError or
    ValueError where there are none or damaged ones, OtherFacts where `facts` are not what is written with them."""

    def __init__(self, place: Path, facts: dict):
        if read_json(place / _FACTS) != facts:
            raise OtherFacts(place)
        self._open(place)

    def _open(self, place: Path) -> None:
        self._place = place
        try:
            self._embeds = np.load(place / _EMBEDS, mmap_mode="r", allow_pickle=False)
            self._starts = np.load(place / _STARTS, allow_pickle=False)
        except EOFError as error:  # what numpy calls an empty file
            raise ValueError(f"{place} holds an empty file") from error
        if self._embeds.ndim != 2 or self._starts.ndim != 1 or list(self._starts[-1:]) != [len(self._embeds)]:
            raise ValueError(f"{place} holds arrays that do not belong together")

    def __getstate__(self) -> Path:
        """A worker process gets the place and opens the files itself, instead of a copy of the whole table."""
        return self._place

    def __setstate__(self, place: Path) -> None:
        self._open(place)

    def of(self, place: int, caption: int) -> torch.Tensor:
        """Embedding [D] of a row, counted in the order of storage, and one of its captions."""
        return torch.from_numpy(np.array(self._embeds[self._starts[place] + caption]))


class StoredEmbeddings(EmbeddingTable):
    """Embeddings that `ratlip data embed` has left next to the shards of a split. Raises UserError when there are none
    of this CLIP, or the shards have changed since."""

    def __init__(self, folder: Path, split: str, clip_sha256: str):
        place = _place(folder, split, clip_sha256)
        try:
            super().__init__(place, _facts_of_shards(read_manifest(folder), split, clip_sha256))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} has no embeddings of this CLIP for {split}: run ratlip data embed") from error
        except OtherFacts as error:
            raise UserError(f"{place} belongs to other shards or another CLIP: run ratlip data embed again") from error
        require_recorded_shards(folder, [split])


def remembered_embeddings(
    place: Path, per_row: list[list[str]], encode: Callable[[list[str]], torch.Tensor], clip_sha256: str
) -> EmbeddingTable:
    """Embeddings of the captions of every row: those kept in the folder `place`, or, if they do not fit, computed (see
    [`embed_captions`]) and kept instead. Of several processes with one file system, the first must finish before the
    others start."""
    captions_sha256 = hashlib.sha256(json.dumps(per_row).encode()).hexdigest()
    facts = {"clip_sha256": clip_sha256, "captions_sha256": captions_sha256}
    try:
        return EmbeddingTable(place, facts)
    except (OSError, ValueError, OtherFacts):
        return EmbeddingTable(_write(place, per_row, encode, facts, "the dataset"), facts)


def _write(place: Path, per_row: list[list[str]], encode: Callable, facts: dict, what: str) -> Path:
    with atomic_directory(place) as target:
        _write_embeds(target / _EMBEDS, [caption for captions in per_row for caption in captions], encode, what)
        np.save(target / _STARTS, np.cumsum([0, *map(len, per_row)], dtype=np.int64))
        (target / _FACTS).write_text(json.dumps(facts, indent=2) + "\n")
    return place


def _facts_of_shards(manifest: dict, split: str, clip_sha256: str) -> dict:
    files = manifest["splits"].get(split, {"files": []})["files"]
    return {"clip_sha256": clip_sha256, "shards_sha256": [file["sha256"] for file in files]}


def _place(folder: Path, split: str, clip_sha256: str) -> Path:
    return folder / FOLDER / f"{split}-{clip_sha256[:12]}"


def _captions(shard: Path) -> Iterator[list[str]]:
    try:
        rows = pyarrow.parquet.read_table(shard, columns=["captions"]).column(0).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"cannot read the shard {shard}") from error
    for number, captions in enumerate(rows):
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise UserError(f"row {number} of the shard {shard} has no list of captions (see ratlip data check)")
        yield captions


def _write_embeds(path: Path, captions: list[str], encode: Callable, what: str) -> None:
    """Batch after batch, as those of a large dataset need not fit into memory; not through a memory map, which on a
    full disk kills the process instead of raising OSError."""
    with path.open("wb") as file:
        for start in tqdm(range(0, len(captions), _BATCH), desc=f"captions of {what}", disable=None):
            batch = encode(captions[start : start + _BATCH]).float().cpu().numpy()
            if not start:
                shape = (len(captions), batch.shape[1])
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(batch, "<f4").tobytes())
