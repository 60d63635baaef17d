"""Metadata from elsewhere is not trusted: pickles may hold plain values only, paths stay inside the source folder.
Owns the package's only unpickler and the only place where a path from metadata becomes a real one."""

import pickle
import re
from pathlib import Path, PurePosixPath

_PLAIN = (list, dict, str, int, float, bool)


class RefusedPickle(ValueError):
    """A pickle that holds, or would have to run, something other than plain values."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        raise RefusedPickle(f"it asks for {module}.{name}")

    def persistent_load(self, pid):
        raise RefusedPickle("it refers to an outside object")


def load_plain_pickle(path: Path) -> list | dict | str | int | float:
    """Read a pickle of lists, dicts, strings and numbers, such as the `filenames.pickle` of older projects.

    No code of the pickle runs: whatever needs a class or function is refused before it is looked up.

    Raises:
        RefusedPickle: naming what else is in it, or saying that it is damaged.
        OSError: when the file cannot be read.
    """
    with open(path, "rb") as file:
        try:
            value = _PlainUnpickler(file, encoding="latin1").load()  # Python 2 wrote most of them
        except (RefusedPickle, OSError):
            raise
        except Exception as error:  # a damaged pickle raises almost anything
            raise RefusedPickle(f"it is damaged ({type(error).__name__})") from error
    _check_plain(value)
    return value


def _check_plain(value) -> None:
    # Not recursive, and each container once: a pickle may hold cycles and very deep nesting.
    waiting, seen = [value], set()
    while waiting:
        item = waiting.pop()
        if type(item) not in _PLAIN:
            raise RefusedPickle(f"it holds a {type(item).__name__}")
        if isinstance(item, list | dict) and id(item) not in seen:
            seen.add(id(item))
            waiting += [*item.keys(), *item.values()] if isinstance(item, dict) else item


def path_inside(root: Path, name: str) -> Path | None:
    """The path that metadata calls `name`, seen from `root`; None if it would lie outside.

    Backslashes of Windows count as slashes.
    """
    name = name.strip().replace("\\", "/")
    path = PurePosixPath(name)
    if not name or "\0" in name or path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
        return None
    found = root.joinpath(*path.parts)
    # A link on the way may still lead out, and names in metadata are not the user's own.
    return found if found.resolve().is_relative_to(root.resolve()) else None
