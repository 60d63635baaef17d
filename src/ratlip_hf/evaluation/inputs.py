"""What an evaluation starts from: the eval data, which are the prompts and real images of a protocol, and the
candidate that is scored, a pipeline or a folder with the images of any system."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Protocol as Interface

import numpy as np
import torch

from ..bundled import WORLDS, find_world
from ..clip import FrozenCLIP
from ..data.images import BadImage, decode, to_rgb
from ..data.read.rows import Columns, MapRows, load_captioned, row_pixels
from ..metrics import Origins
from ..pipeline import RATLIPPipeline
from ..utils.errors import UserError
from ..utils.files import read_bytes, read_text, split_lines
from ..utils.tensors import weights_sha256
from .protocols import Protocol


class Images(Interface):
    """Real images by number. `load(a, b)` gives images a to b - 1 as [n, 3, S, S] in [-1, 1], `digest(i)` a hash of
    what is stored of image i, `first(n)` the first n images."""

    def __len__(self) -> int: ...

    def load(self, start: int, stop: int) -> torch.Tensor: ...

    def digest(self, index: int) -> bytes: ...

    def first(self, count: int) -> "Images": ...


@dataclass(frozen=True)
class EvalData:
    """Prompts and real images, each with the number of its cluster: the real image or held-out prompt it belongs to.
    Image n is generated for prompt n; the images of one cluster are no independent evidence, and neither are clusters
    of one group, such as prompts that name the same unseen combination."""

    prompts: list[str]
    clusters: list[int]
    real: Images
    real_clusters: list[int]
    facts: dict  # of the data, for a record
    fields: tuple[str, ...] = ()  # names of the attributes that prompts ask for, where they are known
    targets: list[list[int]] | None = None  # for each prompt the label of each field, or `metrics.UNNAMED`
    groups: list[int] | None = None  # of each cluster; None where clusters are independent

    def origins(self, clusters: Sequence[int]) -> Origins:
        """Clusters of images with their groups; a cluster that the data does not know is a group of its own."""
        groups = self.groups or []
        found = [groups[number] if number < len(groups) else len(groups) + number for number in clusters]
        return Origins(torch.tensor(clusters), torch.tensor(found))

    def first(self, count: int | None) -> "EvalData":
        """The same with the first `count` prompts and real images."""
        if count is None:
            return self
        return replace(
            self,
            prompts=self.prompts[:count],
            clusters=self.clusters[:count],
            real=self.real.first(count),
            real_clusters=self.real_clusters[:count],
            targets=self.targets and self.targets[:count],
        )


def load_eval_data(protocol: Protocol, data: str, split: str = "test") -> EvalData:
    """The prompts and images of a protocol. `data` names a small world or a dataset, or a folder from `ratlip data
    prepare`. Raises UserError for data that does not go with the protocol or cannot be loaded."""
    if (data in WORLDS) != (protocol.prompts == "heldout"):
        world = data if data in WORLDS else protocol.name
        raise UserError(
            f"the protocol {protocol.name!r} and the data {str(data)!r} do not go together: {world} is a "
            f"protocol and its data; for renders under another protocol see ratlip data prepare {world}"
        )
    if small_world := find_world(data):
        return small_world.load_eval_data(protocol, split)
    rows = MapRows(load_captioned(data, split), Columns(), protocol.seed)
    captions = list(rows.captions(len(rows)))
    pairs = _every_caption(captions) if protocol.prompts == "every_caption" else _random_captions(captions, protocol)
    return EvalData(
        [captions[image][caption] for image, caption in pairs],
        [image for image, _ in pairs],
        StoredImages(rows, len(rows), protocol.size, protocol.resize),
        list(range(len(rows))),
        {"data": Path(data).name, "split": split},
    )


def prompts_sha256(prompts: Sequence[str]) -> str:
    """Hash of prompts, whatever their order."""
    return hashlib.sha256(json.dumps(sorted(prompts)).encode()).hexdigest()


def as_images(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels as float32 in [-1, 1]."""
    return pixels.float().div(127.5).sub(1)


def _every_caption(captions: list[list[str]]) -> list[tuple[int, int]]:
    """(image, caption) pairs: the first captions of all images, then the second ones, and so on."""
    passes = range(max(map(len, captions)))
    return [(image, which) for which in passes for image in range(len(captions)) if which < len(captions[image])]


def _random_captions(captions: list[list[str]], protocol: Protocol) -> list[tuple[int, int]]:
    rng, pairs = np.random.default_rng(protocol.seed), []
    whole = len(captions) // protocol.whole_batches * protocol.whole_batches
    if not whole:
        raise UserError(f"the protocol {protocol.name!r} needs at least {protocol.whole_batches} images")
    for _ in range(protocol.passes or 1):
        order = rng.permutation(len(captions))[:whole].tolist()
        pairs += [(image, int(rng.integers(len(captions[image])))) for image in order]
    return pairs


@dataclass(frozen=True)
class StoredImages:
    """The images of a dataset in the order of storage, cut to their boxes, scaled, and cut to squares."""

    rows: MapRows
    count: int
    size: int
    resize: str

    def __len__(self) -> int:
        return self.count

    def load(self, start: int, stop: int) -> torch.Tensor:
        rows = [self.rows.stored(index) for index in range(start, stop)]
        pixels = np.stack([row_pixels(row, self.size, self.resize) for row in rows])
        return as_images(torch.from_numpy(pixels).permute(0, 3, 1, 2))

    def digest(self, index: int) -> bytes:
        return hashlib.sha256(self.rows.stored(index).content).digest()

    def first(self, count: int) -> "StoredImages":
        return replace(self, count=min(count, self.count))


class Candidate:
    """What is scored: images by number."""

    prompts: list[str] | None = None  # of each image; None if nobody knows
    own_clip: FrozenCLIP | None = None  # that the generator was trained with
    patch: int | None = None  # side of its patches in pixels of the generated images

    def most_at_once(self) -> int | None:
        """How many images memory should hold together; None where they are small."""
        return None

    def __len__(self) -> int:
        return len(self.prompts or ())

    def load(self, start: int, stop: int) -> torch.Tensor:
        """Images start to stop - 1 as [n, 3, H, W] in [-1, 1]."""
        raise NotImplementedError

    def describe(self) -> dict:
        """What a record says of the candidate."""
        raise NotImplementedError


class Model(Candidate):
    """A pipeline that generates images for the prompts of a protocol; image n has the seed `protocol.seed` + n."""

    prompts: list[str]
    own_clip: FrozenCLIP

    def __init__(self, source: str | os.PathLike, pipe: RATLIPPipeline, prompts: list[str], protocol: Protocol):
        self.source, self.pipe, self.prompts, self.seed = source, pipe, prompts, protocol.seed
        self.own_clip = FrozenCLIP(pipe.tokenizer, pipe.text_encoder, pipe.image_encoder, "of the pipeline")
        sizes = pipe.generator.config
        self.patch = None if sizes.sample_size % sizes.clip_grid else sizes.sample_size // sizes.clip_grid

    def load(self, start: int, stop: int) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(self.seed + index) for index in range(start, stop)]
        prompts = self.prompts[start:stop]
        (images,) = self.pipe(prompts, generator=generators, output_type="pt", return_dict=False)
        return images.clamp(0, 1) * 2 - 1  # the pipeline refuses what is not finite

    def describe(self) -> dict:
        generator = self.pipe.generator
        return {
            "model": str(self.source),
            "weights_sha256": weights_sha256(generator),
            "clip_sha256": self.own_clip.describe()["weights_sha256"],
            "dtype": str(generator.dtype).removeprefix("torch."),
            "weights": "as saved: the trainer saves EMA weights",
            "sample_size": generator.config.sample_size,
            "parameters": generator.num_parameters(),
        }


_MANIFEST = "manifest.jsonl"
_PIXELS_AT_ONCE = 2**24  # 200 MB as float32, several times of which are needed
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class Folder(Candidate):
    """Images of any system. `manifest.jsonl` in the folder says which image is of which prompt, a line each with
    `file` and `prompt`, as `ratlip generate` and `ratlip evaluate --write_prompts` write it; without it, images are
    taken in the order of their names, and scores that need prompts are left out.

    Raises:
        UserError: for no images, images of several sizes, or a manifest that does not fit them.
    """

    def __init__(self, folder: str | os.PathLike, limit: int | None = None):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"--images_dir {folder} is no folder")
        names, prompts = self._read_manifest()
        self.names, self.prompts = names[:limit], prompts and prompts[:limit]
        if not self.names:
            raise UserError(f"--images_dir {folder} holds no images ({', '.join(_SUFFIXES)})")

    def _read_manifest(self) -> tuple[list[str], list[str] | None]:
        manifest = self.folder / _MANIFEST
        if not manifest.is_file():
            found = (path for path in self.folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
            return sorted(path.name for path in found if path.name != "grid.png"), None
        try:
            entries = [json.loads(line) for line in split_lines(read_text(manifest)) if line.strip()]
            names, prompts = [entry["file"] for entry in entries], [entry["prompt"] for entry in entries]
            if wrong := [value for value in (*names, *prompts) if not isinstance(value, str)]:
                raise TypeError(f"{wrong[0]!r} is no text")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{manifest} must have a line with 'file' and 'prompt' for each image: {error}") from error
        if outside := [name for name in names if ".." in PurePath(name).parts or PurePath(name).is_absolute()]:
            raise UserError(f"{manifest} names {outside[0]}, which lies outside of {self.folder}")
        if missing := [name for name in names if not (self.folder / name).is_file()]:
            raise UserError(f"{len(missing)} images of {manifest} are missing, for example {missing[0]}")
        return names, prompts

    def __len__(self) -> int:
        return len(self.names)

    def load(self, start: int, stop: int) -> torch.Tensor:
        images = [self._read(name) for name in self.names[start:stop]]
        if len(sizes := {image.shape for image in images}) > 1:
            found = ", ".join(sorted(f"{width} x {height}" for height, width, _ in sizes))
            raise UserError(f"the images in {self.folder} must have one size; there are {found}")
        return as_images(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))

    def most_at_once(self) -> int:
        return max(1, _PIXELS_AT_ONCE // self._read(self.names[0])[..., 0].size)

    def _read(self, name: str) -> np.ndarray:
        try:
            return np.array(to_rgb(decode(read_bytes(self.folder / name))))
        except BadImage as error:
            raise UserError(f"{self.folder / name}: {error}") from error

    def describe(self) -> dict:
        return {"images": str(self.folder)}
