"""Checkpoints of a run: every stateful object is registered once, saved and restored by name.
Owns the `checkpoints/` folder: atomic writing, finding the latest, and removing old ones."""

import re
import shutil
from pathlib import Path

import torch

from ..utils.errors import UserError
from ..utils.files import atomic_directory

_FILE = "state.pt"


class Checkpoints:
    """The checkpoints of one run under `folder`.

    Args:
        folder: where they lie, one folder `step-<n>` each.
        keep: how many to keep, or None for all.
    """

    def __init__(self, folder: Path, keep: int | None):
        self.folder, self.keep, self.objects = folder, keep, {}

    def register(self, **objects) -> None:
        """Name everything that has a state: anything with `state_dict` and `load_state_dict`."""
        self.objects |= objects

    def any(self) -> bool:
        """Whether the folder holds a checkpoint."""
        return bool(self._all())

    def save(self, step: int, progress: dict[str, int]) -> None:
        """Write everything and `progress` (plain numbers) as one checkpoint; older ones beyond `keep` go."""
        with atomic_directory(self.folder / f"step-{step:08d}") as folder:
            states = {name: item.state_dict() for name, item in self.objects.items()}
            torch.save({"progress": progress, **states}, folder / _FILE)
        for old in self._all()[: -self.keep] if self.keep else []:
            shutil.rmtree(old)

    def load(self, which: str) -> dict[str, int]:
        """Restore from "latest" or a folder and return the progress; without any checkpoint "latest" returns {}.

        Raises:
            UserError: when the named checkpoint is not there or does not fit.
        """
        if which == "latest":
            if not (found := self._all()):
                return {}
            path = found[-1]
        else:
            path = Path(which)
        try:
            state = torch.load(path / _FILE, map_location="cpu", weights_only=True)
        except OSError as error:
            raise UserError(f"no checkpoint at {path}") from error
        for name, item in self.objects.items():
            try:
                item.load_state_dict(state[name])
            except (KeyError, RuntimeError, ValueError) as error:
                raise UserError(f"the checkpoint {path} does not fit this configuration ({name})") from error
        return state["progress"]

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name))
