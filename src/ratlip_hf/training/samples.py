"""From rows of a dataset to the inputs of a step: `Row` (stored), `Sample` (decided), `StepInputs` (ready to use).
Order, caption, mismatched caption, flip, crop and noise are functions of (seed, global sample index) and, where shards
are streamed, of the number of lanes, nothing else."""

import dataclasses
import itertools
import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..bundled import find_world
from ..clip import FrozenCLIP
from ..data.manifest import MANIFEST
from ..data.read import rows as stored
from ..data.read.embeddings import FOLDER, EmbeddingTable, StoredEmbeddings, remembered_embeddings
from ..data.read.rows import Row, Rows, ShardRows
from ..utils.errors import UserError
from .config import TrainingConfig
from .ending import ignore_signals

logger = logging.getLogger(__name__)

_SAMPLE = 2  # random stream of what is decided per sample; `rows` and `augmentation` have their own
_LOOK_AHEAD = 1000  # samples among which a mismatched caption must be found


@dataclass
class StepInputs:
    """A micro-batch of B samples, made by a worker of the loader; `step.to_device` adds missing embeddings."""

    images: torch.Tensor  # real ones [B, 3, S, S] in [-1, 1]
    noise: torch.Tensor  # z [B, Z] for the generated ones
    prompt_embeds: torch.Tensor | None  # of the captions [B, D], not normalised; None until they are computed
    mismatched_embeds: torch.Tensor | None
    captions: Sequence[str] = ()
    mismatched_captions: Sequence[str] = ()  # a caption of another image for each
    indices: Sequence[int] = ()  # global ones, of which the augmentation is a function

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "StepInputs":
        """The same with every tensor changed."""
        changed = {name: change(value) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return dataclasses.replace(self, **changed)

    def pin_memory(self) -> "StepInputs":
        """Called by the loader: tensors in page-locked memory are copied to a GPU faster."""
        return self.map(torch.Tensor.pin_memory)


class Sample(NamedTuple):
    """What is decided of one global sample before its image is decoded."""

    row: Row  # the image, undecoded, with all its captions
    caption_index: int
    flip: bool
    noise: np.ndarray  # z [Z]
    rng: np.random.Generator  # places the crop when the image is decoded

    @property
    def caption(self) -> str:
        return self.row.captions[self.caption_index]


class CaptionedImages:
    """An endless, reproducible sequence of training samples, of images of side `size`.

    `embeddings` are those of the rows' captions, one table per part of a mixture.
    """

    def __init__(
        self, rows: Rows, config: TrainingConfig, size: int, noise_dim: int, embeddings: Sequence[EmbeddingTable] = ()
    ):
        self.rows, self.config, self.size, self.noise_dim = rows, config, size, noise_dim
        self.embeddings = embeddings

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[StepInputs]:
        """Micro-batches of this process from global sample `start` on, without end.

        A micro-batch of all processes together is one run of consecutive samples, of which sample i is process i mod
        `world`'s. If that divides the lanes, each lane has one process, and there one worker: workers make the samples
        of their lanes only, which are put together here. Otherwise the samples are the same, but several fetch a lane.
        """
        lanes, workers = self.rows.lanes, self.config.dataloader_num_workers
        if lanes % world and lanes > 1 and rank == 0:
            logger.warning("%d lanes of data are no multiple of %d processes: some fetch the same", lanes, world)
        shares = workers if workers and lanes > 1 else 1  # of a micro-batch, which the loader deals to workers in turn
        self.rows.release()  # before processes fork, and because they do the reading
        multiprocessing.set_forkserver_preload([__name__])  # from Python 3.14 on: imported once for all workers
        loader = DataLoader(
            self,
            sampler=self._shares(start, rank, world, shares),
            batch_size=None,
            num_workers=workers,
            pin_memory=torch.cuda.is_available() and shares == 1,
            worker_init_fn=ignore_signals,
        )
        pieces = []
        for piece in loader:
            if isinstance(piece, UserError):
                raise piece
            pieces.append(piece)
            if len(pieces) == shares:
                batch, pieces = _joined(pieces), []
                yield batch

    def _shares(self, start: int, rank: int, world: int, shares: int) -> Iterator[list[int]]:
        """Of one micro-batch after the other, the samples that each worker makes."""
        lanes, size = self.rows.lanes, world * self.config.train_batch_size
        for first in itertools.count(start, size):
            own = range(first + (rank - first) % world, first + size, world)
            for share in range(shares):
                yield [index for index in own if index % lanes // world % shares == share]

    def __getitem__(self, indices: Sequence[int]) -> StepInputs | UserError | None:
        """[`batch`] as workers of a loader call it: a user's mistake, raised there, would arrive in a traceback; None
        for no samples."""
        try:
            return self.batch(indices) if indices else None
        except UserError as error:
            return error

    def batch(self, indices: Sequence[int]) -> StepInputs:
        """The samples with these global indices, on the CPU."""
        known: dict[int, Sample] = {}
        samples = [self._sample(index, known) for index in indices]
        mismatched = [self._mismatched_sample(index, known) for index in indices]
        images = np.stack([self._pixels(sample) for sample in samples])
        return StepInputs(
            torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1),
            torch.from_numpy(np.stack([sample.noise for sample in samples])),
            self._stored_embeds(samples),
            self._stored_embeds(mismatched),
            [sample.caption for sample in samples],
            [sample.caption for sample in mismatched],
            list(indices),
        )

    def few(self, count: int) -> range:
        """`count` samples that are cheap to look at: of a large stream, of which many processes read some, those of
        one lane."""
        step = self.rows.lanes if len(self) > count * self.rows.lanes else 1
        return range(0, count * step, step)

    def first_captions(self, count: int) -> list[str]:
        """One caption of each of the first `count` rows: for statistics and sample grids."""
        return [captions[0] for captions in self.rows.captions(count)]

    def _sample(self, index: int, known: dict[int, Sample]) -> Sample:
        if index not in known:
            row = self.rows.row(index)
            # The order of these lines is part of what a seed means.
            rng = np.random.default_rng((self.config.seed, _SAMPLE, index))
            flip = bool(rng.integers(2)) and self.config.random_flip
            caption_index = int(rng.integers(len(row.captions)))
            noise = rng.standard_normal(self.noise_dim, dtype=np.float32)
            known[index] = Sample(row, caption_index, flip, noise, rng)
        return known[index]

    def _mismatched_sample(self, index: int, known: dict[int, Sample]) -> Sample:
        """The sample whose caption is the mismatched caption of sample `index`.

        It is the first sample after `index` in the same lane (of data in memory, in the global order) that shows
        another image (another row of the dataset) and has another caption (other words). So it is a function of seed
        and index, however a step is cut into micro-batches and processes, and nothing is fetched for it that the lane
        would not fetch; the released code takes the next sample of the same local batch, whatever it says.
        Raises UserError when none of the next 1,000 samples will do.
        """
        own = self._sample(index, known)
        lanes = self.rows.lanes
        for other_index in range(index + lanes, index + lanes + lanes * _LOOK_AHEAD, lanes):
            other = self._sample(other_index, known)
            same_image = (other.row.part, other.row.place) == (own.row.part, own.row.place)
            if not same_image and other.caption != own.caption:
                return other
        raise UserError(f"mismatched pairs need different captions, but the next {_LOOK_AHEAD} are {own.caption!r}")

    def _pixels(self, sample: Sample) -> np.ndarray:
        rng = sample.rng if self.config.random_crop else None
        return stored.row_pixels(sample.row, self.size, self.config.resize, rng, sample.flip)

    def _stored_embeds(self, samples: list[Sample]) -> torch.Tensor | None:
        if not self.embeddings:
            return None
        found = [self.embeddings[each.row.part].of(each.row.place, each.caption_index) for each in samples]
        return torch.stack(found)


def _joined(pieces: Sequence[StepInputs | None]) -> StepInputs:
    """One micro-batch of what several workers made of it, in the order of the samples."""
    if len(pieces) == 1:
        return pieces[0]
    pieces = [piece for piece in pieces if piece]
    indices = [index for piece in pieces for index in piece.indices]
    order = np.argsort(indices)
    places = torch.from_numpy(np.argsort(order)).split([len(piece.indices) for piece in pieces])

    def tensor(name: str) -> torch.Tensor | None:
        if (first := getattr(pieces[0], name)) is None:
            return None
        whole = torch.empty(len(indices), *first.shape[1:], dtype=first.dtype, pin_memory=torch.cuda.is_available())
        for piece, where in zip(pieces, places, strict=True):
            whole[where] = getattr(piece, name)
        return whole

    def sequence(name: str) -> list:
        values = [value for piece in pieces for value in getattr(piece, name)]
        return [values[place] for place in order]

    fields = dataclasses.fields(StepInputs)
    tensors = ("images", "noise", "prompt_embeds", "mismatched_embeds")
    return StepInputs(*(tensor(each.name) if each.name in tensors else sequence(each.name) for each in fields))


def load_training_data(
    config: TrainingConfig, size: int, noise_dim: int, clip: FrozenCLIP | None = None
) -> CaptionedImages:
    """The dataset or the mixture named by the configuration; UserError when data or embeddings cannot be loaded.

    `clip` is needed for text embeddings only, which are read or made with it (see [`caption_embeddings`]).
    """
    weights = config.data_mixture or {config.dataset_name or config.train_data_dir: 1.0}
    parts = [_load_rows(source, config, size) for source in weights]
    rows = parts[0] if len(parts) == 1 else stored.MixedRows(parts, list(weights.values()), config.seed)
    return CaptionedImages(rows, config, size, noise_dim, caption_embeddings(config, list(weights), parts, clip))


def _load_rows(source: str, config: TrainingConfig, size: int) -> Rows:
    box = config.box_column if config.crop_to_box else None
    columns = stored.Columns(config.image_column, config.caption_column, box)
    if world := find_world(source):
        rendered = world.load_training_dataset(config.max_train_samples, config.seed, size)
        return stored.MapRows(rendered, columns, config.seed)
    if config.streaming:
        try:
            limits = config.stream_window, config.stream_memory * 10**6
            return ShardRows(stored.find_shards(source), columns, config.seed, config.data_lanes, *limits)
        except UserError:
            raise
        except Exception as error:
            raise stored.unreadable(source, error) from error
    dataset = stored.load_captioned(source, "train", config.caption_column, config.max_train_samples)
    return stored.MapRows(dataset, columns, config.seed)


def caption_embeddings(
    config: TrainingConfig, sources: list[str], parts: list[Rows], clip: FrozenCLIP | None
) -> list[EmbeddingTable]:
    """Embeddings of all captions, one table per part of a mixture; none without `text_embeddings` or in a dry run.

    Stored ones of this CLIP are used (`ratlip data embed`); of other map-style data the captions are encoded here and
    kept in `<output_dir>/text_embeddings/<part>`, where a resumed run finds them. Of several processes the main one
    must come first, for example under `accelerator.main_process_first()`. Streamed data without stored embeddings
    raise UserError. `sources` are names or folders of the parts, `parts` their rows.
    """
    if not config.text_embeddings:
        return []
    fingerprint = clip.describe()["weights_sha256"]
    tables = []
    for index, (source, rows) in enumerate(zip(sources, parts, strict=True)):
        table = _stored_table(config, source, isinstance(rows, ShardRows), fingerprint)
        if table is None and not config.dry_run:  # which leaves nothing behind
            folder = Path(config.output_dir) / FOLDER / str(index)
            table = remembered_embeddings(folder, list(rows.captions(len(rows))), clip.encode, fingerprint)
        tables.append(table)
    return [] if config.dry_run else tables


def _stored_table(config: TrainingConfig, source: str, streamed: bool, fingerprint: str) -> StoredEmbeddings | None:
    """What `ratlip data embed` has left; None where the run itself must encode the captions."""
    # Stored ones are always those of the column that preparing writes.
    if (Path(source) / MANIFEST).is_file() and config.caption_column == stored.Columns.captions:
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
    return None
