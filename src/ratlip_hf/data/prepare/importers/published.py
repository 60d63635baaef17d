"""Published datasets that come with captions: faces of CelebAMask-HQ, and COCO."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np

from ....utils.errors import UserError
from .. import raw_files as raw
from ..source_dataset import TEST, TRAIN, VALIDATION, Origin, Record, Report, SourceDataset, SourceOptions
from ..source_files import Folder, natural_key

# CelebA-tiny: a sample of CelebAMask-HQ with captions of Multi-Modal-CelebA-HQ

FACES = Origin(
    "CelebA-tiny: faces with captions",
    "https://github.com/switchablenorms/CelebAMask-HQ",
    "other",
    "Non-commercial research and education only (CelebA). Captions: Multi-Modal-CelebA-HQ.",
)
_FACE_FOLDERS = ("CelebA-HQ-img", "images", "image", "faces")
_ATTRIBUTES = ("CelebAMask-HQ-attribute-anno.txt", "celeba-hq-attribute.txt")
_CAPTION_SCRIPT = "create_caption.py of https://github.com/IIGROUP/MM-CelebA-HQ-Dataset"


def read_faces(source: Folder, options: SourceOptions) -> SourceDataset:
    """Sample faces that have captions; with fewer than asked for, all are used and the test share stays the same. A
    filenames.pickle of train and test says which of them can be in which split. Raises UserError when there are no
    faces or no captions, or too many are to be for testing."""
    total, test = options.num_images, options.num_test_images
    if not 0 <= test < total:
        raise UserError(f"--num_test_images must lie in [0, {total}), not {test}")
    report = source.report
    images = max(source.folders(*_FACE_FOLDERS), key=lambda folder: len(folder.images), default=source)
    faces = _faces(images)
    if not faces:
        raise UserError(f"no faces below {source}: no folder {', '.join(_FACE_FOLDERS)} with images")
    captions = raw.caption_folder(source, [PurePosixPath(name).stem for name in faces], options)
    if captions is None:
        attributes = source.file(*_ATTRIBUTES)
        how = f"; {_CAPTION_SCRIPT} makes them from {attributes}" if attributes else ""
        raise UserError(f"no captions below {options.captions or source}: no .txt has the name of a face{how}")
    usable = {}
    for name in faces:
        stem = PurePosixPath(name).stem
        if cleaned := raw.clean_captions(raw.captions_of(captions, stem), stem, report):
            usable[name] = cleaned
        else:
            report.skip("image without captions", name)

    if len(usable) < total:
        report.notes.append(f"{len(usable):,} usable faces instead of {total:,}: all are used")
        total, test = len(usable), round(len(usable) * test / total)
    listed = raw.pickled_split(source, [PurePosixPath(name).stem for name in usable])
    sampled = _sample(list(usable), total, test, listed, options.seed)
    counts = ", ".join(f"{list(sampled.values()).count(split):,} {split}" for split in (TRAIN, TEST))
    lists = " from the lists in filenames.pickle" if listed else ""
    splits_from = f"sampled here with seed {options.seed}{lists}: {counts} of {len(usable):,}"
    choices = {"seed": options.seed, "num_images": total, "num_test_images": test}
    dataset = SourceDataset([], splits_from, report, choices=choices)
    for name, split in sampled.items():
        dataset.add(Record(split, raw.stem_id(name), images.image(name), usable[name]))
    return dataset


def _faces(images: Folder) -> list[str]:
    """Images but for masks: those called after a part of the face (00000_hair.png), and the .png next to a .jpg of its
    name."""
    faces = []
    for name in images.images:
        path = PurePosixPath(name)
        part = path.stem.rpartition("_")[2]
        beside = path.suffix.lower() == ".png" and f"{raw.stem_of(name)}.jpg" in images
        if beside or (path.suffix.lower() == ".png" and "_" in path.stem and part.isalpha()):
            images.report.skip("mask beside faces", name)
        else:
            faces.append(name)
    return faces


def _sample(names: list[str], total: int, test: int, listed: dict[str, str] | None, seed: int) -> dict[str, str]:
    """Split by name of `total` faces, `test` of them for testing, as far as the lists allow."""
    order = [names[index] for index in np.random.default_rng(seed).permutation(len(names))]
    if listed is None:
        return {name: TRAIN if place < total - test else TEST for place, name in enumerate(order[:total])}
    sides = {
        split: [name for name in order if listed.get(PurePosixPath(name).stem) == split] for split in (TRAIN, TEST)
    }
    return {name: split for split, count in ((TRAIN, total - test), (TEST, test)) for name in sides[split][:count]}


# COCO captions, 2014 or 2017: images in `train2017/` and so on, captions in `annotations/captions_*.json`, or the
# folders `images/` and `text/` of AttnGAN

COCO = Origin(
    "COCO captions",
    "https://cocodataset.org/",
    "other",
    "Annotations CC BY 4.0; the photographs stay under the terms of Flickr.",
)
_YEARS = (2017, 2014)


def read_coco(source: Folder, options: SourceOptions) -> SourceDataset:
    """Read COCO, of the year from which more images are there. Raises UserError when there are no captions."""
    report, captions = source.report, source.other(options.captions) if options.captions else source
    found = {
        (year, split): path
        for year in _YEARS
        for split, short in ((TRAIN, "train"), (VALIDATION, "val"))
        if (path := captions.file(f"captions_{short}{year}.json"))
    }
    if not found:
        return _read_coco_texts(source, options)
    listed = {key: _read_annotations(captions, path) for key, path in found.items()}
    bare = {PurePosixPath(name).name: name for name in source.images}
    present = {
        year: sum(
            PurePosixPath(file).name in bare for key in listed if key[0] == year for file in listed[key][0].values()
        )
        for year in sorted({year for year, _ in found}, reverse=True)
    }
    best = max(present, key=present.get)
    if len(present) > 1:
        counts = ", ".join(f"{count:,} of {year}" for year, count in present.items())
        report.notes.append(f"captions of two years; images that are there: {counts}; {best} is used")
    for split, short in ((TRAIN, "train"), (VALIDATION, "val")):
        if (best, split) not in found:
            report.notes.append(f"no captions_{short}{best}.json")
    used = [PurePosixPath(path).name for key, path in found.items() if key[0] == best]
    dataset = SourceDataset([], f"by file: {', '.join(used)}", report, choices={"annotations": used})
    for (year, split), path in found.items():
        if year == best:
            _add_coco_split(source, PurePosixPath(path).name, split, listed[year, split], bare, dataset)
    return dataset


def _read_annotations(captions: Folder, path: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """File names and captions by the number of the image."""
    name, report = PurePosixPath(path).name, captions.report
    try:
        content = json.loads(raw.read_text(captions, path))
        images = dict(_pairs(content["images"], "id", "file_name", name, report))
        captions_by_number = defaultdict(list)
        for number, caption in _pairs(content["annotations"], "image_id", "caption", name, report):
            captions_by_number[number].append(caption)
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no COCO captions file: {error}") from error
    return images, captions_by_number


def _add_coco_split(
    source: Folder, table: str, split: str, listed: tuple[dict, dict], bare: dict[str, str], dataset: SourceDataset
) -> None:
    images, captions = listed
    report, folders = dataset.report, source.folders(table.removeprefix("captions_").removesuffix(".json"))
    for number, file_name in sorted(images.items(), key=lambda item: natural_key(item[0])):
        file = source.inside(file_name)
        place = next((folder for folder in folders if file in folder), None)
        if file is None or (place and place.inside(file) is None):
            report.skip(f"path in {table} that leaves the source folder", file_name)
        elif place is None and PurePosixPath(file).name not in bare:
            report.skip(f"image listed in {table} that is not there", file_name)
        else:
            image = place.image(file) if place else source.image(bare[PurePosixPath(file).name])
            cleaned = raw.clean_captions(captions.get(number, []), file_name, report)
            dataset.add(Record(split, PurePosixPath(file).stem, image, cleaned), name=file_name)
    for number in sorted(captions.keys() - images.keys(), key=natural_key):
        report.skip(f"captions in {table} of an image that it does not list", f"image {number}")


def _pairs(entries: list, key: str, value: str, table: str, report: Report) -> Iterator[tuple[str, str]]:
    """(entry[key], entry[value]) of the entries that have both, a number or text and a text."""
    for entry in entries:
        entry = entry if isinstance(entry, dict) else {}
        if isinstance(entry.get(key), int | str) and isinstance(entry.get(value), str):
            yield str(entry[key]), entry[value]
        else:
            report.skip(f"entry of {table} without {key} or {value}", str(entry)[:40])


def _read_coco_texts(source: Folder, options: SourceOptions) -> SourceDataset:
    """AttnGAN's layout: a .txt for each image, and filenames.pickle for train and test."""
    report = source.report
    captions, stems = raw.captions_by_name(source, options)
    images = [name for name in source.images if PurePosixPath(name).stem in stems]
    if not images:
        years = " or ".join(map(str, _YEARS))
        raise UserError(
            f"no captions_train*.json or captions_val*.json of {years}, and no .txt of an image, in {source}"
        )
    listed = raw.pickled_split(source, [PurePosixPath(name).stem for name in images])
    dataset = SourceDataset([], "filenames.pickle" if listed else "val2014 in the names of files", report)
    for name in images:
        image_id = PurePosixPath(name).stem
        split = listed.get(image_id) if listed else VALIDATION if "_val2014_" in image_id else TRAIN
        if split is None:
            report.skip("image that the split does not list", name)
        else:
            cleaned = raw.clean_captions(raw.captions_of(captions, stems[image_id]), image_id, report)
            dataset.add(Record(split, image_id, source.image(name), cleaned), name=name)
    return dataset
