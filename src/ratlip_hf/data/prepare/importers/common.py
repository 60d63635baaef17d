"""What several readers of sources share: listing image files, natural order, numbered class folders."""

import re
from collections.abc import Iterator
from pathlib import Path

from ....utils.errors import UserError
from ...images import SUFFIXES
from ..records import as_text


def natural_key(name: str) -> tuple[list, str]:
    """Sorting key under which "2" comes before "10"; names that differ in case or zeros only keep a fixed order."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if index % 2 else part.lower() for index, part in enumerate(parts)], name


def is_file(path: Path) -> bool:
    """Whether a file is there; names that no file can have count as absent."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def image_files(folder: Path) -> Iterator[Path]:
    """All image files below `folder` by their suffix, hidden files left out, in natural order."""
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    yield from sorted(found, key=lambda path: natural_key(path.relative_to(folder).as_posix()))


def first_folder(candidates: list[Path]) -> Path | None:
    """The first that is a folder."""
    return next((path for path in candidates if path.is_dir()), None)


def need_folder(candidates: list[Path], what: str) -> Path:
    """The first that is a folder; UserError naming the places if none is."""
    found = first_folder(candidates)
    if found is None:
        raise UserError(f"{what} not found: looked for {', '.join(map(str, candidates))}")
    return found


def stem_id(path: Path, root: Path) -> str:
    """Name of an image within its corpus: path below `root`, without suffix."""
    return as_text(path.relative_to(root).with_suffix("").as_posix())
