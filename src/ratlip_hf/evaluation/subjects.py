"""What can be scored: a pipeline, a folder with any system's pictures, or fresh renders of the synthetic birds.
Owns how pictures are had from each, and what a record says of where they came from."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Protocol as Interface

import numpy as np
import torch

from ..data.images import BadImage, decode, to_rgb
from ..frozen_clip import FrozenCLIP
from ..pipeline import RATLIPPipeline
from ..utils.errors import UserError
from ..utils.fingerprints import weights_sha256
from .material import Material, Renders
from .protocols import Protocol

REAL_RENDERS = "real-renders"
MANIFEST = "manifest.jsonl"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class Subject(Interface):
    """`prompts` are the sentences the pictures were drawn for, picture by picture; None if nobody knows.
    `own_clip` is the CLIP that the generator was trained with, where there is one."""

    prompts: list[str] | None
    own_clip: FrozenCLIP | None

    def __len__(self) -> int: ...

    def show(self, start: int, stop: int) -> torch.Tensor:
        """Pictures start to stop - 1 as [n, 3, H, W] in [-1, 1]."""

    def describe(self) -> dict: ...


class Model:
    """A pipeline that draws the prompts of a protocol; picture n has the seed `protocol.seed` + n, on any machine."""

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
    """Pictures of any system. `manifest.jsonl` in the folder says which picture is of which prompt, a line each with
    `file` and `prompt`, as `ratlip generate` and `ratlip evaluate --write_prompts` write it; without it, pictures are
    taken in the order of their names, and scores that need prompts are left out.

    Raises:
        UserError: for no pictures, pictures of several sizes, or a manifest that does not fit them.
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
            raise UserError(f"--images {folder} holds no pictures ({', '.join(_SUFFIXES)})")

    def _read_manifest(self) -> tuple[list[str], list[str] | None]:
        manifest = self.folder / MANIFEST
        if not manifest.is_file():
            found = (path for path in self.folder.iterdir() if path.suffix.lower() in _SUFFIXES)
            return sorted(path.name for path in found if path.name != "grid.png"), None
        try:
            entries = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()]
            names, prompts = [entry["file"] for entry in entries], [entry["prompt"] for entry in entries]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{manifest} must have a line with 'file' and 'prompt' for each picture: {error}"
            ) from error
        if missing := [name for name in names if not (self.folder / name).is_file()]:
            raise UserError(f"{len(missing)} pictures of {manifest} are missing, for example {missing[0]}")
        return names, prompts

    def __len__(self) -> int:
        return len(self.names)

    def show(self, start: int, stop: int) -> torch.Tensor:
        pictures = [self._read(name) for name in self.names[start:stop]]
        if len(sizes := {picture.shape for picture in pictures}) > 1:
            shown = ", ".join(sorted(f"{width} x {height}" for height, width, _ in sizes))
            raise UserError(f"the pictures in {self.folder} must have one size; there are {shown}")
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1)

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
