"""Caption corpora as training batches. Order, caption, flip and noise are functions of (seed, global sample index),
so they depend neither on how the batch is cut over processes nor on where a run was interrupted."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import torch

from ..data.block_jpeg import open_picture
from ..data.captions import class_caption
from ..data.corpus import Report
from ..data.embeddings import StoredEmbeddings
from ..data.images import BadImage
from ..data.rows import Columns, MapRows, MixedRows, Row, Rows, ShardRows, find_shards
from ..data.sources.flowers import read_class_names
from ..data.transforms import frame
from ..frozen_clip import FrozenCLIP
from ..utils.errors import UserError
from .config import TrainingConfig

logger = logging.getLogger(__name__)

SYNTHETIC_BIRDS = "synthetic-birds"
_SAMPLE = 2  # random stream of what is drawn per sample; `rows` has its own


@dataclass
class Batch:
    """Real images [B, 3, S, S] in [-1, 1], one caption each, and the noise [B, Z] for the generated ones.
    `prompt_embeds` are the captions' embeddings [B, D] where they were computed beforehand."""

    images: torch.Tensor
    captions: list[str]
    noise: torch.Tensor
    prompt_embeds: torch.Tensor | None = None


class Sample(NamedTuple):
    """Pixels [S, S, 3] uint8, one caption, noise [Z], and the caption's embedding [D] if it is stored."""

    pixels: np.ndarray
    caption: str
    noise: torch.Tensor
    prompt_embeds: torch.Tensor | None


class CaptionedImages:
    """An endless, reproducible sequence of training samples.

    Args:
        rows: what to show in which order.
        config: how pictures are cropped and flipped, and the seed.
        size: side of the pictures.
        noise_dim: width of the noise.
        embeddings: stored embeddings of the rows' captions, one per part of a mixture.
    """

    def __init__(
        self,
        rows: Rows,
        config: TrainingConfig,
        size: int,
        noise_dim: int,
        embeddings: list[StoredEmbeddings] | None = None,
    ):
        self.rows, self.config, self.size, self.noise_dim = rows, config, size, noise_dim
        self.embeddings = embeddings

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Batches of this process from global sample `start` on, without end."""
        size = self.config.train_batch_size
        while True:
            first = start + rank * size
            yield self.batch(range(first, first + size))
            start += world * size

    def batch(self, indices: range | list[int]) -> Batch:
        """The samples with these global indices."""
        images, captions, noise, embeds = zip(*map(self.sample, indices), strict=True)
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        prompt_embeds = torch.stack(embeds) if self.embeddings else None
        return Batch(pixels, list(captions), torch.stack(noise), prompt_embeds)

    def sample(self, index: int) -> Sample:
        """The sample with this global index."""
        row = self.rows.row(index)
        rng = np.random.default_rng((self.config.seed, _SAMPLE, index))
        flip = bool(rng.integers(2)) and self.config.random_flip
        drawn = int(rng.integers(len(row.captions)))
        noise = torch.from_numpy(rng.standard_normal(self.noise_dim, dtype=np.float32))
        pixels = self._pixels(row, rng, flip)
        embeds = self.embeddings[row.part].of(row.place, drawn) if self.embeddings else None
        return Sample(pixels, row.captions[drawn], noise, embeds)

    def first_captions(self, count: int) -> list[str]:
        """One caption of each of the first `count` rows: for statistics and sample grids."""
        return [captions[0] for captions in self.rows.captions(count)]

    def _pixels(self, row: Row, rng: np.random.Generator, flip: bool) -> np.ndarray:
        rng = rng if self.config.random_crop else None
        try:
            return frame(open_picture(row.content), self.size, row.box, self.config.resize, rng, flip)
        except BadImage as error:
            raise UserError(f"row {row.place} of the data: {error} (see ratlip data prepare)") from error


def load_training_data(
    config: TrainingConfig, size: int, noise_dim: int, clip: FrozenCLIP | None = None
) -> CaptionedImages:
    """The corpus or the mixture named by the configuration.

    `clip` is needed for stored text embeddings only, which must be its own.

    Raises:
        UserError: when data or embeddings cannot be loaded.
    """
    weights = config.data_mixture or {config.dataset_name or config.train_data_dir: 1.0}
    parts = [_load_rows(source, config, size) for source in weights]
    rows = parts[0] if len(parts) == 1 else MixedRows(parts, list(weights.values()), config.seed)
    embeddings = None
    if config.text_embeddings:
        fingerprint = clip.describe()["weights_sha256"]
        embeddings = [StoredEmbeddings(Path(source), "train", fingerprint) for source in weights]
    return CaptionedImages(rows, config, size, noise_dim, embeddings)


def _load_rows(source: str, config: TrainingConfig, size: int) -> Rows:
    box = config.box_column if config.crop_to_box else None
    columns = Columns(config.image_column, config.caption_column, box)
    if source == SYNTHETIC_BIRDS:
        from ..synthetic_birds.dataset import make_dataset

        drawn = make_dataset("train", config.max_train_samples or 20_000, seed=config.seed, image_size=size)
        return MapRows(drawn, columns, config.seed)
    if source == config.train_data_dir and not Path(source).is_dir():
        raise UserError(f"train_data_dir {source} is not a folder")
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
