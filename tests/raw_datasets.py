"""Small raw datasets with the layouts and the defects of the real ones, and functions that read what was prepared.
Images are of one colour each; nothing here is from a real dataset."""

import io
import json
import pickle
import shutil
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import datasets
from PIL import Image

CLASSES = ["001.Red_bird", "002.Green_bird", "010.Blue_bird"]  # the first is a test class in "stackgan" only


def encoded_image(
    index: int = 0, size: tuple[int, int] = (60, 40), mode: str = "RGB", kind: str = "JPEG", **options
) -> bytes:
    """An encoded image whose colour tells `index`."""
    image = Image.new("RGB", size, (index * 7 % 256, 100, 200)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    """A JPEG that EXIF says to turn."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded_image(exif=exif)


def write(path: Path, content: str | bytes) -> Path:
    """Write a file, making its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def make_birds(root: Path, per_class: int = 4, newline: str = "\n") -> Path:
    """The "birds" folder of DF-GAN with three classes and everything in order."""
    cub, files, number = root / "CUB_200_2011", [], 0
    tables = {"images.txt": [], "image_class_labels.txt": [], "bounding_boxes.txt": [], "train_test_split.txt": []}
    for name in CLASSES:
        for index in range(per_class):
            number += 1
            stem = f"{name}/{name[4:]}_{index:04d}"
            files.append(stem)
            write(cub / "images" / f"{stem}.jpg", encoded_image(number))
            write(root / "text" / f"{stem}.txt", "".join(f"bird {number} caption {k}{newline}" for k in range(10)))
            tables["images.txt"].append(f"{number} {stem}.jpg")
            tables["image_class_labels.txt"].append(f"{number} {int(name[:3])}")
            tables["bounding_boxes.txt"].append(f"{number} 10.0 5.0 20.0 30.0")
            tables["train_test_split.txt"].append(f"{number} {number % 2}")
    tables["classes.txt"] = [f"{int(name[:3])} {name}" for name in CLASSES]
    for name, lines in tables.items():
        write(cub / name, newline.join(lines) + newline)
    for split, classes in (("test", CLASSES[:1]), ("train", CLASSES[1:])):
        names = [stem for stem in files if stem.split("/")[0] in classes]
        write(root / split / "filenames.pickle", pickle.dumps(names, protocol=0))
    return root


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A WebDataset shard."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pack(folder: Path, archive: Path, top: str = "") -> Path:
    """Put a folder's files into a new .tar, .tgz or .zip, below the folder `top` in it, and remove the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [f"{top}/{path.relative_to(folder).as_posix()}".lstrip("/") for path in files]
    archive.parent.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for path, name in zip(files, names, strict=True):
                packed.write(path, name)
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix == ".tgz" else "w") as packed:
            for path, name in zip(files, names, strict=True):
                packed.add(path, name)
    shutil.rmtree(folder)
    return archive


def mat_file(arrays: dict[str, list[int]], compressed: bool = True, order: str = "<") -> bytes:
    """A MAT-file of level 5 with rows of 16-bit numbers, as its public description has it."""

    def element(kind: int, data: bytes) -> bytes:
        return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)

    content = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}HH", 0x0100, 0x4D49)
    for name, numbers in arrays.items():
        small = struct.pack(f"{order}I", len(name) << 16 | 1) + name.encode().ljust(4, b"\0")
        matrix = element(6, struct.pack(f"{order}II", 11, 0)) + element(5, struct.pack(f"{order}ii", 1, len(numbers)))
        matrix += small if len(name) <= 4 else element(1, name.encode())
        matrix = element(14, matrix + element(4, struct.pack(f"{order}{len(numbers)}H", *numbers)))
        packed = zlib.compress(matrix)
        content += struct.pack(f"{order}II", 15, len(packed)) + packed if compressed else matrix
    return content


def make_folder(root: Path, count: int = 6, captions: int = 2) -> Path:
    """Images with .txt files next to them."""
    for index in range(count):
        write(root / f"{index}.jpg", encoded_image(index))
        write(root / f"{index}.txt", "\n".join(f"image {index} caption {k}" for k in range(captions)))
    return root


def make_coco(root: Path) -> Path:
    """Two images for training, one for validation, 2017 names."""
    for short, numbers in (("train", (1, 2)), ("val", (3,))):
        images = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in numbers]
        notes = [{"image_id": number, "caption": f"scene {number} seen {k}"} for number in numbers for k in range(5)]
        write(
            root / "annotations" / f"captions_{short}2017.json", json.dumps({"images": images, "annotations": notes})
        )
        for image in images:
            write(root / f"{short}2017" / image["file_name"], encoded_image(image["id"]))
    return root


def make_faces(root: Path, count: int = 10) -> Path:
    """Numbered faces with caption files."""
    for index in range(count):
        write(root / "CelebA-HQ-img" / f"{index}.jpg", encoded_image(index))
        write(root / "text" / "celeba-caption" / f"{index}.txt", f"face {index}\n")
    return root


def rows_of(out: Path, split: str = "train") -> list[dict]:
    dataset = datasets.load_dataset(str(out), split=split, streaming=True)
    return sorted(dataset.decode(False), key=lambda row: row["image_id"])


def skipped(manifest: dict) -> dict[str, int]:
    return {reason: entry["count"] for reason, entry in manifest["skipped"].items()}


def repaired(manifest: dict) -> dict[str, int]:
    return {reason: entry["count"] for reason, entry in manifest["repaired"].items()}
