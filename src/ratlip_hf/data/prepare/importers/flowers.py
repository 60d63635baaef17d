"""Oxford-102 flowers: numbered class folders or the flat `jpg/` folder with imagelabels; captions where there are any.
Owns class names (`cat_to_name.json`) and the split by class; without captions the class name makes the sentence."""

import json
from pathlib import Path

import numpy as np

from ....utils.errors import UserError
from ..records import Corpus, FileImage, Origin, Record, Report, SourceOptions, distinct_names
from ..text import captions_beside, class_caption, clean_captions, read_lines, read_text
from .birds import TEST, TRAIN
from .common import first_folder, image_files, natural_key, stem_id

ORIGIN = Origin(
    "Oxford-102 flowers with captions",
    "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    "other",
    "Research use; the photographs belong to their photographers. Captions: Reed et al., CVPR 2016.",
)
NAMES_FILE = "cat_to_name.json"
_CAPTION_FOLDERS = ("text_c10", "text", "cvpr2016_flowers/text_c10")
_CLASS_LISTS = ("trainvalclasses.txt", "testclasses.txt")


def read(source: Path, options: SourceOptions) -> Corpus:
    """Read flowers from a folder. Raises UserError when there are no images."""
    report = Report()
    root = first_folder([source / "jpg", source / "images", source])
    captions = options.captions or first_folder([source / name for name in _CAPTION_FOLDERS]) or root
    by_stem = {path.stem: path.with_suffix("") for path in sorted(captions.rglob("image_*.txt"))}
    class_names, classes = read_class_names(source, report), _classes(source, root, captions, by_stem, report)
    if not classes:
        raise UserError(f"no images below {root}")
    numbers = _class_numbers(class_names, classes, report)
    names = distinct_names([class_names.get(number, number) for number in numbers], report)
    split_of, splits_from = _splitter(source, captions, report)

    records = []
    for path, name in classes.items():
        image_id = stem_id(path, root)
        stem = by_stem.get(path.stem, captions / image_id)
        sentences = clean_captions(captions_beside(stem, report), image_id, report)
        label = numbers.index(name) if name else None
        if not sentences and label is not None:
            sentences = (class_caption(class_names.get(name, name)),)
            report.repair("image without captions: its class name made one", image_id)
        if sentences:
            records.append(Record(split_of(name), image_id, FileImage(path), sentences, label))
        else:
            report.skip("image without captions or class", image_id)
    return Corpus(records, splits_from, report, names or None)


def read_class_names(source: Path, report: Report) -> dict[str, str]:
    """Class number to name from `cat_to_name.json`; {} with a note if it is missing or damaged."""
    path = source / NAMES_FILE
    try:
        names = json.loads(read_text(path, report))
        return {str(number): str(name) for number, name in names.items()}
    except FileNotFoundError:
        report.notes.append(f"no {NAMES_FILE}: classes keep their folders' names")
    except (ValueError, RecursionError, AttributeError):
        report.notes.append(f"{NAMES_FILE} is no JSON object: classes keep their folders' names")
    return {}


def _classes(
    source: Path, root: Path, captions: Path, by_stem: dict[str, Path], report: Report
) -> dict[Path, str | None]:
    """Class number (without leading zeros) of every image: from its folder, imagelabels, or the captions' folder."""
    labels = _image_labels(source, report)
    classes = {}
    for path in image_files(root):
        folder = path.parent if path.parent != root else by_stem.get(path.stem, path).parent
        by_folder = None if folder in (root, captions) else folder.name.removeprefix("class_").lstrip("0")
        classes[path] = labels.get(path.stem) or by_folder
    return classes


def _image_labels(source: Path, report: Report) -> dict[str, str]:
    """`imagelabels.txt` or `.npy`: class of image_00001, image_00002, ... (`.mat` has to be converted)."""
    if (path := source / "imagelabels.txt").is_file():
        numbers = " ".join(read_lines(path, report)).split()
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
    folders = sorted({name for name in classes.values() if name}, key=natural_key)
    if any(name.isdigit() for name in folders):
        report.notes.append("class folders are numbers: labels follow their numeric order, not the order of text")
    if class_names and all(name in class_names for name in folders):
        return sorted(class_names, key=natural_key)
    return folders


def _splitter(source: Path, captions: Path, report: Report):
    """A function class number -> split, and a sentence saying where it comes from."""
    beside = [] if captions == source else [captions.parent]
    for folder in (source, source / "class_splits", *beside):
        train, test = (folder / name for name in _CLASS_LISTS)
        if train.is_file() and test.is_file():
            testing = [line.removeprefix("class_").lstrip("0") for line in read_lines(test, report)]
            return _by_class(testing), f"{' and '.join(_CLASS_LISTS)} of the source"
    report.notes.append(f"no {' and '.join(_CLASS_LISTS)}: everything is in the train split")
    return _by_class([]), "no class lists in the source: everything is train"


def _by_class(testing: list[str]):
    return lambda name: TEST if name in testing else TRAIN
