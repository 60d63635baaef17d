"""Oxford-102 flowers with Reed's captions: the official files, or folders of classes as they circulate."""

import io
import re
import struct
import zlib
from pathlib import PurePosixPath

import numpy as np

from ....utils.errors import UserError
from ....utils.files import LARGEST_TEXT
from ...manifest import CLASS_NAMES, class_caption, parse_class_names
from .. import raw_files as raw
from ..source_dataset import TEST, TRAIN, VALIDATION, Origin, Record, SourceDataset, SourceOptions
from ..source_files import Folder, natural_key
from .birds import OFFICIAL
from .folders import SPLIT_FOLDERS, split_of

FLOWERS = Origin(
    "Oxford-102 flowers with captions",
    "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    "other",
    "Research use; the photographs belong to their photographers. Captions: Reed et al., CVPR 2016.",
)
# Of the classes 1 to 102: the official files have numbers only. The order is that of the dataset's page.
_NAMES = (
    "pink primrose; hard-leaved pocket orchid; canterbury bells; sweet pea; english marigold; tiger lily; moon "
    "orchid; bird of paradise; monkshood; globe thistle; snapdragon; colt's foot; king protea; spear thistle; yellow "
    "iris; globe-flower; purple coneflower; peruvian lily; balloon flower; giant white arum lily; fire lily; "
    "pincushion flower; fritillary; red ginger; grape hyacinth; corn poppy; prince of wales feathers; stemless "
    "gentian; artichoke; sweet william; carnation; garden phlox; love in the mist; mexican aster; alpine sea holly; "
    "ruby-lipped cattleya; cape flower; great masterwort; siam tulip; lenten rose; barbeton daisy; daffodil; sword "
    "lily; poinsettia; bolero deep blue; wallflower; marigold; buttercup; oxeye daisy; common dandelion; petunia; "
    "wild pansy; primula; sunflower; pelargonium; bishop of llandaff; gaura; geranium; orange dahlia; pink-yellow "
    "dahlia; cautleya spicata; japanese anemone; black-eyed susan; silverbush; californian poppy; osteospermum; "
    "spring crocus; bearded iris; windflower; tree poppy; gazania; azalea; water lily; rose; thorn apple; morning "
    "glory; passion flower; lotus lotus; toad lily; anthurium; frangipani; clematis; hibiscus; columbine; "
    "desert-rose; tree mallow; magnolia; cyclamen; watercress; canna lily; hippeastrum; bee balm; ball moss; "
    "foxglove; bougainvillea; camellia; mallow; mexican petunia; bromelia; blanket flower; trumpet creeper; "
    "blackberry lily"
)
NAMES = tuple(_NAMES.split("; "))
_CLASS_LISTS = ("trainvalclasses.txt", "testclasses.txt")
_SETS = {"trnid": TRAIN, "valid": VALIDATION, "tstid": TEST}
_NO_CLASSES = ("", "jpg", "images", "text", "text_c10", "captions", *SPLIT_FOLDERS)  # names of folders


def read_flowers(source: Folder, options: SourceOptions) -> SourceDataset:
    """Read flowers; without captions, the class name makes one. Raises UserError without images, and when the official
    split is asked for but not there."""
    report = source.report
    images = next((folder for folder in source.folders("jpg") if folder.images), source)
    if not images.images:
        raise UserError(f"no images below {source}")
    captions, stems = raw.captions_by_name(source, options)
    classes = _classes(source, images, stems)
    class_names, numbers = _class_names(source, classes)
    names = raw.distinct_names([class_names.get(number, number) for number in numbers], report)
    split_by, splits_from = _splitter(source, images, classes, options)
    dataset = SourceDataset([], splits_from, report, names or None)
    for name, number in classes.items():
        image_id, split = raw.stem_id(name), split_by(name)
        if split is None:
            report.skip("image that the split does not list", image_id)
            continue
        stem = stems.get(PurePosixPath(name).stem, raw.stem_of(name))
        cleaned = raw.clean_captions(raw.captions_of(captions, stem), image_id, report)
        if not cleaned and number and not class_names.get(number, number).isdigit():  # a number says nothing
            cleaned = (class_caption(class_names.get(number, number)),)
            report.repair("image without captions: its class name made one", image_id)
        label = numbers.index(number) if number else None
        dataset.add(Record(split, image_id, images.image(name), cleaned, label), "image without captions or class")
    return dataset


def _classes(source: Folder, images: Folder, stems: dict[str, str]) -> dict[str, str | None]:
    """Class of every image, a number without leading zeros where it is one: from imagelabels, or else the image's
    folder, or the captions' folder."""
    labels = _image_labels(source)
    classes = {}
    for name in images.images:
        own, of_captions = (
            PurePosixPath(path).parent.name for path in (name, stems.get(PurePosixPath(name).stem, ""))
        )
        folder = next((folder for folder in (own, of_captions) if folder.lower() not in _NO_CLASSES), "")
        classes[name] = labels.get(_number(name)) or folder.removeprefix("class_").lstrip("0") or None
    return classes


def _number(name: str) -> int | None:
    """Of image_00001 and so on."""
    found = re.search(r"image_(\d+)$", PurePosixPath(name).stem)
    return int(found[1]) if found else None


def _image_labels(source: Folder) -> dict[int | None, str]:
    """`imagelabels.mat`, `.npy` or `.txt`: class by the number of the image, from 1 on."""
    path = source.file("imagelabels.txt", "imagelabels.npy", "imagelabels.mat")
    if path is None:
        return {}
    try:
        if path.endswith(".txt"):
            numbers = " ".join(raw.read_lines(source, path)).split()
        elif path.endswith(".npy"):
            stream = io.BytesIO(source.read(path))
            numbers = np.lib.format.read_array(stream, allow_pickle=False).ravel().astype(int).tolist()
        else:
            numbers = read_mat(source.read(path))["labels"].astype(int).tolist()
    except (OSError, ValueError, KeyError, EOFError) as error:
        source.report.notes.append(
            f"{PurePosixPath(path).name} is no array of numbers ({error}): folders give classes"
        )
        return {}
    return {index: str(number) for index, number in enumerate(numbers, start=1)}


def read_mat(content: bytes) -> dict[str, np.ndarray]:
    """Arrays of numbers in a MAT-file of level 5, flattened. Raises ValueError for anything else."""
    try:
        order = {b"IM": "<", b"MI": ">"}[content[126:128]]
        return dict(_mat_arrays(content[128:], order))
    except (KeyError, ValueError, struct.error, zlib.error, TypeError) as error:
        raise ValueError(f"it is no whole MAT-file of level 5: {error!r}") from error


_MAT_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MAT_MATRIX, _MAT_COMPRESSED = 14, 15


def _mat_elements(content: bytes, order: str) -> list[tuple[int, bytes]]:
    """(type, data) of the elements in a row; small ones hold their data in the tag."""
    elements, place = [], 0
    while place + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, place)
        if kind >> 16:
            elements.append((kind & 0xFFFF, content[place + 4 : place + 4 + min(kind >> 16, 4)]))
            place += 8
        else:
            elements.append((kind, content[place + 8 : place + 8 + size]))
            place += 8 + size + (0 if kind == _MAT_COMPRESSED else -size % 8)
    return elements


def _mat_arrays(content: bytes, order: str) -> list[tuple[str, np.ndarray]]:
    arrays = []
    for kind, data in _mat_elements(content, order):
        if kind == _MAT_COMPRESSED:
            (kind, data), *_ = _mat_elements(zlib.decompressobj().decompress(data, LARGEST_TEXT), order)
        if kind == _MAT_MATRIX:  # flags, dimensions, name, numbers
            _, _, (_, name), (stored, numbers), *_ = _mat_elements(data, order)
            arrays.append((name.decode("ascii"), np.frombuffer(numbers, order + _MAT_TYPES[stored])))
    return arrays


def _class_names(source: Folder, classes: dict[str, str | None]) -> tuple[dict[str, str], list[str]]:
    """Name by class number, and the numbers, or names of folders, of all classes in the order of their labels."""
    report, path, known = source.report, source.file(CLASS_NAMES), {}
    if path is not None:
        try:
            known = parse_class_names(raw.read_text(source, path))
        except (OSError, ValueError):
            report.notes.append(f"{CLASS_NAMES} is no JSON object: the built-in names are used")
    known = known or {str(number): name for number, name in enumerate(NAMES, start=1)}
    found = sorted({name for name in classes.values() if name}, key=natural_key)
    if any(name.isdigit() for name in found):
        report.notes.append("classes are numbers: labels follow their numeric order, not the order of text")
    return known, sorted(known, key=natural_key) if found and all(name in known for name in found) else found


def _splitter(source: Folder, images: Folder, classes: dict[str, str | None], options: SourceOptions):
    """A function name -> split or None, and where that comes from: folders, lists of images, of classes, setid.mat."""
    folders = {name: split_of(name) for name in classes}
    sets, lists = source.file("setid.mat"), [source.file(name) for name in _CLASS_LISTS]
    if options.split == OFFICIAL and sets is None:
        raise UserError(f"--split {OFFICIAL} needs setid.mat, which is not below {source}")
    if options.split != OFFICIAL:
        if set(folders.values()) != {TRAIN}:
            return folders.get, "names of the folders train, valid and test"
        if listed := raw.pickled_split(source, [PurePosixPath(name).stem for name in classes]):
            return lambda name: listed.get(PurePosixPath(name).stem), "filenames.pickle of the source"
        if None not in lists:
            tests = {line.removeprefix("class_").lstrip("0") for line in raw.read_lines(source, lists[1])}
            origin = f"{' and '.join(_CLASS_LISTS)} of the source"
            return lambda name: TEST if classes[name] in tests else TRAIN, origin
    if sets is not None:
        try:
            arrays = read_mat(source.read(sets))
            by_number = {int(number): split for key, split in _SETS.items() for number in arrays[key]}
            return lambda name: by_number.get(_number(name)), "setid.mat of the source: every class is in every split"
        except (OSError, ValueError, KeyError) as error:
            source.report.notes.append(f"setid.mat cannot be read ({error})")
    source.report.notes.append(f"no {' and '.join(_CLASS_LISTS)}: everything is in the train split")
    return lambda name: TRAIN, "no class lists in the source: everything is train"
