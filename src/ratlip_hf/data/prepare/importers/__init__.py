"""One reader per kind of source: `READERS[kind](folder, options)` gives a `Corpus` without reading any image.
Owns the list of kinds and what is known about where each comes from."""

from collections.abc import Callable
from pathlib import Path

from ....bundled import WORLDS, find_world
from ..records import Corpus, Origin, SourceOptions
from . import annotated, birds, flowers, folders

READERS: dict[str, Callable[[Path, SourceOptions], Corpus]] = {
    "birds": birds.read,
    "flowers": flowers.read,
    "faces": annotated.read_faces,
    "coco": annotated.read_coco,
    "folder": folders.read_folder,
    "webdataset": folders.read_webdataset,
    **{name: find_world(name, "dataset").read for name in WORLDS},
}
ORIGINS: dict[str, Origin] = {
    "birds": birds.ORIGIN,
    "flowers": flowers.ORIGIN,
    "faces": annotated.FACES,
    "coco": annotated.COCO,
    "folder": folders.FOLDER,
    "webdataset": folders.WEBDATASET,
    **{name: find_world(name, "dataset").ORIGIN for name in WORLDS},
}
KINDS = tuple(READERS)
