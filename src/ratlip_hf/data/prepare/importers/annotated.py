"""COCO captions, 2014 or 2017: images in `train2017/` and so on, sentences in `annotations/captions_*.json`.
CelebA-tiny: faces drawn from CelebAMask-HQ with captions of Multi-Modal-CelebA-HQ."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ....utils.errors import UserError
from ..records import Corpus, FileImage, Origin, Record, Report, SourceOptions
from ..text import captions_beside, clean_captions, path_inside, read_text
from .birds import TEST, TRAIN, VALIDATION
from .common import first_folder, image_files, is_file, natural_key, need_folder, stem_id

COCO = Origin(
    "COCO captions",
    "https://cocodataset.org/",
    "other",
    "Annotations CC BY 4.0; the photographs stay under the terms of Flickr.",
)


def read_coco(source: Path, options: SourceOptions) -> Corpus:
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


FACES = Origin(
    "CelebA-tiny: faces with captions",
    "https://github.com/switchablenorms/CelebAMask-HQ",
    "other",
    "Non-commercial research and education only (CelebA). Captions: Multi-Modal-CelebA-HQ.",
)
_IMAGES = ("CelebA-HQ-img", "CelebAMask-HQ/CelebA-HQ-img", "images", "image")
_CAPTIONS = ("text/celeba-caption", "celeba-caption", "text", "captions")


def read_faces(source: Path, options: SourceOptions) -> Corpus:
    """Draw faces that have captions; with fewer than asked for, all are taken and the test share stays the same.

    Raises:
        UserError: when there is no folder of images or none of captions.
    """
    report = Report()
    images = need_folder([source / name for name in _IMAGES], "the folder of faces")
    places = [options.captions] if options.captions else [source / name for name in _CAPTIONS]
    captions = need_folder(places, "the folder of captions")
    usable = {}
    for path in image_files(images):
        sentences = clean_captions(captions_beside(captions / path.stem, report), path.stem, report)
        if sentences:
            usable[path] = sentences
        else:
            report.skip("image without captions", path.name)

    draw, test = options.draw, options.test
    if len(usable) < draw:
        report.notes.append(f"{len(usable):,} usable faces instead of {draw:,}: all are taken")
        draw, test = len(usable), round(len(usable) * test / draw)
    order = np.random.default_rng(options.seed).permutation(len(usable))[:draw]
    paths = list(usable)
    records = [
        Record(
            TRAIN if place < draw - test else TEST,
            stem_id(paths[index], images),
            FileImage(paths[index]),
            usable[paths[index]],
        )
        for place, index in enumerate(order)
    ]
    splits_from = f"drawn here with seed {options.seed}: {draw - test:,} train and {test:,} test of {len(usable):,}"
    return Corpus(records, splits_from, report, choices={"seed": options.seed, "draw": draw, "test": test})
