"""`manifest.json` of a prepared corpus: finding it, reading it, and the shards it names.
Owns the file's name; its content is put together in `prepare`."""

import json
from pathlib import Path

from ..utils.errors import UserError

MANIFEST = "manifest.json"


def read_manifest(folder: Path) -> dict:
    """The manifest of a prepared corpus. Raises UserError if the folder has none, or a damaged one."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest["kind"]
        for split in manifest["splits"].values():
            for file in split["files"]:
                folder / file["path"], file["rows"] + 0, file["sha256"]
    except OSError as error:
        raise UserError(f"{folder} is no prepared corpus: there is no {MANIFEST} (see ratlip data prepare)") from error
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    return manifest


def shard_paths(folder: Path, manifest: dict) -> list[Path]:
    """All shards of all splits, in order."""
    return [folder / file["path"] for split in manifest["splits"].values() for file in split["files"]]
