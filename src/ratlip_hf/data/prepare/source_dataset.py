"""What every importer gives, whatever it read: a `SourceDataset` of `Record`s, and a `Report` of what was left out.
Imported by the processes that write shards, so nothing heavy is imported here."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ...utils.errors import UserError

if TYPE_CHECKING:
    import datasets

TRAIN, TEST, VALIDATION = "train", "test", "validation"
_EXAMPLES = 3  # names kept per reason


class ImageSource(Protocol):
    """Where the bytes of one image are; small, so that it travels to the process that writes the shard."""

    def read(self) -> bytes:
        """The encoded image. Raises OSError."""

    def fingerprint(self) -> str:
        """Changes when the bytes do, without reading them."""

    def stored_bytes(self) -> int:
        """How many bytes `read` gives; 0 where that is not known before."""


@dataclass(frozen=True)
class Record:
    """One image with its captions."""

    split: str  # "train", "test" or "validation"
    image_id: str  # unique within the dataset
    image: ImageSource
    captions: tuple[str, ...]  # cleaned
    label: int | None = None  # index into the dataset's label names
    bbox: tuple[float, float, float, float] | None = None  # left, top, width, height of the object in pixels


class Tally(defaultdict):
    """How often something was found, by reason: {reason: {"count", "examples"}}, with up to three names each."""

    def __init__(self):
        super().__init__(lambda: {"count": 0, "examples": []})

    def add(self, reason: str, *examples: str, count: int = 1) -> None:
        entry = self[reason]
        entry["count"] += count
        entry["examples"] = [*entry["examples"], *examples][:_EXAMPLES]

    def sorted(self) -> dict[str, dict]:
        """A plain dict for JSON, by reason."""
        return dict(sorted(self.items()))


@dataclass
class Report:
    """What was left out (`skipped`) or repaired, by reason, and remarks (`notes`)."""

    skipped: Tally = field(default_factory=Tally)
    repaired: Tally = field(default_factory=Tally)
    notes: list[str] = field(default_factory=list)

    def skip(self, reason: str, name: str) -> None:
        """Count something that will be missing from the result."""
        self.skipped.add(reason, as_text(name))

    def repair(self, reason: str, name: str) -> None:
        """Count something that is kept, but not as it was."""
        self.repaired.add(reason, as_text(name))

    def merge(self, other: dict) -> None:
        """Add what another report's `to_dict` says."""
        for tally, theirs in ((self.skipped, other["skipped"]), (self.repaired, other["repaired"])):
            for reason, entry in theirs.items():
                tally.add(reason, *entry["examples"], count=entry["count"])
        self.notes += other["notes"]

    def to_dict(self) -> dict:
        """Plain dicts and lists for JSON, in a fixed order."""
        return {"skipped": self.skipped.sorted(), "repaired": self.repaired.sorted(), "notes": list(self.notes)}


def as_text(name: str) -> str:
    """A file's name as text that can be written: bytes that are not UTF-8 become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@dataclass(frozen=True)
class Origin:
    """Where a kind of dataset comes from, as its card says it."""

    title: str
    homepage: str
    license: str
    terms: str


@dataclass
class SourceDataset:
    """Everything that a source holds, images unread."""

    records: list[Record]
    splits_from: str  # who decided which image is in which split, for the card
    report: Report
    label_names: list[str] | None = None
    choices: dict = field(default_factory=dict)  # what was chosen on the way (seeds, lists), for the manifest

    def add(self, record: Record, reason: str = "image without captions", name: str | None = None) -> None:
        """Take in an image; one without captions is counted as skipped instead, by its `name` in the source."""
        if record.captions:
            self.records.append(record)
        else:
            self.report.skip(reason, name or record.image_id)

    def drop_repeated_names(self) -> None:
        """Leave out images whose `image_id` an earlier one has."""
        seen, kept = set(), []
        for record in self.records:
            if record.image_id in seen:
                self.report.skip("image with the name of another (but for the suffix)", record.image_id)
            else:
                seen.add(record.image_id)
                kept.append(record)
        self.records = kept

    def features(self) -> "datasets.Features":
        """Columns of the prepared data: `label` and `bbox` only where the source has them."""
        import datasets

        columns = {"image": datasets.Image(), "captions": datasets.List(datasets.Value("string"))}
        if self.label_names is not None:
            columns["label"] = datasets.ClassLabel(names=self.label_names)
        if any(record.bbox is not None for record in self.records):
            columns["bbox"] = datasets.List(datasets.Value("float32"), length=4)
        return datasets.Features({**columns, "image_id": datasets.Value("string")})


@dataclass(frozen=True)
class SourceOptions:
    """Choices that some importers take; see `ratlip data prepare --help`."""

    split: str = "stackgan"  # which published split of birds
    captions: Path | None = None  # folder or archive with captions that lie outside the source
    seed: int = 0  # of the sampling of faces and of synthetic birds
    num_images: int | None = None  # faces in all, or synthetic birds for training; None is the default of the kind
    num_test_images: int = 2_000  # how many of the faces are for testing
    image_size: int = 64  # side of synthetic birds in pixels

    def __post_init__(self):
        if self.num_images is not None and self.num_images < 1:
            raise UserError(f"--num_images must be at least 1, not {self.num_images}")
        if self.seed < 0:
            raise UserError(f"--seed must not be negative, but is {self.seed}")
