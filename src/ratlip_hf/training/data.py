"""Caption corpora as training batches. Order, caption, flip and noise are functions of (seed, global sample index),
so they depend neither on how the batch is cut over processes nor on where a run was interrupted."""

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..data.block_jpeg import open_picture
from ..data.captions import class_caption
from ..data.corpus import Report
from ..data.embeddings import EmbeddingTable
from ..data.images import BadImage
from ..data.rows import Columns, MapRows, MixedRows, Row, Rows, ShardRows, find_shards
from ..data.sources.flowers import read_class_names
from ..data.transforms import frame
from ..frozen_clip import FrozenCLIP
from ..utils.errors import UserError
from .caption_embeddings import caption_embeddings
from .config import TrainingConfig

logger = logging.getLogger(__name__)

SYNTHETIC_BIRDS = "synthetic-birds"
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
    """What is decided of a global sample before its picture is decoded: `drawn` is the number of the caption, `rng`
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
        """Whether the caption of one fits the picture of the other: the same picture, or the same words."""
        same_picture = (self.row.part, self.row.place) == (other.row.part, other.row.place)
        return same_picture or self.caption == other.caption


class CaptionedImages:
    """An endless, reproducible sequence of training samples.

    Args:
        rows: what to show in which order.
        config: how pictures are cropped and flipped, and the seed.
        size: side of the pictures.
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
        pictures = np.stack([self._pixels(visit) for visit in shown])
        return Batch(
            list(indices),
            torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1),
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
        """The next sample whose caption does not fit this one's picture: a function of the index, like the sample."""
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
        row = visit.row
        rng = visit.rng if self.config.random_crop else None
        with naming_damage(row):
            return frame(open_picture(row.content), self.size, row.box, self.config.resize, rng, visit.flip)


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


@contextlib.contextmanager
def naming_damage(row: Row) -> Iterator[None]:
    """Turn what is wrong with a row's picture into a UserError that says where the picture is."""
    try:
        yield
    except BadImage as error:
        raise UserError(f"row {row.place} of the data: {error} (see ratlip data prepare)") from error


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
    if source == SYNTHETIC_BIRDS:
        from ..synthetic_birds.dataset import make_dataset

        drawn = make_dataset("train", config.max_train_samples or 20_000, seed=config.seed, image_size=size)
        return MapRows(drawn, columns, config.seed)
    try:
        if config.streaming:
            return ShardRows(find_shards(source), columns, config.seed, config.stream_window)
        dataset = datasets.load_dataset(source, split="train")
    except UserError:
        raise
    except Exception as error:  # datasets raises many kinds; each means that the name or folder is wrong
        raise UserError(f"cannot load the data {source!r}: {str(error).splitlines()[0]}") from error
    if config.max_train_samples is not None:
        dataset = dataset.select(range(min(config.max_train_samples, len(dataset))))
    return MapRows(_with_captions(dataset, source, config), columns, config.seed)


def _with_captions(dataset: datasets.Dataset, source: str, config: TrainingConfig) -> datasets.Dataset:
    """The data set itself, or, if it has classes instead of captions, with sentences made of the classes' names."""
    label = dataset.features.get("label")
    if config.caption_column in dataset.column_names or not isinstance(label, datasets.ClassLabel):
        return dataset
    names = read_class_names(Path(source), Report())
    captions = [class_caption(names.get(name, name)) for name in label.names]
    logger.info("no captions in %s: sentences are made of class names, such as %r", source, captions[0])
    return dataset.add_column(config.caption_column, [captions[index] for index in dataset["label"]])
