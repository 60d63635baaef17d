"""Sentence embeddings computed once: files beside the shards, tied to one CLIP and one state of the corpus.
Owns the folder `text_embeddings/`; embeddings of another CLIP or of other captions are never taken by mistake."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
from tqdm import tqdm

from ..utils.errors import UserError
from ..utils.files import atomic_directory
from .manifest import read_manifest

FOLDER = "text_embeddings"
_EMBEDS, _STARTS, _FACTS = "embeds.npy", "starts.npy", "facts.json"
_BATCH = 256


def embed_captions(folder: Path, encode: Callable[[list[str]], torch.Tensor], clip_sha256: str) -> list[Path]:
    """Encode all captions of a prepared corpus and return the folders written, one per split.

    Args:
        folder: the prepared corpus.
        encode: sentences to embeddings [N, D].
        clip_sha256: fingerprint of the CLIP behind `encode`.
    """
    manifest = read_manifest(folder)
    written = []
    for split, entry in manifest["splits"].items():
        per_row = [captions for file in entry["files"] for captions in _captions(folder / file["path"])]
        starts = np.cumsum([0, *map(len, per_row)], dtype=np.int64)
        sentences = [caption for captions in per_row for caption in captions]
        with atomic_directory(_place(folder, split, clip_sha256)) as target:
            _write_embeds(target / _EMBEDS, sentences, encode, split)
            np.save(target / _STARTS, starts)
            facts = {"clip_sha256": clip_sha256, "shards_sha256": _shards_of(manifest, split)}
            (target / _FACTS).write_text(json.dumps(facts, indent=2) + "\n")
        written.append(_place(folder, split, clip_sha256))
    return written


class StoredEmbeddings:
    """Embeddings of a split, read from disk as they are needed.

    Args:
        folder: the prepared corpus.
        split: for example "train".
        clip_sha256: fingerprint of the CLIP that training uses.

    Raises:
        UserError: when there are none for this CLIP, or the shards have changed since.
    """

    def __init__(self, folder: Path, split: str, clip_sha256: str):
        place = _place(folder, split, clip_sha256)
        try:
            facts = json.loads((place / _FACTS).read_text())
            self._embeds = np.load(place / _EMBEDS, mmap_mode="r", allow_pickle=False)
            self._starts = np.load(place / _STARTS, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} has no embeddings of this CLIP for {split}: run ratlip data embed") from error
        if facts != {"clip_sha256": clip_sha256, "shards_sha256": _shards_of(read_manifest(folder), split)}:
            raise UserError(f"{place} belongs to other shards or another CLIP: run ratlip data embed again")

    def of(self, place: int, caption: int) -> torch.Tensor:
        """Embedding [D] of a row, counted in the order of storage, and one of its captions."""
        return torch.from_numpy(np.array(self._embeds[self._starts[place] + caption]))


def _place(folder: Path, split: str, clip_sha256: str) -> Path:
    return folder / FOLDER / f"{split}-{clip_sha256[:12]}"


def _shards_of(manifest: dict, split: str) -> list[str]:
    return [file["sha256"] for file in manifest["splits"].get(split, {"files": []})["files"]]


def _captions(shard: Path) -> Iterator[list[str]]:
    try:
        yield from pyarrow.parquet.read_table(shard, columns=["captions"]).column(0).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"cannot read the shard {shard}") from error


def _write_embeds(path: Path, sentences: list[str], encode: Callable, split: str) -> None:
    """Through a memory map: a large corpus' embeddings need not fit into memory."""
    embeds = None
    for start in tqdm(range(0, len(sentences), _BATCH), desc=f"captions of {split}", disable=None):
        batch = encode(sentences[start : start + _BATCH]).float().cpu().numpy()
        if embeds is None:
            shape = (len(sentences), batch.shape[1])
            embeds = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        embeds[start : start + len(batch)] = batch
    embeds.flush()
