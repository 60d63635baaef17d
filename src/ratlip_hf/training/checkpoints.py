"""Checkpoints of a run, in the folder `checkpoints/`: every stateful object is registered once, saved and restored by
name; each is written as a whole, with a checksum."""

import json
import logging
import re
import shutil
from pathlib import Path

import torch

from ..utils.errors import UserError, one_line
from ..utils.files import atomic_directory, file_sha256, read_json, remove_unfinished
from ..utils.tensors import load_tensors

logger = logging.getLogger(__name__)

_STATE, _FACTS = "state.pt", "facts.json"


class Checkpoints:
    """The checkpoints of one run, each in `folder`/step-<n>; the last `keep` stay, or all with None."""

    def __init__(self, folder: Path, keep: int | None):
        self.folder, self.keep, self.objects = folder, keep, {}

    def register(self, **objects) -> None:
        """Name everything that has a state: anything with `state_dict` and `load_state_dict`."""
        self.objects |= objects

    def any(self) -> bool:
        """Whether the folder holds a checkpoint."""
        return bool(self._all())

    def owns(self, path: str) -> bool:
        """Whether a checkpoint is one of this run's."""
        return Path(path).resolve().parent == self.folder.resolve()

    def save(self, step: int, facts: dict) -> None:
        """Write all states and `facts` (anything JSON can hold) as one checkpoint; older ones beyond `keep` go.

        So do later ones, left by a run that was resumed from an earlier step, or "latest" would still mean them.
        Raises OSError, and leaves the others as they are, when there is no room for it.
        """
        path = self.folder / f"step-{step:08d}"
        with atomic_directory(path) as folder:
            with (folder / _STATE).open("wb") as file:  # given a path, torch would not say why a write failed
                torch.save({name: item.state_dict() for name, item in self.objects.items()}, file)
            record = {"sha256": file_sha256(folder / _STATE), **facts}
            (folder / _FACTS).write_text(json.dumps(record, indent=2) + "\n")
        known = self._all()
        later = known[known.index(path) + 1 :]
        kept = known[: known.index(path) + 1]
        for gone in later + (kept[: -self.keep] if self.keep else []):
            shutil.rmtree(gone)
        remove_unfinished(self.folder / "step-*")

    def find(self, which: str) -> tuple[Path, dict] | None:
        """The checkpoint meant by "latest" or a folder, with its facts; None if there is none yet.

        A damaged newest checkpoint is reported and the one before it taken. Raises UserError when the named one is
        missing or damaged, or every one is damaged.
        """
        candidates = self._all()[::-1] if which == "latest" else [Path(which)]
        for path in candidates:
            try:
                return path, _sound_facts(path)
            except UserError as error:
                if which != "latest":
                    raise
                logger.warning("%s; trying the one before", error)
        if candidates:
            raise UserError(f"every checkpoint in {self.folder} is damaged")
        return None

    def restore(self, path: Path) -> None:
        """Load every registered object from a checkpoint that `find` returned; UserError if one does not fit."""
        try:
            state = load_tensors(path / _STATE)
        except (OSError, ValueError) as error:
            raise UserError(f"the checkpoint {path} cannot be read: {one_line(error)}") from error
        for name, item in self.objects.items():
            try:
                if not _is_finite(state[name]):
                    raise UserError(
                        f"the checkpoint {path} holds NaN or infinite values ({name}): resume an earlier one"
                    )
                item.load_state_dict(state[name])
            except (KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
                raise UserError(f"the checkpoint {path} does not fit this configuration ({name})") from error

    def _all(self) -> list[Path]:
        found = (path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name))
        return sorted(path for path in found if path.is_dir())


def _sound_facts(path: Path) -> dict:
    """Raises UserError for files that are incomplete or do not match their checksum."""
    try:
        facts = read_json(path / _FACTS)
        sound = facts["sha256"] == file_sha256(path / _STATE)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"no complete checkpoint at {path}") from error
    if not sound:
        raise UserError(f"the checkpoint {path} is damaged: its checksum differs")
    return facts


def _is_finite(state) -> bool:
    """Whether all tensors within nested dicts and lists hold finite numbers."""
    if isinstance(state, torch.Tensor):
        return not state.is_floating_point() or bool(state.isfinite().all())
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return all(map(_is_finite, parts))
