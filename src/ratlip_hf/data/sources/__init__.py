"""One reader per kind of source: `READERS[kind](folder, options)` gives a `Corpus` without reading any picture.
Owns the list of kinds and what is known about where each comes from."""

from collections.abc import Callable
from pathlib import Path

from ..corpus import Corpus, Origin, SourceOptions
from . import birds, coco, faces, flowers, folder, synthetic, webdataset

_MODULES = {
    "birds": birds,
    "flowers": flowers,
    "faces": faces,
    "coco": coco,
    "folder": folder,
    "webdataset": webdataset,
    "synthetic-birds": synthetic,
}
KINDS = tuple(_MODULES)
READERS: dict[str, Callable[[Path, SourceOptions], Corpus]] = {kind: module.read for kind, module in _MODULES.items()}
ORIGINS: dict[str, Origin] = {kind: module.ORIGIN for kind, module in _MODULES.items()}
