"""Published datasets that come with captions: Oxford-102 flowers, faces of CelebAMask-HQ, and COCO."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ....utils.errors import UserError
from ...manifest import CLASS_NAMES, class_caption, parse_class_names
from .. import raw_files as raw
from ..source_dataset import TEST, TRAIN, VALIDATION, FileImage, Origin, Record, Report, SourceDataset, SourceOptions

# Oxford-102 flowers: numbered class folders, or the flat `jpg/` folder with imagelabels

FLOWERS = Origin(
    "Oxford-102 flowers with captions",
    "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    "other",
    "Research use; the photographs belong to their photographers. Captions: Reed et al., CVPR 2016.",
)
_FLOWER_CAPTIONS = ("text_c10", "text", "cvpr2016_flowers/text_c10")
_CLASS_LISTS = ("trainvalclasses.txt", "testclasses.txt")


def read_flowers(source: Path, options: SourceOptions) -> SourceDataset:
    """Read flowers from a folder; without captions, the class name makes one. Raises UserError without images."""
    report = Report()
    root = raw.first_folder([source / "jpg", source / "images", source])
    captions_root = options.captions or raw.first_folder([source / name for name in _FLOWER_CAPTIONS]) or root
    by_stem = {path.stem: path.with_suffix("") for path in sorted(captions_root.rglob("image_*.txt"))}
    class_names = _class_names(source, report)
    classes = _flower_classes(source, root, captions_root, by_stem, report)
    if not classes:
        raise UserError(f"no images below {root}")
    numbers = _class_numbers(class_names, classes, report)
    names = raw.distinct_names([class_names.get(number, number) for number in numbers], report)
    test_classes, splits_from = _test_classes(source, captions_root, report)
    dataset = SourceDataset([], splits_from, report, names or None)
    for path, number in classes.items():
        image_id = raw.stem_id(path, root)
        stem = by_stem.get(path.stem, captions_root / image_id)
        captions = raw.clean_captions(raw.captions_next_to(stem, report), image_id, report)
        if not captions and number:
            captions = (class_caption(class_names.get(number, number)),)
            report.repair("image without captions: its class name made one", image_id)
        label = numbers.index(number) if number else None
        split = TEST if number in test_classes else TRAIN
        record = Record(split, image_id, FileImage(path), captions, label)
        dataset.add(record, "image without captions or class")
    return dataset


def _class_names(source: Path, report: Report) -> dict[str, str]:
    """Class number to name; {} with a note if the file is missing or damaged."""
    try:
        return parse_class_names(raw.read_text(source / CLASS_NAMES, report))
    except FileNotFoundError:
        report.notes.append(f"no {CLASS_NAMES}: classes keep their folders' names")
    except ValueError:
        report.notes.append(f"{CLASS_NAMES} is no JSON object: classes keep their folders' names")
    return {}


def _flower_classes(
    source: Path, root: Path, captions_root: Path, by_stem: dict[str, Path], report: Report
) -> dict[Path, str | None]:
    """Class number (without leading zeros) of every image: from imagelabels, its folder, or the captions' folder."""
    labels = _image_labels(source, report)
    classes = {}
    for path in raw.image_files(root):
        folder = path.parent if path.parent != root else by_stem.get(path.stem, path).parent
        by_folder = None if folder in (root, captions_root) else folder.name.removeprefix("class_").lstrip("0")
        classes[path] = labels.get(path.stem) or by_folder
    return classes


def _image_labels(source: Path, report: Report) -> dict[str, str]:
    """`imagelabels.txt` or `.npy`: class of image_00001, image_00002, ... (`.mat` has to be converted)."""
    if (path := source / "imagelabels.txt").is_file():
        numbers = " ".join(raw.read_lines(path, report)).split()
    elif (path := source / "imagelabels.npy").is_file():
        try:
            numbers = np.load(path, allow_pickle=False).ravel().tolist()
        except (OSError, ValueError, EOFError):
            report.notes.append("imagelabels.npy is no array of numbers: classes come from folders")
            return {}
    else:
        if (source / "imagelabels.mat").is_file():
            report.notes.append("imagelabels.mat is not read; classes come from the captions' folders")
        return {}
    return {f"image_{index:05d}": str(number) for index, number in enumerate(numbers, start=1)}


def _class_numbers(class_names: dict[str, str], classes: dict[Path, str | None], report: Report) -> list[str]:
    """Numbers, or names of folders, of all classes in the order of their labels."""
    folders = sorted({name for name in classes.values() if name}, key=raw.natural_key)
    if any(name.isdigit() for name in folders):
        report.notes.append("class folders are numbers: labels follow their numeric order, not the order of text")
    if class_names and all(name in class_names for name in folders):
        return sorted(class_names, key=raw.natural_key)
    return folders


def _test_classes(source: Path, captions_root: Path, report: Report) -> tuple[set[str], str]:
    """Numbers of the classes for testing, and where that comes from."""
    next_to_captions = [] if captions_root == source else [captions_root.parent]
    for folder in (source, source / "class_splits", *next_to_captions):
        train, test = (folder / name for name in _CLASS_LISTS)
        if train.is_file() and test.is_file():
            numbers = {line.removeprefix("class_").lstrip("0") for line in raw.read_lines(test, report)}
            return numbers, f"{' and '.join(_CLASS_LISTS)} of the source"
    report.notes.append(f"no {' and '.join(_CLASS_LISTS)}: everything is in the train split")
    return set(), "no class lists in the source: everything is train"


# CelebA-tiny: a sample of CelebAMask-HQ with captions of Multi-Modal-CelebA-HQ

FACES = Origin(
    "CelebA-tiny: faces with captions",
    "https://github.com/switchablenorms/CelebAMask-HQ",
    "other",
    "Non-commercial research and education only (CelebA). Captions: Multi-Modal-CelebA-HQ.",
)
_FACE_IMAGES = ("CelebA-HQ-img", "CelebAMask-HQ/CelebA-HQ-img", "images", "image")
_FACE_CAPTIONS = ("text/celeba-caption", "celeba-caption", "text", "captions")


def read_faces(source: Path, options: SourceOptions) -> SourceDataset:
    """Sample faces that have captions; with fewer than asked for, all are used and the test share stays the same.
    Raises UserError when there is no folder of images or none of captions, or too many are to be for testing."""
    total, test = options.num_images, options.num_test_images
    if not 0 <= test < total:
        raise UserError(f"--num_test_images must lie in [0, {total}), not {test}")
    report = Report()
    images = raw.need_folder([source / name for name in _FACE_IMAGES], "the folder of faces")
    places = [options.captions] if options.captions else [source / name for name in _FACE_CAPTIONS]
    captions_root = raw.need_folder(places, "the folder of captions")
    usable = {}
    for path in raw.image_files(images):
        captions = raw.clean_captions(raw.captions_next_to(captions_root / path.stem, report), path.stem, report)
        if captions:
            usable[path] = captions
        else:
            report.skip("image without captions", path.name)

    if len(usable) < total:
        report.notes.append(f"{len(usable):,} usable faces instead of {total:,}: all are used")
        total, test = len(usable), round(len(usable) * test / total)
    splits_from = f"sampled here with seed {options.seed}: {total - test:,} train and {test:,} test of {len(usable):,}"
    choices = {"seed": options.seed, "num_images": total, "num_test_images": test}
    dataset, paths = SourceDataset([], splits_from, report, choices=choices), list(usable)
    for place, index in enumerate(np.random.default_rng(options.seed).permutation(len(paths))[:total]):
        path, split = paths[index], TRAIN if place < total - test else TEST
        dataset.add(Record(split, raw.stem_id(path, images), FileImage(path), usable[path]))
    return dataset


# COCO captions, 2014 or 2017: images in `train2017/` and so on, captions in `annotations/captions_*.json`

COCO = Origin(
    "COCO captions",
    "https://cocodataset.org/",
    "other",
    "Annotations CC BY 4.0; the photographs stay under the terms of Flickr.",
)


def read_coco(source: Path, options: SourceOptions) -> SourceDataset:
    """Read COCO from a folder. Raises UserError when it holds no captions file."""
    report, files = Report(), {}
    annotations = options.captions or raw.first_folder([source / "annotations", source])
    for split, short in ((TRAIN, "train"), (VALIDATION, "val")):
        names = [f"captions_{short}{year}.json" for year in (2017, 2014)]
        name = next((name for name in names if (annotations / name).is_file()), None)
        if name is None:
            report.notes.append(f"no {' or '.join(names)} in {annotations.name}")
        else:
            files[split] = annotations / name
    if not files:
        raise UserError(f"no captions_train2017.json, captions_val2017.json or their 2014 versions in {annotations}")
    used = [path.name for path in files.values()]
    dataset = SourceDataset([], f"by file: {', '.join(used)}", report, choices={"annotations": used})
    for split, path in files.items():
        _read_coco_split(source, path, split, dataset)
    return dataset


def _read_coco_split(source: Path, path: Path, split: str, dataset: SourceDataset) -> None:
    report = dataset.report
    try:
        content = json.loads(raw.read_text(path, report))
        images = dict(_pairs(content["images"], "id", "file_name", path, report))
        captions_of = defaultdict(list)
        for number, caption in _pairs(content["annotations"], "image_id", "caption", path, report):
            captions_of[number].append(caption)
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no COCO captions file: {error}") from error
    name = path.stem.removeprefix("captions_")
    folder = raw.first_folder([source / name, source / "images" / name, source / "images"]) or source / name
    for number, file_name in sorted(images.items(), key=lambda item: raw.natural_key(item[0])):
        image = raw.path_inside(folder, file_name)
        if image is None:
            report.skip(f"path in {path.name} that leaves the source folder", file_name)
        elif not raw.is_file(image):
            report.skip(f"image listed in {path.name} that is not there", file_name)
        else:
            captions = raw.clean_captions(captions_of.get(number, []), file_name, report)
            dataset.add(Record(split, Path(file_name).stem, FileImage(image), captions), name=file_name)
    for number in sorted(captions_of.keys() - images.keys(), key=raw.natural_key):
        report.skip(f"captions in {path.name} of an image that it does not list", f"image {number}")


def _pairs(entries: list, key: str, value: str, path: Path, report: Report) -> Iterator[tuple[str, str]]:
    """(entry[key], entry[value]) of the entries that have both, a number or text and a text."""
    for entry in entries:
        entry = entry if isinstance(entry, dict) else {}
        if isinstance(entry.get(key), int | str) and isinstance(entry.get(value), str):
            yield str(entry[key]), entry[value]
        else:
            report.skip(f"entry of {path.name} without {key} or {value}", str(entry)[:40])
