"""The files that describe images in a folder: `manifest.json` of a prepared dataset, and `cat_to_name.json`, which
names the classes of raw folders."""

import json
import re
from pathlib import Path

from ..utils.errors import UserError
from ..utils.files import read_json

MANIFEST = "manifest.json"
CLASS_NAMES = "cat_to_name.json"


def read_manifest(folder: Path) -> dict:
    """The manifest of a prepared dataset. Raises UserError if the folder has none, or a damaged one."""
    try:
        manifest = read_json(folder / MANIFEST)
        manifest["kind"]
        for split in manifest["splits"].values():
            for file in split["files"]:
                folder / file["path"], file["rows"] + 0, file["sha256"]
    except OSError as error:
        raise UserError(f"{folder} is no prepared dataset: it has no {MANIFEST} (see ratlip data prepare)") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / MANIFEST} is damaged: {type(error).__name__}: {error}") from error
    return manifest


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
