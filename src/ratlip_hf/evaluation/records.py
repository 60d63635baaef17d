"""Records of scores, one JSON object per line: what was measured, of what, by which protocol, with which libraries.
Scores of different protocols are not compared."""

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from ..utils.files import append_line, check_appendable, read_text, require_regular, split_lines
from ..version import __version__

# Below this many images a Fréchet distance of 2048 features is mostly bias.
FEW = 2048

_LIBRARIES = ("torch", "transformers", "diffusers", "numpy")
_REQUIRED = ("name", "num_real", "num_fake")


def environment() -> dict[str, str]:
    """Versions of this package, Python and the libraries that compute features."""
    versions = {name: metadata.version(name) for name in _LIBRARIES}
    return {"ratlip_hf": __version__, "python": platform.python_version(), **versions}


@dataclass(frozen=True)
class ScoreRecord:
    """One evaluation. Raises ValueError for a protocol that lacks an entry, no scores, or scores that are not finite.

    Attributes:
        protocol: all that must agree before two scores compare: at least `name`, `num_real` and `num_fake` (0 where
            a protocol has no such images), and whatever else decides a score, such as the split, captions per
            image, resize, the features' description, EMA or raw weights, the seed.
        candidate: what was scored, for example the model, its revision and the hash of its weights, or a folder.
        scores: by name, {"value": ...} and, where there is an interval, "low" and "high"; finite numbers.
        environment: versions of libraries; recorded, but no part of the protocol.
        per_prompt: of some scores, the mean over the images of each prompt, in the protocol's order; None where a
            prompt has no part in it. Another test than ours can be made of them without new images.
    """

    protocol: Mapping
    candidate: Mapping
    scores: Mapping[str, Mapping[str, float]]
    environment: Mapping[str, str] = field(default_factory=environment)
    per_prompt: Mapping[str, list[float | None]] = field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.protocol, Mapping):
            raise ValueError(f"a protocol has entries, unlike {self.protocol!r}")
        if missing := [name for name in _REQUIRED if name not in self.protocol]:
            raise ValueError(f"a protocol needs {', '.join(missing)}")
        if not all(isinstance(self.protocol[name], int) for name in _REQUIRED[1:]):
            raise ValueError(f"{' and '.join(_REQUIRED[1:])} must be whole numbers")
        if not self.scores or not isinstance(self.scores, Mapping) or not isinstance(self.candidate, Mapping):
            raise ValueError("a record without scores says nothing")
        for name, score in self.scores.items():
            if (
                not isinstance(score, Mapping)
                or "value" not in score
                or not all(math.isfinite(number) for number in score.values())
            ):
                raise ValueError(f"the score {name!r} must have a value and be finite, not {score!r}")

    def warnings(self) -> list[str]:
        """What a reader has to be told with the scores; one line each."""
        counts = {"real": self.protocol["num_real"], "generated": self.protocol["num_fake"]}
        lines = [
            f"only {count} {kind} images: below {FEW} distances between sets are dominated by their bias"
            for kind, count in counts.items()
            if 0 < count < FEW
        ]
        names = [name for name in self.scores if name.startswith("clip_score")]
        if names and "clip_score" not in names:
            lines.append("the CLIP score is of the generator's own CLIP, its training signal: give an --eval_clip")
        return lines


def append_record(path: str | os.PathLike, record: ScoreRecord) -> None:
    """Add a line to a file of records, which is created if there is none; a failure leaves the file as it was."""
    append_line(path, json.dumps(asdict(record), allow_nan=False))


def check_place_for_records(path: str | os.PathLike) -> None:
    """Raise ValueError or OSError, before hours of work, if [`append_record`] could not add to this file."""
    check_appendable(path)
    if Path(path).exists():
        read_records(path)


def read_records(path: str | os.PathLike) -> list[ScoreRecord]:
    """All records of a file. Raises ValueError with the line's number for one that is no record."""
    records = []
    for number, line in enumerate(split_lines(read_text(path)) if require_regular(path) else [], 1):
        try:
            records.append(ScoreRecord(**json.loads(line)))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}, is no record: {error}") from error
    return records


def compare_records(first: ScoreRecord, second: ScoreRecord) -> dict[str, tuple[Mapping, Mapping]]:
    """The scores that two records of one protocol share, by name. Raises ValueError if the protocols differ, naming
    every entry in which they do, or no score is shared."""
    names = [*first.protocol, *(name for name in second.protocol if name not in first.protocol)]
    values = {name: [_as_json(record.protocol, name) for record in (first, second)] for name in names}
    if different := [f"{name} ({' against '.join(pair)})" for name, pair in values.items() if pair[0] != pair[1]]:
        raise ValueError(f"these scores do not compare, for their protocols differ: {', '.join(different)}")
    shared = {name: (score, second.scores[name]) for name, score in first.scores.items() if name in second.scores}
    if not shared:
        raise ValueError("the two records share no score")
    return shared


def _as_json(protocol: Mapping, name: str) -> str:
    # As JSON, so that a record that was just made equals the same one read from a file.
    return json.dumps(protocol[name], sort_keys=True) if name in protocol else "not given"
