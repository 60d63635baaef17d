"""The table of kinds: which importer reads what. To add a kind, write its importer and give it a line here.
Importers are imported when they are used, so that commands can list the kinds and workers start quickly."""

from collections.abc import Callable
from importlib import import_module

from ....bundled import WORLDS
from ..source_dataset import Origin, SourceDataset, SourceOptions
from ..source_files import Folder

# kind: module, function that reads a source (images themselves stay unread), where such datasets come from
_IMPORTERS = {
    "birds": (".birds", "read", "ORIGIN"),
    "flowers": (".flowers", "read_flowers", "FLOWERS"),
    "faces": (".published", "read_faces", "FACES"),
    "coco": (".published", "read_coco", "COCO"),
    "folder": (".folders", "read_folder", "FOLDER"),
    "webdataset": (".folders", "read_webdataset", "WEBDATASET"),
    **{name: (f"{package}.dataset", "read", "ORIGIN") for name, package in WORLDS.items()},
}
KINDS = tuple(_IMPORTERS)
WITHOUT_SOURCE = tuple(WORLDS)  # rendered instead of read from a folder
DEFAULT_NUM_IMAGES = {"faces": 10_000, **dict.fromkeys(WORLDS, 20_000)}  # of the kinds that sample images


def load_importer(kind: str) -> tuple[Callable[[Folder | None, SourceOptions], SourceDataset], Origin]:
    """The function that reads a source of this kind, and what its card says of where it comes from."""
    module, function, origin = _IMPORTERS[kind]
    importer = import_module(module, __name__)
    return getattr(importer, function), getattr(importer, origin)
