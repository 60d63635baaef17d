"""Captioned images of any origin: folders with captions in files or tables, and tar files as WebDataset has them."""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath

from ....utils.errors import UserError
from ...images import SUFFIXES
from .. import raw_files as raw
from ..source_dataset import TEST, TRAIN, VALIDATION, Origin, Record, SourceDataset, SourceOptions, as_text
from ..source_files import Folder

FOLDER = WEBDATASET = Origin("Captioned images", "", "unknown", "As the source says.")
SPLIT_FOLDERS = {"train": TRAIN, "test": TEST, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION}
METADATA = "metadata.jsonl"
# Names, and endings of names, of tables with a caption per row, beside those that are called like a folder of images.
_TABLES = ("metadata.csv", "captions.csv", "results.csv", "captions.txt", "captions.tsv", "token.txt", ".token")
_NAME_COLUMNS = ("file_name", "filename", "image", "image_name", "file", "path")
_CAPTION_COLUMNS = (*raw.KEYS, "comment", "sentence")


def read_folder(source: Folder, options: SourceOptions) -> SourceDataset:
    """Read a folder of images in any structure. Captions come from rows of tables in it, or else from a .txt (one per
    line) or .json next to the image. Raises UserError when there are no images."""
    report = source.report
    if not source.images:
        raise UserError(f"no images below {source}")
    captions = source.other(options.captions) if options.captions else source
    listed = _read_tables(source, captions)
    dataset = SourceDataset([], "no split in the source: all is train", report)
    for name in source.images:
        image_id = raw.stem_id(name)
        found = listed.pop(name, None) or raw.captions_of(captions, raw.stem_of(name))
        record = Record(split_of(name), image_id, source.image(name), raw.clean_captions(found, image_id, report))
        dataset.add(record, "image without captions or metadata row", name)
    if {record.split for record in dataset.records} != {TRAIN}:
        dataset.splits_from = "names of the folders train, test and val"
    return dataset


def split_of(name: str) -> str:
    """By the folder that a file lies in: the first called train, test or val decides; train if there is none."""
    folders = name.lower().split("/")[:-1]
    return next((SPLIT_FOLDERS[folder] for folder in folders if folder in SPLIT_FOLDERS), TRAIN)


def _read_tables(source: Folder, captions: Folder) -> dict[str, list[str]]:
    """Captions by image, of every table among the captions. Its names are relative to where it lies or to a folder
    there, or, where it is the only table, to any folder."""
    listed: dict[str, list[str]] = {}
    bare = defaultdict(list)
    for name in source.images:
        bare[PurePosixPath(name).name].append(name)
    tables = [name for name in captions.files if _is_table(captions, name)]
    for table in tables:
        start, _, kind = table.rpartition("/")
        start = start if captions is source else ""
        for name, found in (_json_rows if kind == METADATA else _text_rows)(captions, table):
            path = source.inside(f"{start}/{name}" if start else name) if source.inside(name) else None
            if path is None:
                source.report.skip(f"path in {kind} that leaves the source folder", name)
                continue
            if path not in source:  # in a folder of images next to the table, such as Flickr8k's Images/
                near = [image for image in bare[PurePosixPath(path).name] if f"/{image}".endswith(f"/{name}")]
                near = [image for image in near if image.startswith(start) or len(tables) == 1]
                path = near[0] if len(near) == 1 else path
            if path in source:
                listed.setdefault(path, []).extend(found)
            else:
                source.report.skip(f"row of {kind} whose image is not there", as_text(path))
    return listed


def _is_table(captions: Folder, name: str) -> bool:
    """By its name, unless it has that of an image, whose captions it holds."""
    beside = any(raw.stem_of(name) + suffix in captions for suffix in SUFFIXES)
    return PurePosixPath(name).name == METADATA or (name.lower().endswith(_TABLES) and not beside)


def _json_rows(source: Folder, table: str) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(raw.read_lines(source, table), start=1):
        where = f"{table} line {number}"
        row = raw.parse_json(line, where, source.report)
        name = row.get("file_name") if isinstance(row, dict) else None
        if isinstance(name, str):
            yield name, raw.captions_from_json(row)
        elif row is not None:
            source.report.skip(f"row of {METADATA} without a file_name", where)


def _text_rows(source: Folder, table: str) -> Iterator[tuple[str, list[str]]]:
    """Rows of a table: "name#0<tab>caption" as Flickr8k and Flickr30k have them, or columns that commas, bars or tabs
    divide and whose names are in the first line."""
    lines = raw.read_lines(source, table)
    kind, head = PurePosixPath(table).name, lines[0] if lines else ""
    delimiter = next((mark for mark in "\t|" if mark in head), ",")
    ended = (f"{line}\n" for line in lines)  # a caption in quotes may go on in the next line
    rows = csv.reader(ended, delimiter=delimiter, quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL)
    columns = [re.sub(r"\W", "", column).lower() for column in next(rows, [])]
    name_at, caption_at = (
        next((columns.index(name) for name in names if name in columns), None)
        for names in (_NAME_COLUMNS, _CAPTION_COLUMNS)
    )
    if delimiter == "\t" and re.search(r"#\d+\t", head):
        name_at, caption_at, rows = 0, 1, (line.split("\t", 1) for line in lines)
    elif name_at is None or caption_at is None:
        source.report.notes.append(f"{kind} names no columns of images and captions in its first line: it is not used")
        return
    try:
        for number, row in enumerate(rows, start=1):
            if len(row) <= max(name_at, caption_at):
                source.report.skip(f"row of {kind} without a caption", f"{table} row {number}")
            else:
                yield re.sub(r"#\d+$", "", row[name_at].strip()), [row[caption_at]]
    except csv.Error as error:
        source.report.skip(f"rest of {kind} that cannot be read ({error})", table)


# WebDataset: members of a tar file share a key, as in 000012.jpg with 000012.txt or 000012.json


def read_webdataset(source: Folder, options: SourceOptions) -> SourceDataset:
    """Read archives, each seen as a folder. Raises UserError when there is none."""
    report = source.report
    if not source.files:
        raise UserError(f"no .tar, .tgz or .zip with files in it below {source}")
    dataset = SourceDataset([], "names of the tar files or their folders, else train", report)
    # By key: everything before the first dot of a file's name, as WebDataset has it.
    images: dict[str, str | None] = {}
    for name in source.files:
        folder, slash, file = name.rpartition("/")
        key = folder + slash + file.partition(".")[0]
        suffix = name[len(key) :].lower()
        if suffix in (*SUFFIXES, ".txt", ".json"):
            images[key] = name if suffix in SUFFIXES else images.get(key)
    for key, image in images.items():
        image_id = as_text(key)
        captions = raw.clean_captions(raw.captions_of(source, key), image_id, report)
        if image is None:
            report.skip("captions without an image", image_id)
        else:
            dataset.add(Record(_archive_split(image_id), image_id, source.image(image), captions))
    return dataset


def _archive_split(name: str) -> str:
    start = name.split("/")[0].lower().split("-")[0].split("_")[0]
    return SPLIT_FOLDERS.get(start, TRAIN)
