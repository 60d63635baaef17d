"""Where a run's sentence embeddings come from: `ratlip data embed`, or the run itself, once, before its first step.
Caption corpora as training batches. Order, caption, flip and noise are functions of (seed, global sample index),"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..bundled import find_world
from ..clip import FrozenCLIP
from ..data.manifest import MANIFEST
from ..data.read.embeddings import FOLDER, EmbeddingTable, StoredEmbeddings, remembered_embeddings
from ..data.read.rows import (
    Columns,
    MapRows,
    MixedRows,
    Row,
    Rows,
    ShardRows,
    find_shards,
    load_captioned,
    row_pixels,
    unreadable,
)
from ..utils.errors import UserError
from .config import TrainingConfig


def caption_embeddings(
    config: TrainingConfig, sources: list[str], parts: list[Rows], clip: FrozenCLIP | None
) -> list[EmbeddingTable] | None:
    """Embeddings of all captions, one table per part of a mixture; None without `text_embeddings` or in a dry run.

    Stored ones of this CLIP are taken; of other map-style data the captions are encoded here and kept in
    `<output_dir>/text_embeddings/<part>`, where a resumed run finds them. Of several processes the main one must come
    first, for example under `accelerator.main_process_first()`.

    Args:
        config: `text_embeddings`, `dry_run`, `caption_column` and `output_dir` are read.
        sources: names or folders of the parts.
        parts: their rows.
        clip: the CLIP that training uses; may be None where nothing is asked for.

    Raises:
        UserError: for streamed data without stored embeddings.
    """
    if not config.text_embeddings:
        return None
    fingerprint = clip.describe()["weights_sha256"]
    tables = [
        _table(config, index, source, rows, clip, fingerprint)
        for index, (source, rows) in enumerate(zip(sources, parts, strict=True))
    ]
    return None if config.dry_run else tables


def _table(
    config: TrainingConfig, index: int, source: str, rows: Rows, clip: FrozenCLIP, fingerprint: str
) -> EmbeddingTable | None:
    streamed = isinstance(rows, ShardRows)
    # Stored ones are always those of the column that preparing writes.
    if (Path(source) / MANIFEST).is_file() and config.caption_column == Columns.captions:
        try:
            return StoredEmbeddings(Path(source), "train", fingerprint)
        except UserError:
            if streamed:
                raise
    if streamed:
        raise UserError(
            f"the captions of {source} cannot be embedded while streaming: make a folder of it with ratlip data "
            "prepare, run ratlip data embed there and train on it, or leave streaming or text_embeddings out"
        )
    if config.dry_run:  # leaves nothing
        return None
    place = Path(config.output_dir) / FOLDER / str(index)
    return remembered_embeddings(place, list(rows.captions(len(rows))), clip.encode, fingerprint)


_SAMPLE = 2  # random stream of what is drawn per sample; `rows` and `augmentation` have their own
_LOOK_AHEAD = 1000  # samples among which another caption must be found


@dataclass
class Batch:
    """What a step needs to know of B samples.

    Args:
        indices: global sample indices [B].
        images: real images [B, 3, S, S] in [-1, 1].
        captions: one per image.
        mismatched: a caption of another image for each.
        noise: z [B, Z] for the generated images.
        prompt_embeds: embeddings [B, D] of `captions` where they were computed beforehand.
        mismatched_embeds: the same of `mismatched`.
    """

    indices: list[int]
    images: torch.Tensor
    captions: list[str]
    mismatched: list[str]
    noise: torch.Tensor
    prompt_embeds: torch.Tensor | None = None
    mismatched_embeds: torch.Tensor | None = None

    def pin_memory(self) -> "Batch":
        """The same with its tensors in page-locked memory, from which they are copied to a GPU faster."""
        pinned = {name: x.pin_memory() for name, x in vars(self).items() if isinstance(x, torch.Tensor)}
        return dataclasses.replace(self, **pinned)


class Visit(NamedTuple):
    """What is decided of a global sample before its image is decoded: `drawn` is the number of the caption, `rng`
    places the crop."""

    row: Row
    drawn: int
    flip: bool
    noise: np.ndarray
    rng: np.random.Generator

    @property
    def caption(self) -> str:
        return self.row.captions[self.drawn]

    def matches(self, other: "Visit") -> bool:
        """Whether the caption of one fits the image of the other: the same image, or the same words."""
        same_image = (self.row.part, self.row.place) == (other.row.part, other.row.place)
        return same_image or self.caption == other.caption


class CaptionedImages:
    """An endless, reproducible sequence of training samples.

    Args:
        rows: what to show in which order.
        config: how images are cropped and flipped, and the seed.
        size: side of the images.
        noise_dim: width of the noise.
        embeddings: embeddings of the rows' captions, one table per part of a mixture.
    """

    def __init__(
        self,
        rows: Rows,
        config: TrainingConfig,
        size: int,
        noise_dim: int,
        embeddings: list[EmbeddingTable] | None = None,
    ):
        self.rows, self.config, self.size, self.noise_dim = rows, config, size, noise_dim
        self.embeddings = embeddings

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Micro-batches of this process from global sample `start` on, without end.

        A micro-batch of all processes together is one run of consecutive samples, of which each takes its share.
        """
        size, workers = self.config.train_batch_size, self.config.dataloader_num_workers
        firsts = itertools.count(start + rank * size, world * size)
        indices = (list(range(first, first + size)) for first in firsts)
        loader = DataLoader(
            _Batches(self),
            sampler=indices,
            batch_size=None,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
        )
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch

    def batch(self, indices: Sequence[int]) -> Batch:
        """The samples with these global indices."""
        visits: dict[int, Visit] = {}
        shown = [self._visit(index, visits) for index in indices]
        others = [self._next_other(index, visits) for index in indices]
        images = np.stack([self._pixels(visit) for visit in shown])
        return Batch(
            list(indices),
            torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1),
            [visit.caption for visit in shown],
            [visit.caption for visit in others],
            torch.from_numpy(np.stack([visit.noise for visit in shown])),
            self._embeds(shown),
            self._embeds(others),
        )

    def first_captions(self, count: int) -> list[str]:
        """One caption of each of the first `count` rows: for statistics and sample grids."""
        return [captions[0] for captions in self.rows.captions(count)]

    def _visit(self, index: int, known: dict[int, Visit]) -> Visit:
        if index not in known:
            row = self.rows.row(index)
            rng = np.random.default_rng((self.config.seed, _SAMPLE, index))
            flip = bool(rng.integers(2)) and self.config.random_flip
            drawn = int(rng.integers(len(row.captions)))
            noise = rng.standard_normal(self.noise_dim, dtype=np.float32)
            known[index] = Visit(row, drawn, flip, noise, rng)
        return known[index]

    def _next_other(self, index: int, known: dict[int, Visit]) -> Visit:
        """The next sample whose caption does not fit this one's image: a function of the index, like the sample."""
        here = self._visit(index, known)
        for ahead in range(1, _LOOK_AHEAD + 1):
            other = self._visit(index + ahead, known)
            if not other.matches(here):
                return other
        raise UserError(f"mismatched pairs need different captions, but the next {_LOOK_AHEAD} are {here.caption!r}")

    def _embeds(self, visits: list[Visit]) -> torch.Tensor | None:
        if not self.embeddings:
            return None
        return torch.stack([self.embeddings[visit.row.part].of(visit.row.place, visit.drawn) for visit in visits])

    def _pixels(self, visit: Visit) -> np.ndarray:
        rng = visit.rng if self.config.random_crop else None
        return row_pixels(visit.row, self.size, self.config.resize, rng, visit.flip)


class _Batches(Dataset):
    """What worker processes of a DataLoader call: `batch`, by a list of indices.

    A mistake of the user is returned: raised in a worker it would arrive wrapped in a traceback.
    """

    def __init__(self, data: CaptionedImages):
        self.data = data

    def __getitem__(self, indices: list[int]) -> Batch | UserError:
        try:
            return self.data.batch(indices)
        except UserError as error:
            return error


def load_training_data(
    config: TrainingConfig, size: int, noise_dim: int, clip: FrozenCLIP | None = None
) -> CaptionedImages:
    """The corpus or the mixture named by the configuration.

    `clip` is needed for text embeddings only, which are read or made with it (see [`caption_embeddings`]).

    Raises:
        UserError: when data or embeddings cannot be loaded.
    """
    weights = config.data_mixture or {config.dataset_name or config.train_data_dir: 1.0}
    parts = [_load_rows(source, config, size) for source in weights]
    rows = parts[0] if len(parts) == 1 else MixedRows(parts, list(weights.values()), config.seed)
    return CaptionedImages(rows, config, size, noise_dim, caption_embeddings(config, list(weights), parts, clip))


def _load_rows(source: str, config: TrainingConfig, size: int) -> Rows:
    box = config.box_column if config.crop_to_box else None
    columns = Columns(config.image_column, config.caption_column, box)
    if world := find_world(source):
        rendered = world.load_training_dataset(config.max_train_samples, config.seed, size)
        return MapRows(rendered, columns, config.seed)
    if config.streaming:
        try:
            return ShardRows(find_shards(source), columns, config.seed, config.stream_window)
        except UserError:
            raise
        except Exception as error:
            raise unreadable(source, error) from error
    dataset = load_captioned(source, "train", config.caption_column, config.max_train_samples)
    return MapRows(dataset, columns, config.seed)
