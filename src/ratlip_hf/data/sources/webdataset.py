"""WebDataset: tar files whose members share a key, as in 000012.jpg with 000012.txt or 000012.json.
Owns indexing the archives; pictures are later read from their place in the archive, nothing is unpacked."""

import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ...utils.errors import UserError
from ..captions import captions_from_json, clean_captions, decode_text, parse_json, split_lines
from ..corpus import Corpus, Origin, Record, Report, SourceOptions, as_text
from ..images import SUFFIXES
from ..splits import TRAIN
from .common import natural_key
from .folder import SPLIT_FOLDERS

ORIGIN = Origin("Captioned images", "", "unknown", "As the source says.")


@dataclass(frozen=True)
class ArchivedImage:
    """A picture within an uncompressed tar file."""

    archive: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def fingerprint(self) -> str:
        status = self.archive.stat()
        return f"{self.archive}:{status.st_mtime_ns}:{self.offset}:{self.size}"


@dataclass
class _Sample:
    image: ArchivedImage | None = None
    sentences: list[str] = field(default_factory=list)


def read(source: Path, options: SourceOptions) -> Corpus:
    """Index the tar files of a folder. Raises UserError when it holds none."""
    archives = sorted(source.rglob("*.tar"), key=lambda path: natural_key(path.relative_to(source).as_posix()))
    if not archives:
        raise UserError(f"no .tar files below {source} (compressed archives have to be unpacked to .tar first)")
    report, records = Report(), []
    for archive in archives:
        name = archive.relative_to(source).with_suffix("").as_posix()
        for key, sample in _index(archive, report).items():
            image_id = as_text(f"{name}/{key}")
            if sample.image is None:
                report.skip("captions without an image", image_id)
            elif captions := clean_captions(sample.sentences, image_id, report):
                records.append(Record(_split(name), image_id, sample.image, captions))
            else:
                report.skip("image without captions", image_id)
    return Corpus(records, "names of the tar files or their folders, else train", report)


def _split(name: str) -> str:
    start = name.split("/")[0].lower().split("-")[0].split("_")[0]
    return SPLIT_FOLDERS.get(start, TRAIN)


def _index(archive: Path, report: Report) -> dict[str, _Sample]:
    samples: dict[str, _Sample] = {}
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                key, suffix = _key(member.name)
                if not member.isfile() or not key:
                    continue
                sample = samples.setdefault(key, _Sample())
                if suffix in SUFFIXES:
                    sample.image = ArchivedImage(archive, member.offset_data, member.size)
                elif suffix in (".txt", ".json"):
                    text = decode_text(tar.extractfile(member).read(), member.name, report)
                    is_text = suffix == ".txt"
                    sample.sentences += (
                        split_lines(text) if is_text else captions_from_json(parse_json(text, member.name, report))
                    )
    except (tarfile.TarError, OSError) as error:
        report.skip(f"rest of a tar file that cannot be read ({error})", archive.name)
    return samples


def _key(name: str) -> tuple[str, str]:
    """As WebDataset splits names: everything before the first dot of the file's name, and the suffix."""
    path = PurePosixPath(name)
    stem, dot, suffix = path.name.partition(".")
    return (str(path.with_name(stem)) if stem else "", (dot + suffix).lower())
