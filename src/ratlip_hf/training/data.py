"""Caption corpora as training batches. Order, caption, flip and noise are functions of (seed, global sample index),
so they depend neither on how the batch is cut over processes nor on where a run was interrupted."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from ..utils.errors import UserError
from .config import TrainingConfig

SYNTHETIC_BIRDS = "synthetic-birds"
_ORDER, _SAMPLE = 1, 2  # separate random streams


@dataclass
class Batch:
    """Real images [B, 3, S, S] in [-1, 1], one caption each, and the noise [B, Z] for the generated ones."""

    images: torch.Tensor
    captions: list[str]
    noise: torch.Tensor


class CaptionedImages:
    """An endless, reproducible sequence of training samples from a map-style data set.

    Args:
        dataset: a `datasets.Dataset` with an image column and a caption column.
        config: column names, flip and seed.
        size: side of the pictures.
        noise_dim: width of the noise.

    Raises:
        UserError: for an empty data set or missing columns.
    """

    def __init__(self, dataset: datasets.Dataset, config: TrainingConfig, size: int, noise_dim: int):
        for column in (config.image_column, config.caption_column):
            if column not in dataset.column_names:
                raise UserError(f"the data has no column {column!r}; there are {', '.join(dataset.column_names)}")
        if not len(dataset):
            raise UserError("the data set is empty")
        self.images = dataset.select_columns([config.image_column])
        self.captions = dataset[config.caption_column]
        self.config, self.size, self.noise_dim = config, size, noise_dim
        self._order = lru_cache(maxsize=2)(self._permutation)

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Batches of this process from global sample `start` on, without end."""
        size = self.config.train_batch_size
        while True:
            first = start + rank * size
            yield self.batch(range(first, first + size))
            start += world * size

    def batch(self, indices: range | list[int]) -> Batch:
        """The samples with these global indices."""
        samples = [self.sample(index) for index in indices]
        images, captions, noise = zip(*samples, strict=True)
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return Batch(pixels.float().div_(127.5).sub_(1), list(captions), torch.stack(noise))

    def sample(self, index: int) -> tuple[np.ndarray, str, torch.Tensor]:
        """Pixels [S, S, 3] uint8, one caption, noise [Z] of the sample with this global index."""
        epoch, place = divmod(index, len(self.images))
        row = int(self._order(epoch)[place])
        rng = np.random.default_rng((self.config.seed, _SAMPLE, index))
        flip = bool(rng.integers(2)) and self.config.random_flip
        captions = self.captions[row]
        captions = [captions] if isinstance(captions, str) else captions
        caption = captions[int(rng.integers(len(captions)))]
        noise = torch.from_numpy(rng.standard_normal(self.noise_dim, dtype=np.float32))
        return self._pixels(row, flip), caption, noise

    def first_captions(self, count: int) -> list[str]:
        """One caption of each of the first `count` rows: for statistics and sample grids."""
        rows = self.captions[:count]
        return [row if isinstance(row, str) else row[0] for row in rows]

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.config.seed, _ORDER, epoch)).permutation(len(self.images))

    def _pixels(self, row: int, flip: bool) -> np.ndarray:
        image = self.images[row][self.config.image_column].convert("RGB")
        if image.size != (self.size, self.size):
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            box = (left, top, left + side, top + side)
            image = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
        pixels = np.asarray(image)
        return pixels[:, ::-1] if flip else pixels


def load_training_data(config: TrainingConfig, size: int, noise_dim: int) -> CaptionedImages:
    """The corpus named by the configuration. Raises UserError when it cannot be loaded."""
    if config.dataset_name == SYNTHETIC_BIRDS:
        from ..synthetic_birds.dataset import make_dataset

        dataset = make_dataset("train", config.max_train_samples or 20_000, seed=config.seed, image_size=size)
    else:
        if config.train_data_dir is not None and not Path(config.train_data_dir).is_dir():
            raise UserError(f"train_data_dir {config.train_data_dir} is not a folder")
        try:
            dataset = datasets.load_dataset(config.dataset_name or config.train_data_dir, split="train")
        except Exception as error:  # datasets raises many kinds; each means that the name or folder is wrong
            where = config.dataset_name or config.train_data_dir
            raise UserError(f"cannot load the data {where!r}: {str(error).splitlines()[0]}") from error
        if config.max_train_samples is not None:
            dataset = dataset.select(range(min(config.max_train_samples, len(dataset))))
    return CaptionedImages(dataset, config, size, noise_dim)
