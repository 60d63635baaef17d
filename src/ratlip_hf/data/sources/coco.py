"""COCO captions, 2014 or 2017: images in `train2017/` and so on, sentences in `annotations/captions_*.json`.
Owns joining the two; COCO's test images have no captions, so its validation images are the second split."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from ...utils.errors import UserError
from ..captions import clean_captions, read_text
from ..corpus import Corpus, FileImage, Origin, Record, Report, SourceOptions
from ..splits import TRAIN, VALIDATION
from ..untrusted import path_inside
from .common import first_folder, is_file, natural_key

ORIGIN = Origin(
    "COCO captions",
    "https://cocodataset.org/",
    "other",
    "Annotations CC BY 4.0; the photographs stay under the terms of Flickr.",
)


def read(source: Path, options: SourceOptions) -> Corpus:
    """Read COCO from a folder. Raises UserError when it holds no captions file."""
    report, records, used = Report(), [], []
    annotations = options.captions or first_folder([source / "annotations", source])
    for split, short in ((TRAIN, "train"), (VALIDATION, "val")):
        path = next(
            (
                annotations / f"captions_{short}{year}.json"
                for year in (2017, 2014)
                if (annotations / f"captions_{short}{year}.json").is_file()
            ),
            None,
        )
        if path is None:
            report.notes.append(f"no captions_{short}2017.json or captions_{short}2014.json in {annotations.name}")
        else:
            used.append(path.name)
            records += _read_split(source, path, split, report)
    if not used:
        raise UserError(f"no captions_train2017.json, captions_val2017.json or their 2014 versions in {annotations}")
    return Corpus(records, f"by file: {', '.join(used)}", report, choices={"annotations": used})


def _pairs(entries: list, key: str, value: str, path: Path, report: Report) -> Iterator[tuple[str, str]]:
    """(entry[key], entry[value]) of the entries that have both, a number or text and a text."""
    for entry in entries:
        entry = entry if isinstance(entry, dict) else {}
        if isinstance(entry.get(key), int | str) and isinstance(entry.get(value), str):
            yield str(entry[key]), entry[value]
        else:
            report.skip(f"entry of {path.name} without {key} or {value}", str(entry)[:40])


def _read_split(source: Path, path: Path, split: str, report: Report) -> list[Record]:
    try:
        content = json.loads(read_text(path, report))
        images = dict(_pairs(content["images"], "id", "file_name", path, report))
        sentences = defaultdict(list)
        for number, sentence in _pairs(content["annotations"], "image_id", "caption", path, report):
            sentences[number].append(sentence)
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no COCO captions file: {error}") from error
    name = path.stem.removeprefix("captions_")
    folder = first_folder([source / name, source / "images" / name, source / "images"]) or source / name
    records = []
    for number, file_name in sorted(images.items(), key=lambda item: natural_key(item[0])):
        image = path_inside(folder, file_name)
        if image is None:
            report.skip(f"path in {path.name} that leaves the source folder", file_name)
        elif not is_file(image):
            report.skip(f"image listed in {path.name} that is not there", file_name)
        elif captions := clean_captions(sentences.get(number, []), file_name, report):
            records.append(Record(split, Path(file_name).stem, FileImage(image), captions))
        else:
            report.skip("image without captions", file_name)
    for number in sorted(sentences.keys() - images.keys(), key=natural_key):
        report.skip(f"captions in {path.name} of an image that it does not list", f"image {number}")
    return records
