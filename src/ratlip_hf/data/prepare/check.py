"""What is in a prepared dataset and what is wrong with it: images, captions, duplicates, classes, checksums."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ...utils.errors import UserError
from ...utils.files import file_sha256
from ..images import BadImage, decode
from ..manifest import read_manifest
from .raw_files import REPLACEMENT
from .shards import ROW_GROUP
from .source_dataset import Tally

LONGEST = 75  # words and marks; CLIP reads 77 tokens, two of them mark start and end, and each word is at least one


def check(folder: Path) -> dict:
    """Read every row, decode every image and compare every checksum. Raises UserError when the folder is no prepared
    dataset, or none of its shards can be read.

    Returns {"folder", "kind", "splits": {name: {"images", "captions", "captions_per_image", "classes"}}, "problems"}:
    counts, and kinds of problems with their number and examples. Nothing but plain values.
    """
    manifest = read_manifest(folder)
    problems, splits = Tally(), {}
    images: dict[bytes, list[str]] = defaultdict(list)
    wordings: Counter[str] = Counter()
    labels: dict[str, Counter] = {}
    readable = 0
    for split, entry in manifest["splits"].items():
        per_image, labels[split] = Counter(), Counter()
        for file in entry["files"]:
            for row in _rows(folder, file, problems):
                row = _plain(row, file["path"], problems)
                readable += 1
                _check_image(row, split, images, problems)
                per_image[len(_check_captions(row, wordings, problems))] += 1
                if row.get("label") is not None:
                    labels[split][row["label"]] += 1
        splits[split] = _summary(per_image, labels[split])
    if not readable:
        raise UserError(f"no shard of {folder} can be read: {', '.join(problems)}")
    _check_duplicates(images, wordings, problems)
    _check_classes(labels, manifest, problems)
    return {"folder": str(folder), "kind": manifest["kind"], "splits": splits, "problems": problems.sorted()}


def _rows(folder: Path, file: dict, problems: Tally) -> Iterator[dict]:
    path = folder / file["path"]
    if not path.is_file():  # a pipe or a device neither
        problems.add("shard that is not there", file["path"])
        problems.add("image in a shard that cannot be read", file["path"], count=file["rows"])
        return
    if file_sha256(path) != file["sha256"]:
        problems.add("shard that differs from its checksum", file["path"])
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(ROW_GROUP):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError):
        problems.add("shard that cannot be read", file["path"])


def _plain(row: dict, shard: str, problems: Tally) -> dict:
    """The row with values of the kinds that preparing writes; what is of another kind is counted and left out."""
    kinds = {"image_id": str, "image": dict, "captions": list, "label": int}
    wrong = [name for name, kind in kinds.items() if row.get(name) is not None and not isinstance(row[name], kind)]
    captions = row.get("captions")
    if isinstance(captions, list) and not all(isinstance(caption, str) for caption in captions):
        wrong.append("captions")
    if not isinstance(row.get("image_id"), str):
        problems.add("row without an image_id", shard)
    for name in wrong:
        problems.add(f"{name} of another kind than ratlip data prepare writes", shard)
    return {"image_id": shard} | {
        name: value for name, value in row.items() if name not in wrong and value is not None
    }


def _check_image(row: dict, split: str, images: dict[bytes, list[str]], problems: Tally) -> None:
    content = row.get("image", {}).get("bytes")
    if not isinstance(content, bytes) or not content:
        problems.add("row without an image", row["image_id"])
        return
    images[hashlib.sha256(content).digest()].append(f"{split}/{row['image_id']}")
    try:
        decode(content)
    except BadImage as error:
        problems.add(f"unreadable image: {error}", row["image_id"])


def _check_captions(row: dict, wordings: Counter, problems: Tally) -> list[str]:
    captions, name = row.get("captions", []), row["image_id"]
    wordings.update(captions)
    if not captions:
        problems.add("image without captions", name)
    if len(set(captions)) < len(captions):
        problems.add("image with the same caption twice", name)
    for caption in captions:
        if not caption.strip():
            problems.add("empty caption", name)
        if len(re.findall(r"\w+|[^\w\s]", caption)) > LONGEST:
            problems.add(f"caption of more than {LONGEST} words and marks: CLIP reads its beginning only", name)
        if REPLACEMENT in caption or not caption.isprintable():
            problems.add("caption with U+FFFD or control characters", name)
    return captions


def _summary(per_image: Counter, labels: Counter) -> dict:
    return {
        "images": sum(per_image.values()),
        "captions": sum(number * count for number, count in per_image.items()),
        "captions_per_image": {str(number): per_image[number] for number in sorted(per_image)},
        "classes": len(labels),
    }


def _check_duplicates(images: dict[bytes, list[str]], wordings: Counter, problems: Tally) -> None:
    for names in images.values():
        if len(names) > 1:
            across = len({name.split("/")[0] for name in names}) > 1
            kind = "image that is in two splits" if across else "image that is there more than once"
            problems.add(kind, " = ".join(names[:2]), count=len(names) - 1)
    for wording, count in wordings.most_common():
        if count == 1:
            break
        problems.add("caption that several images share", f"{count} x {wording[:40]}")


def _check_classes(labels: dict[str, Counter], manifest: dict, problems: Tally) -> None:
    splits = list(labels)
    for index, first in enumerate(splits):
        for second in splits[index + 1 :]:
            for label in sorted(labels[first].keys() & labels[second].keys()):
                names = manifest.get("label_names") or []
                name = names[label] if 0 <= label < len(names) else f"class {label}"
                problems.add(f"class in both {first} and {second}", str(name))
