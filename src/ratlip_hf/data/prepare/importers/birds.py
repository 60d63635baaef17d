"""CUB-200-2011 birds with Reed's captions: the original archive, or the "birds" folder of DF-GAN and GALIP.
Two class-disjoint splits circulate under the same description (150 and 50 of 200 classes); both are here."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from ....utils.errors import UserError
from .. import raw_files as raw
from ..source_dataset import TEST, TRAIN, FileImage, Origin, Record, Report, SourceDataset, SourceOptions

ORIGIN = Origin(
    "CUB-200-2011 birds with captions",
    "https://www.vision.caltech.edu/datasets/cub_200_2011/",
    "other",
    "Non-commercial research and education only; the photographs belong to their photographers. Captions: Reed et "
    "al., Learning Deep Representations of Fine-Grained Visual Descriptions, CVPR 2016.",
)
_CAPTION_FOLDERS = ("text", "text_c10", "cvpr2016_cub/text_c10", "birds/text")


@dataclass(frozen=True)
class ClassSplit:
    """A published split: where it comes from, and the numbers (1 to 200) of its test classes."""

    origin: str
    test_classes: set[int]


def _numbers(text: str) -> set[int]:
    return set(map(int, text.split()))


BIRD_SPLITS = {
    "stackgan": ClassSplit(
        "the lists of StackGAN's filenames.pickle, used from StackGAN to DF-GAN, GALIP and RATLIP "
        "(8,855 train and 2,933 test images)",
        _numbers(
            "1 4 6 8 9 14 23 29 31 33 34 35 36 37 38 43 49 51 53 66 72 79 83 84 86 91 95 96 98 101 102 103 "
            "112 114 119 121 130 135 138 147 156 163 165 166 180 183 185 186 187 197"
        ),
    ),
    "reed": ClassSplit(
        "trainvalclasses.txt and testclasses.txt of Akata, Reed et al. (8,821 train and 2,967 test images)",
        _numbers(
            "4 12 23 26 28 31 33 43 45 49 52 55 70 72 77 84 87 91 94 97 98 103 104 111 113 119 123 124 127 "
            "130 132 136 138 139 143 148 156 157 161 163 164 165 168 169 173 180 188 190 191 200"
        ),
    ),
}
OFFICIAL = "official"  # CUB's own train_test_split.txt: every class is in both halves
BIRD_SPLIT_NAMES = (*BIRD_SPLITS, OFFICIAL)


@dataclass
class _Metadata:
    """CUB's tables, joined by the number of the image; any of them may be missing."""

    files: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    boxes: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)
    training: dict[str, str] = field(default_factory=dict)


def read(source: Path, options: SourceOptions) -> SourceDataset:
    """Read birds from a folder. Raises UserError when there are no images or no captions at all, or `options.split` is
    unknown or needs a missing table."""
    if options.split not in BIRD_SPLIT_NAMES:
        raise UserError(f"--split must be one of {', '.join(BIRD_SPLIT_NAMES)}, not {options.split!r}")
    report = Report()
    cub = raw.need_folder([source / "CUB_200_2011", source], "birds")
    images = raw.need_folder([cub / "images"], "the folder of bird photographs")
    captions_root = _caption_folder(source, cub, options)
    metadata = _read_tables(cub, images, report)
    names = _class_names(cub, metadata, report)
    by_number = {name.split(".")[0].lstrip("0"): name for name in names}
    split_of, splits_from = _splitter(source, cub, metadata, options.split, report)
    dataset = SourceDataset([], splits_from, report, names, {"split": options.split})
    for number, file in metadata.files.items():
        path = raw.path_inside(images, file)
        if path is None:
            report.skip("path in images.txt that leaves the source folder", file)
        elif not raw.is_file(path):
            report.skip("image listed in images.txt that is not there", file)
        elif (name := _class_name(metadata, by_number, number, file)) is None:
            report.skip("image of unknown class", file)
        elif (split := split_of(number, raw.stem_id(path, images), name)) is None:
            report.skip("image that the split does not list", file)
        else:
            image_id = raw.stem_id(path, images)
            captions = raw.clean_captions(raw.captions_next_to(captions_root / image_id, report), image_id, report)
            box = metadata.boxes.get(number)
            dataset.add(Record(split, image_id, FileImage(path), captions, names.index(name), box))
    _report_unlisted(images, metadata, report)
    if empty := sorted(set(range(len(names))) - {record.label for record in dataset.records}):
        report.notes.append(f"{len(empty)} of {len(names)} classes have no usable image, from {names[empty[0]]} on")
    return dataset


def _caption_folder(source: Path, cub: Path, options: SourceOptions) -> Path:
    if options.captions is not None:
        return raw.need_folder([options.captions], "--captions")
    places = [root / name for root in dict.fromkeys((source, cub)) for name in _CAPTION_FOLDERS]
    found = raw.first_folder(places)
    if found is None:
        packed = next((f"; {zipped} has to be unpacked first" for zipped in source.glob("*text*.zip")), "")
        raise UserError(f"no captions: none of {', '.join(map(str, places[:4]))} is a folder{packed}; see --captions")
    return found


def _read_tables(cub: Path, images: Path, report: Report) -> _Metadata:
    tables = _Metadata()
    files = _table(cub / "images.txt", report)
    if files is None:
        report.notes.append("no images.txt: images are found by their suffix; boxes cannot be assigned")
        tables.files = {str(i): path.relative_to(images).as_posix() for i, path in enumerate(raw.image_files(images))}
        return tables
    tables.files = files
    tables.training = _table(cub / "train_test_split.txt", report) or {}
    labels, boxes = (_table(cub / name, report) for name in ("image_class_labels.txt", "bounding_boxes.txt"))
    if labels is None:
        report.notes.append("no image_class_labels.txt: the class is the number before the name of the folder")
    if boxes is None:
        report.notes.append("no bounding_boxes.txt: images cannot be cropped to the bird")
    tables.labels = labels or {}
    for number, text in (boxes or {}).items():
        if (box := _box(text)) is None:
            report.repair("bounding box that is not four numbers with an area; left empty", f"image {number}")
        else:
            tables.boxes[number] = box
    for name, table in (("image_class_labels.txt", labels), ("bounding_boxes.txt", boxes)):
        for number in sorted((table or {}).keys() - files.keys(), key=raw.natural_key):
            report.skip(f"row of {name} without a row of images.txt", f"image {number}")
        for number in sorted(files.keys() - (table or files).keys(), key=raw.natural_key):
            report.repair(f"image without a row of {name}", files[number])
    return tables


def _table(path: Path, report: Report) -> dict[str, str] | None:
    """Lines "<number> <value>" as a dict; None without the file."""
    if not path.is_file():
        return None
    table = {}
    for line in raw.read_lines(path, report):
        number, _, value = line.partition(" ")
        if not (number.isascii() and number.isdecimal() and value):
            report.skip(f"line of {path.name} that is no number and value", line[:40])
        else:
            table[number] = value.strip()
    return table


def _box(text: str) -> tuple[float, float, float, float] | None:
    try:
        left, top, width, height = map(float, text.split())
    except ValueError:
        return None
    sound = all(map(math.isfinite, (left, top, width, height))) and width > 0 and height > 0
    return (left, top, width, height) if sound else None


def _class_names(cub: Path, metadata: _Metadata, report: Report) -> list[str]:
    names = _table(cub / "classes.txt", report)
    if names is not None:
        return raw.distinct_names([names[number] for number in sorted(names, key=raw.natural_key)], report)
    report.notes.append("no classes.txt: classes are the folders that images.txt names, by their number")
    folders = {file.replace("\\", "/").split("/")[0] for file in metadata.files.values() if "/" in file}
    return sorted(folders, key=raw.natural_key)


def _class_name(metadata: _Metadata, by_number: dict[str, str], number: str, file: str) -> str | None:
    """From the table of labels, or else from the image's folder."""
    by_label = by_number.get(metadata.labels.get(number, "").lstrip("0"))
    folder = Path(file.replace("\\", "/")).parts[0]
    return by_label or (folder if folder in by_number.values() else None)


def _splitter(source: Path, cub: Path, metadata: _Metadata, split: str, report: Report):
    """A function (number, image_id, class name) -> split or None, and where that comes from."""
    if split == OFFICIAL:
        if not metadata.training:
            raise UserError(f"--split {OFFICIAL} needs {cub / 'train_test_split.txt'}")
        sides = {"1": TRAIN, "0": TEST}
        by_number = {number: sides.get(side) for number, side in metadata.training.items()}
        return lambda number, image_id, name: by_number.get(number), "train_test_split.txt of the source"
    published = BIRD_SPLITS[split]
    if split == "stackgan" and (by_id := _pickled_split(source, report)):
        origin = f"filenames.pickle of the source: {published.origin}"
        return lambda number, image_id, name: by_id.get(image_id), origin
    if split == "reed" and (by_class := _listed_classes(source, report)):
        return lambda number, image_id, name: by_class.get(name), f"class lists of the source: {published.origin}"

    def built_in(number: str, image_id: str, name: str) -> str | None:
        class_number = name.split(".")[0]
        if not class_number.isdigit():
            return None
        return TEST if int(class_number) in published.test_classes else TRAIN

    return built_in, f"built-in numbers of test classes: {published.origin}"


def _pickled_split(source: Path, report: Report) -> dict[str, str] | None:
    listed = {}
    for split in (TRAIN, TEST):
        path = source / split / "filenames.pickle"
        if not path.is_file():
            return None
        try:
            names = raw.load_plain_pickle(path)
        except raw.RefusedPickle as error:
            report.notes.append(f"{split}/filenames.pickle was refused, {error}; the built-in class list is used")
            return None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            report.notes.append(f"{split}/filenames.pickle is no list of names; the built-in class list is used")
            return None
        listed |= {name.replace("\\", "/"): split for name in names}
    return listed


def _listed_classes(source: Path, report: Report) -> dict[str, str] | None:
    folder = raw.first_folder([source / "class_splits", source / "cvpr2016_cub", source])
    files = {TRAIN: folder / "trainvalclasses.txt", TEST: folder / "testclasses.txt"}
    if not all(path.is_file() for path in files.values()):
        return None
    return {name: split for split, path in files.items() for name in raw.read_lines(path, report)}


def _report_unlisted(images: Path, metadata: _Metadata, report: Report) -> None:
    listed = {file.replace("\\", "/") for file in metadata.files.values()}
    for path in raw.image_files(images):
        if (name := path.relative_to(images).as_posix()) not in listed:
            report.skip("image without a row of images.txt", name)
