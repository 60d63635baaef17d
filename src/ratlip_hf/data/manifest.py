"""The files that describe images in a folder: `manifest.json` of a prepared dataset, and `cat_to_name.json`, which
names the classes of raw folders."""

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath

from ..utils.errors import UserError
from ..utils.files import file_sha256, read_json, require_regular

MANIFEST = "manifest.json"
CLASS_NAMES = "cat_to_name.json"


def read_manifest(folder: Path) -> dict:
    """The manifest of a prepared dataset. Raises UserError if the folder has none, or a damaged one."""
    try:
        manifest = read_json(folder / MANIFEST)
        manifest["kind"]
        for split in manifest["splits"].values():
            for file in split["files"]:
                file["rows"] + 0, file["sha256"]
                if PurePosixPath(file["path"]).is_absolute() or ".." in PurePosixPath(file["path"]).parts:
                    raise ValueError(f"{file['path']} lies outside the folder")
    except OSError as error:
        raise UserError(f"{folder} is no prepared dataset: it has no {MANIFEST} (see ratlip data prepare)") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / MANIFEST} is damaged: {type(error).__name__}: {error}") from error
    return manifest


def require_recorded_shards(folder: Path, splits: Iterable[str] | None = None) -> None:
    """Raise UserError unless the shards (of these splits) are those that the manifest has the checksums of."""
    entries = read_manifest(folder)["splits"]
    for name in entries if splits is None else splits:
        for file in entries.get(name, {"files": []})["files"]:
            path = folder / file["path"]
            try:
                size, changed = require_regular(path), path.stat().st_mtime_ns
                sound = _sha256(path, size, changed) == file["sha256"]
            except OSError as error:
                raise UserError(f"{folder} is incomplete: {path} cannot be read ({error.strerror})") from error
            if not sound:
                raise UserError(
                    f"{path} differs from its checksum in {MANIFEST}: it is damaged, or was changed after ratlip data "
                    "prepare, which has to be run again (see ratlip data check)"
                )


@lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, changed: int) -> str:
    return file_sha256(path)


def parse_class_names(text: str) -> dict[str, str]:
    """Class number to name, from the text of `cat_to_name.json`. Raises ValueError if it is no JSON object."""
    try:
        return {str(number): str(name) for number, name in json.loads(text).items()}
    except (RecursionError, AttributeError) as error:
        raise ValueError(f"{CLASS_NAMES} is no JSON object") from error


def class_caption(name: str) -> str:
    """A caption for an image of which only the class is known."""
    name = re.sub(r"^\d+\.", "", name).replace("_", " ").strip().lower()
    return f"a photo of {'an' if name[:1] in 'aeiou' else 'a'} {name}"
