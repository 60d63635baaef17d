"""One reader per kind of source: `READERS[kind](folder, options)` gives a `Corpus` without reading any image.
Owns the list of kinds and what is known about where each comes from."""

from collections.abc import Callable
from pathlib import Path

from ..records import Corpus, Origin, SourceOptions
from . import annotated, birds, flowers, folders, synthetic

READERS: dict[str, Callable[[Path, SourceOptions], Corpus]] = {
    "birds": birds.read,
    "flowers": flowers.read,
    "faces": annotated.read_faces,
    "coco": annotated.read_coco,
    "folder": folders.read_folder,
    "webdataset": folders.read_webdataset,
    "synthetic-birds": synthetic.read,
}
ORIGINS: dict[str, Origin] = {
    "birds": birds.ORIGIN,
    "flowers": flowers.ORIGIN,
    "faces": annotated.FACES,
    "coco": annotated.COCO,
    "folder": folders.FOLDER,
    "webdataset": folders.WEBDATASET,
    "synthetic-birds": synthetic.ORIGIN,
}
KINDS = tuple(READERS)
