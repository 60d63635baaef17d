"""Captioned images of any origin: folders with captions in files or tables, and tar files as WebDataset has them."""

import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ....utils.errors import UserError
from ....utils.files import LARGEST_TEXT, require_regular
from ...images import SUFFIXES, BadImage
from .. import raw_files as raw
from ..source_dataset import (
    TEST,
    TRAIN,
    VALIDATION,
    FileImage,
    Origin,
    Record,
    Report,
    SourceDataset,
    SourceOptions,
    as_text,
)

FOLDER = WEBDATASET = Origin("Captioned images", "", "unknown", "As the source says.")
METADATA = "metadata.jsonl"
_LONGEST_HEADER = 2**20
SPLIT_FOLDERS = {"train": TRAIN, "test": TEST, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION}


def read_folder(source: Path, options: SourceOptions) -> SourceDataset:
    """Read a folder of images in any structure. Captions come from a row of a metadata.jsonl in it, or else from a
    .txt (one per line) or .json next to the image. Raises UserError when there are no images."""
    report = Report()
    captions_root = options.captions or source
    listed = _read_metadata(source, report)
    paths = list(raw.image_files(source))
    if not paths:
        raise UserError(f"no images below {source}")
    dataset = SourceDataset([], "no split in the source: all is train", report)
    for path in paths:
        image_id = raw.stem_id(path, source)
        captions = listed.pop(path, None) or raw.captions_next_to(captions_root / image_id, report)
        captions = raw.clean_captions(captions, image_id, report)
        record = Record(_folder_split(path, source), image_id, FileImage(path), captions)
        dataset.add(record, "image without captions or metadata row", path.relative_to(source).as_posix())
    for path in listed:
        report.skip(f"row of {METADATA} whose image is not there", path.relative_to(source).as_posix())
    if {record.split for record in dataset.records} != {TRAIN}:
        dataset.splits_from = "names of the folders train, test and val"
    return dataset


def _folder_split(path: Path, source: Path) -> str:
    parts = path.relative_to(source).parts
    return SPLIT_FOLDERS.get(parts[0].lower(), TRAIN) if len(parts) > 1 else TRAIN


def _read_metadata(source: Path, report: Report) -> dict[Path, list[str]]:
    """Captions by image, of every metadata.jsonl; its file names are relative to where it lies."""
    listed: dict[Path, list[str]] = {}
    for table in sorted(source.rglob(METADATA)):
        for number, line in enumerate(raw.read_lines(table, report), start=1):
            where = f"{table.relative_to(source).as_posix()} line {number}"
            row = raw.parse_json(line, where, report)
            name = row.get("file_name") if isinstance(row, dict) else None
            if not isinstance(name, str):
                if row is not None:
                    report.skip(f"row of {METADATA} without a file_name", where)
            elif (path := raw.path_inside(table.parent, name)) is None:
                report.skip(f"path in {METADATA} that leaves the source folder", name)
            else:
                listed.setdefault(path, []).extend(raw.captions_from_json(row))
    return listed


# WebDataset: members of a tar file share a key, as in 000012.jpg with 000012.txt or 000012.json


@dataclass(frozen=True)
class ArchivedImage:
    """An image within an uncompressed tar file."""

    archive: Path
    offset: int
    size: int

    def read(self) -> bytes:
        if self.size > LARGEST_TEXT:
            raise BadImage(f"image file of more than {LARGEST_TEXT / 1e6:.0f} MB")
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def fingerprint(self) -> str:
        status = self.archive.stat()
        return f"{self.archive}:{status.st_mtime_ns}:{self.offset}:{self.size}"

    def stored_bytes(self) -> int:
        return self.size


class _Member(tarfile.TarInfo):
    """A member whose long names and other attributes, which are read into memory, are no longer than a name can be."""

    def _proc_member(self, tar):
        attributes = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        names = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        if self.type in attributes + names and not 0 <= self.size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header claims {self.size} bytes")
        return super()._proc_member(tar)


@dataclass
class _Entry:
    """What the files of one key hold."""

    image: ArchivedImage | None = None
    captions: list[str] = field(default_factory=list)


def read_webdataset(source: Path, options: SourceOptions) -> SourceDataset:
    """Index the tar files of a folder. Raises UserError when it holds none."""
    archives = sorted(source.rglob("*.tar"), key=lambda path: raw.natural_key(path.relative_to(source).as_posix()))
    if not archives:
        raise UserError(f"no .tar files below {source} (compressed archives have to be unpacked to .tar first)")
    report = Report()
    dataset = SourceDataset([], "names of the tar files or their folders, else train", report)
    for archive in archives:
        name = archive.relative_to(source).with_suffix("").as_posix()
        for key, entry in _index(archive, report).items():
            image_id = as_text(f"{name}/{key}")
            if entry.image is None:
                report.skip("captions without an image", image_id)
            else:
                captions = raw.clean_captions(entry.captions, image_id, report)
                dataset.add(Record(_archive_split(name), image_id, entry.image, captions))
    return dataset


def _archive_split(name: str) -> str:
    start = name.split("/")[0].lower().split("-")[0].split("_")[0]
    return SPLIT_FOLDERS.get(start, TRAIN)


def _index(archive: Path, report: Report) -> dict[str, _Entry]:
    found: dict[str, _Entry] = {}
    try:
        require_regular(archive)
        with tarfile.open(archive, "r:", tarinfo=_Member) as tar:
            for member in tar:
                key, suffix = _key(member.name)
                if not member.isfile() or not key:
                    continue
                if member.issparse() or (suffix in (".txt", ".json") and member.size > LARGEST_TEXT):
                    report.skip("file with holes, or text beyond any size, in a tar file", member.name)
                    continue
                entry = found.setdefault(key, _Entry())
                if suffix in SUFFIXES:
                    entry.image = ArchivedImage(archive, member.offset_data, member.size)
                elif suffix in (".txt", ".json"):
                    text = raw.decode_text(tar.extractfile(member).read(), member.name, report)
                    if suffix == ".txt":
                        entry.captions += raw.split_lines(text)
                    else:
                        entry.captions += raw.captions_from_json(raw.parse_json(text, member.name, report))
    except (tarfile.TarError, OSError) as error:
        report.skip(f"rest of a tar file that cannot be read ({error})", archive.name)
    return found


def _key(name: str) -> tuple[str, str]:
    """As WebDataset splits names: everything before the first dot of the file's name, and the suffix."""
    path = PurePosixPath(name)
    stem, dot, suffix = path.name.partition(".")
    return (str(path.with_name(stem)) if stem else "", (dot + suffix).lower())
