"""CUB-200-2011 birds with Reed's captions: the original archive, or the "birds" folder of AttnGAN, DF-GAN and GALIP.
Two class-disjoint splits circulate under the same description (150 and 50 of 200 classes); both are here."""

import math
from dataclasses import dataclass, field

from ....utils.errors import UserError
from .. import raw_files as raw
from ..source_dataset import TEST, TRAIN, Origin, Record, Report, SourceDataset, SourceOptions, as_text
from ..source_files import Folder, natural_key

ORIGIN = Origin(
    "CUB-200-2011 birds with captions",
    "https://www.vision.caltech.edu/datasets/cub_200_2011/",
    "other",
    "Non-commercial research and education only; the photographs belong to their photographers. Captions: Reed et "
    "al., Learning Deep Representations of Fine-Grained Visual Descriptions, CVPR 2016.",
)


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


def read(source: Folder, options: SourceOptions) -> SourceDataset:
    """Read birds. Raises UserError when there are no images or no captions at all, or `options.split` is unknown or
    needs a missing table."""
    if options.split not in BIRD_SPLIT_NAMES:
        raise UserError(f"--split must be one of {', '.join(BIRD_SPLIT_NAMES)}, not {options.split!r}")
    report = source.report
    images = max(source.folders("images"), key=lambda folder: len(folder.images), default=None)
    if images is None or not images.images:
        raise UserError(f"the photographs of birds were not found: no folder images/ with them below {source}")
    metadata = _read_tables(source, images, report)
    stems = [raw.stem_of(name.replace("\\", "/")) for name in metadata.files.values()]
    captions = raw.caption_folder(source, stems, options)
    if captions is None:
        where = options.captions or source
        raise UserError(f"no captions below {where}: no .txt has the name of an image; see --captions")
    names = _class_names(source, metadata, report)
    by_number = {name.split(".")[0].lstrip("0"): name for name in names}
    split_of, splits_from = _splitter(source, metadata, options.split, set(map(as_text, stems)))
    dataset = SourceDataset([], splits_from, report, names, {"split": options.split})
    for number, listed in metadata.files.items():
        file = images.inside(listed)
        if file is None:
            report.skip("path in images.txt that leaves the source folder", listed)
        elif file not in images:
            report.skip("image listed in images.txt that is not there", file)
        elif (name := _class_name(metadata, by_number, number, file)) is None:
            report.skip("image of unknown class", file)
        elif (split := split_of(number, raw.stem_id(file), name)) is None:
            report.skip("image that the split does not list", file)
        else:
            image_id = raw.stem_id(file)
            cleaned = raw.clean_captions(raw.captions_of(captions, raw.stem_of(file)), image_id, report)
            box = metadata.boxes.get(number)
            dataset.add(Record(split, image_id, images.image(file), cleaned, names.index(name), box))
    _report_unlisted(images, metadata, report)
    if empty := sorted(set(range(len(names))) - {record.label for record in dataset.records}):
        report.notes.append(f"{len(empty)} of {len(names)} classes have no usable image, from {names[empty[0]]} on")
    return dataset


def _read_tables(source: Folder, images: Folder, report: Report) -> _Metadata:
    tables = _Metadata()
    files = _table(source, "images.txt")
    if files is None:
        report.notes.append("no images.txt: images are found by their suffix; boxes cannot be assigned")
        tables.files = {str(index): name for index, name in enumerate(images.images)}
        return tables
    tables.files = files
    tables.training = _table(source, "train_test_split.txt") or {}
    labels, boxes = (_table(source, name) for name in ("image_class_labels.txt", "bounding_boxes.txt"))
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
        for number in sorted((table or {}).keys() - files.keys(), key=natural_key):
            report.skip(f"row of {name} without a row of images.txt", f"image {number}")
        for number in sorted(files.keys() - (table or files).keys(), key=natural_key):
            report.repair(f"image without a row of {name}", files[number])
    return tables


def _table(source: Folder, name: str) -> dict[str, str] | None:
    """Lines "<number> <value>" as a dict; None without the file, wherever it may lie."""
    if (path := source.file(name)) is None:
        return None
    table = {}
    for line in raw.read_lines(source, path):
        number, _, value = line.partition(" ")
        if not (number.isascii() and number.isdecimal() and value):
            source.report.skip(f"line of {name} that is no number and value", line[:40])
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


def _class_names(source: Folder, metadata: _Metadata, report: Report) -> list[str]:
    names = _table(source, "classes.txt")
    if names is not None:
        return raw.distinct_names([names[number] for number in sorted(names, key=natural_key)], report)
    report.notes.append("no classes.txt: classes are the folders that images.txt names, by their number")
    folders = {file.replace("\\", "/").split("/")[0] for file in metadata.files.values() if "/" in file}
    return sorted(folders, key=natural_key)


def _class_name(metadata: _Metadata, by_number: dict[str, str], number: str, file: str) -> str | None:
    """From the table of labels, or else from the image's folder."""
    by_label = by_number.get(metadata.labels.get(number, "").lstrip("0"))
    folder = file.split("/")[0]
    return by_label or (folder if folder in by_number.values() else None)


def _splitter(source: Folder, metadata: _Metadata, split: str, known: set[str]):
    """A function (number, image_id, class name) -> split or None, and where that comes from."""
    if split == OFFICIAL:
        if not metadata.training:
            raise UserError(f"--split {OFFICIAL} needs train_test_split.txt, which is not below {source}")
        sides = {"1": TRAIN, "0": TEST}
        by_number = {number: sides.get(side) for number, side in metadata.training.items()}
        return lambda number, image_id, name: by_number.get(number), "train_test_split.txt of the source"
    published = BIRD_SPLITS[split]
    if split == "stackgan" and (by_id := raw.pickled_split(source, known)):
        origin = f"filenames.pickle of the source: {published.origin}"
        return lambda number, image_id, name: by_id.get(image_id), origin
    if split == "reed" and (by_class := _listed_classes(source)):
        return lambda number, image_id, name: by_class.get(name), f"class lists of the source: {published.origin}"

    def built_in(number: str, image_id: str, name: str) -> str | None:
        class_number = name.split(".")[0]
        if not class_number.isdigit():
            return None
        return TEST if int(class_number) in published.test_classes else TRAIN

    return built_in, f"built-in numbers of test classes: {published.origin}"


def _listed_classes(source: Folder) -> dict[str, str] | None:
    files = {TRAIN: source.file("trainvalclasses.txt"), TEST: source.file("testclasses.txt")}
    if None in files.values():
        return None
    return {name: split for split, path in files.items() for name in raw.read_lines(source, path)}


def _report_unlisted(images: Folder, metadata: _Metadata, report: Report) -> None:
    listed = {file.replace("\\", "/") for file in metadata.files.values()}
    for name in images.images:
        if name not in listed:
            report.skip("image without a row of images.txt", name)
