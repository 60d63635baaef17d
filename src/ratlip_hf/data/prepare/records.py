"""What every kind of corpus looks like before it is written: records, and a report of what was left out and why.
Owns the columns of the prepared data; reading a kind of source is in `sources`."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import datasets

from ...utils.errors import UserError

_EXAMPLES = 3  # names kept per kind of problem


class ImageSource(Protocol):
    """Where the bytes of one image are; small, so that it travels to the process that writes the shard."""

    def read(self) -> bytes:
        """The encoded image. Raises OSError."""

    def fingerprint(self) -> str:
        """Changes when the bytes do, without reading them."""


@dataclass(frozen=True)
class FileImage:
    """An image in a file of its own."""

    path: Path

    def read(self) -> bytes:
        return self.path.read_bytes()

    def fingerprint(self) -> str:
        status = self.path.stat()
        return f"{self.path}:{status.st_size}:{status.st_mtime_ns}"


@dataclass(frozen=True)
class Record:
    """One image with its captions.

    Attributes:
        split: "train", "test" or "validation".
        image_id: name of the image that is unique within the corpus.
        image: where the image's bytes are.
        captions: one or more cleaned sentences.
        label: index into the corpus' label names, if there are any.
        bbox: left, top, width, height of the object in pixels, if known.
    """

    split: str
    image_id: str
    image: ImageSource
    captions: tuple[str, ...]
    label: int | None = None
    bbox: tuple[float, float, float, float] | None = None


@dataclass
class Report:
    """What was left out (`skipped`) or mended (`repaired`), by reason with some names, and remarks (`notes`)."""

    skipped: dict[str, dict] = field(default_factory=lambda: defaultdict(lambda: {"count": 0, "examples": []}))
    repaired: dict[str, dict] = field(default_factory=lambda: defaultdict(lambda: {"count": 0, "examples": []}))
    notes: list[str] = field(default_factory=list)

    def skip(self, reason: str, name: str) -> None:
        """Count something that will be missing from the result."""
        _count(self.skipped[reason], 1, [as_text(name)])

    def repair(self, reason: str, name: str) -> None:
        """Count something that is kept, but not as it was."""
        _count(self.repaired[reason], 1, [as_text(name)])

    def merge(self, other: dict) -> None:
        """Add what another report's `to_dict` says."""
        for mine, theirs in ((self.skipped, other["skipped"]), (self.repaired, other["repaired"])):
            for reason, entry in theirs.items():
                _count(mine[reason], entry["count"], entry["examples"])
        self.notes += other["notes"]

    def to_dict(self) -> dict:
        """Plain dicts and lists for JSON, in a fixed order."""
        return {
            "skipped": dict(sorted(self.skipped.items())),
            "repaired": dict(sorted(self.repaired.items())),
            "notes": list(self.notes),
        }


def as_text(name: str) -> str:
    """A file's name as text that can be written: bytes that are not UTF-8 become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def distinct_names(names: list[str], report: Report) -> list[str]:
    """Names of classes, made different where two are the same: a class label needs that."""
    result: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in result:
            number += 1
            candidate = f"{name} ({number})"
        if candidate != name:
            report.repair("class with the name of another, numbered", name)
        result.append(candidate)
    return result


def unique_records(records: list["Record"], report: Report) -> list["Record"]:
    """Without images whose `image_id` an earlier one has."""
    seen, kept = set(), []
    for record in records:
        if record.image_id in seen:
            report.skip("image with the name of another (but for the suffix)", record.image_id)
        else:
            seen.add(record.image_id)
            kept.append(record)
    return kept


def _count(entry: dict, count: int, examples: list[str]) -> None:
    entry["count"] += count
    entry["examples"] = (entry["examples"] + examples)[:_EXAMPLES]


@dataclass(frozen=True)
class Origin:
    """Where a kind of corpus comes from: shown on its card."""

    title: str
    homepage: str
    license: str
    terms: str


@dataclass
class Corpus:
    """Everything that a source holds, images unread.

    Attributes:
        records: all usable images.
        splits_from: one sentence saying who decided which image is in which split.
        label_names: names of the classes, or None where there are no classes.
        choices: what was chosen on the way (seeds, lists), for the manifest.
    """

    records: list[Record]
    splits_from: str
    report: Report
    label_names: list[str] | None = None
    choices: dict = field(default_factory=dict)

    def features(self) -> datasets.Features:
        """Columns of the prepared data: `label` and `bbox` only where the source has them."""
        columns = {"image": datasets.Image(), "captions": datasets.List(datasets.Value("string"))}
        if self.label_names is not None:
            columns["label"] = datasets.ClassLabel(names=self.label_names)
        if any(record.bbox is not None for record in self.records):
            columns["bbox"] = datasets.List(datasets.Value("float32"), length=4)
        return datasets.Features({**columns, "image_id": datasets.Value("string")})


@dataclass(frozen=True)
class SourceOptions:
    """Choices that some kinds of source take; see `ratlip data prepare --help`.

    Attributes:
        split: which published split of birds.
        captions: folder with captions, where it is not at its usual place.
        seed: of the draw of faces, and of synthetic birds.
        draw, test: faces to draw, and how many of them are for testing.
        num_images, image_size: synthetic birds for training, and their side in pixels.
    """

    split: str = "stackgan"
    captions: Path | None = None
    seed: int = 0
    draw: int = 10_000
    test: int = 2_000
    num_images: int = 20_000
    image_size: int = 64

    def __post_init__(self):
        for name in ("draw", "num_images"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if self.seed < 0:
            raise UserError(f"--seed must not be negative, but is {self.seed}")
        if not 0 <= self.test < self.draw:
            raise UserError(f"--test must lie in [0, {self.draw}), not {self.test}")
