"""Pictures beside captions: .txt (a sentence per line), .json, or rows of a metadata.jsonl, in any folder structure.
Owns how splits and classes follow from folders' names."""

from pathlib import Path

from ...utils.errors import UserError
from ..captions import captions_beside, captions_from_json, clean_captions, parse_json, read_lines
from ..corpus import Corpus, FileImage, Origin, Record, Report, SourceOptions
from ..splits import TEST, TRAIN, VALIDATION
from ..untrusted import path_inside
from .common import image_files, stem_id

ORIGIN = Origin("Captioned images", "", "unknown", "As the source says.")
METADATA = "metadata.jsonl"
SPLIT_FOLDERS = {"train": TRAIN, "test": TEST, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION}


def read(source: Path, options: SourceOptions) -> Corpus:
    """Read a folder of images. Captions of metadata.jsonl come first, then those beside the image.

    Raises:
        UserError: when there are no images.
    """
    report = Report()
    captions_root = options.captions or source
    listed = _read_metadata(source, report)
    paths = list(image_files(source))
    if not paths:
        raise UserError(f"no images below {source}")
    records = []
    for path in paths:
        image_id = stem_id(path, source)
        sentences = listed.pop(path, None) or captions_beside(captions_root / image_id, report)
        if captions := clean_captions(sentences, image_id, report):
            records.append(Record(_split(path, source), image_id, FileImage(path), captions))
        else:
            report.skip("image without captions or metadata row", path.relative_to(source).as_posix())
    for path in listed:
        report.skip(f"row of {METADATA} whose image is not there", path.relative_to(source).as_posix())
    by_folder = {record.split for record in records} != {TRAIN}
    splits_from = "names of the folders train, test and val" if by_folder else "no split in the source: all is train"
    return Corpus(records, splits_from, report)


def _split(path: Path, source: Path) -> str:
    parts = path.relative_to(source).parts
    return SPLIT_FOLDERS.get(parts[0].lower(), TRAIN) if len(parts) > 1 else TRAIN


def _read_metadata(source: Path, report: Report) -> dict[Path, list[str]]:
    """Sentences by picture, of every metadata.jsonl; its file names are relative to where it lies."""
    listed: dict[Path, list[str]] = {}
    for table in sorted(source.rglob(METADATA)):
        for number, line in enumerate(read_lines(table, report), start=1):
            where = f"{table.relative_to(source).as_posix()} line {number}"
            row = parse_json(line, where, report)
            name = row.get("file_name") if isinstance(row, dict) else None
            if not isinstance(name, str):
                if row is not None:
                    report.skip(f"row of {METADATA} without a file_name", where)
            elif (path := path_inside(table.parent, name)) is None:
                report.skip(f"path in {METADATA} that leaves the source folder", name)
            else:
                listed.setdefault(path, []).extend(captions_from_json(row))
    return listed
