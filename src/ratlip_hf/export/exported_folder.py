"""Which folder of an export may be replaced: one whose files are all as the export left them.
Owns the list of files in an export's record, which tells; what the files are is the business of each target."""

import json
import os
from pathlib import Path

from ..utils.fingerprints import file_sha256
from ..version import __version__

_UPLOAD_CACHE = ".cache"  # where `hf upload-large-folder` notes what it has sent


def write_record(folder: Path, record: str, facts: dict) -> list[str]:
    """Put `facts` and the hashes of all files into the folder, as a file named `record`; returns the files' paths."""
    files = {path: file_sha256(folder / path) for path in _files(folder, record)}
    content = {"ratlip_hf": __version__, **facts, "files": files}
    (folder / record).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return [*files, record]


def refuse_foreign(folder: str | os.PathLike, record: str, what: str) -> None:
    """Raise ValueError unless `folder` is new, empty, or an earlier export in which nothing was added or changed.

    `record` is the name of the file that [`write_record`] leaves, `what` is what such a folder holds, in words.
    """
    folder = Path(folder)
    if folder.resolve() == Path.cwd():  # replaced as a whole, it would be gone for the shell that stands in it
        raise ValueError(f"{folder} is the folder that you are in: choose another one, or start from elsewhere")
    if folder.is_symlink() or folder.is_mount():
        raise ValueError(f"{folder} is a link or a mount point: choose a folder inside it")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: name the folder to make")
    if not any(folder.iterdir()):
        return
    try:
        written = dict(json.loads((folder / record).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder} is not empty and holds no {what}: choose a new folder") from error
    for path in _files(folder, record):
        if path not in written:
            raise ValueError(
                f"{folder} holds {path}, which no export has written: move it away or choose a new folder"
            )
        if file_sha256(folder / path) != written[path]:
            raise ValueError(f"{folder / path} was changed after the export: move it away or choose a new folder")


def _files(folder: Path, record: str) -> list[str]:
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.is_dir())
    return [path.as_posix() for path in paths if path.parts[0] != _UPLOAD_CACHE and str(path) != record]
