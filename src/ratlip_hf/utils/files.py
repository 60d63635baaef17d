"""All-or-nothing writing of files and folders: a reader finds the old state or the new one, never half of either.
Everything in the package that leaves something on disk goes through here."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# A full disk, a quota, a file too large for the file system, a broken or read-only one.
_FAILED_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def atomic_write(path: str | os.PathLike, content: str | bytes) -> Path:
    """Write `content` to `path` (parents are created), replacing what was there in one step. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with _failed_writes_as_oserror(path), os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def read_json(path: str | os.PathLike):
    """The value in a JSON file. Raises OSError when it cannot be read, ValueError when it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error


def append_line(path: str | os.PathLike, line: str) -> None:
    """Add a line to a text file, which is created if there is none; a failure leaves the file as it was."""
    path = Path(path)
    before = path.read_text() if path.exists() else ""
    atomic_write(path, f"{before}\n{line}\n" if before and not before.endswith("\n") else f"{before}{line}\n")


def check_appendable(path: str | os.PathLike) -> None:
    """Raise ValueError, before hours of work, if [`append_line`] could not add to this file. Makes nothing."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file for the records")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(f"{path} cannot be written: {nearest} is no folder that can be written to")


def is_free(path: str | os.PathLike, error: type[Exception] = ValueError) -> bool:
    """Whether a folder may be made at `path` as a whole: nothing is there, or an empty folder. Raises `error` for what
    no folder can replace, a link or a mount point."""
    path = Path(path)
    if path.is_symlink() or path.is_mount():
        raise error(f"{path} is a link or a mount point: choose a folder inside it")
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends well, and vanishes when it raises.

    A folder that is already at `path` is replaced as a whole. Raises OSError that names `path` for a full disk, even
    where the library that wrote into the folder raises something of its own.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        os.chmod(temporary, 0o755)
        with _failed_writes_as_oserror(path):
            yield temporary
        if path.exists():
            # Two renames rather than a deletion first: a kill in between leaves the old folder under the spare name.
            spare = temporary.with_name(f"{temporary.name}.old")
            os.rename(path, spare)
            os.rename(temporary, path)
            shutil.rmtree(spare)
        else:
            os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_unfinished(path: str | os.PathLike) -> None:
    """Remove what killed writers of the folder `path`, whose name may be a pattern, have left next to it.

    Only where a folder has one writer at a time, and after a whole one is in place.
    """
    path = Path(path)
    for left in path.parent.glob(f".{path.name}.*"):
        shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def staged_files(path: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty folder whose files move into the folder `path` when the block ends well; else they vanish.

    Other files in `path` stay; folders that did not exist before vanish too. The files are staged inside `path`, so
    that a mount point or a folder in someone else's folder will do. Raises OSError if `path` cannot be written.
    """
    path = Path(path)
    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        try:
            path.mkdir(parents=True, exist_ok=True)
            staged = tempfile.TemporaryDirectory(prefix=".staged-", dir=path)
        except OSError as error:
            raise OSError(f"cannot write to {path}: {error.strerror}") from error
        with staged as temporary:
            with _failed_writes_as_oserror(path):
                yield Path(temporary)
            for file in sorted(Path(temporary).iterdir()):
                os.replace(file, path / file.name)
    except BaseException:
        for folder in created:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def link_files(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Give a file, or all files below a folder, second names at `target`; copies where there are no hard links.

    Whoever replaces `source` or its files as a whole, as everything here does, leaves those at `target` as they are.
    """
    source, target = Path(source), Path(target)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_or_copy, dirs_exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(source, target)


def _link_or_copy(source: str | os.PathLike, target: str | os.PathLike) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)


@contextlib.contextmanager
def _failed_writes_as_oserror(path: Path) -> Iterator[None]:
    """Name the place and the cause when a write within the block fails."""
    try:
        yield
    except Exception as error:
        number = _errno_behind(error)
        if number not in _FAILED_WRITES:
            raise
        raise OSError(f"cannot write {path}: {os.strerror(number)}; what was there before is whole") from error


def _errno_behind(error: BaseException | None) -> int | None:
    """The system's error number behind an exception: torch raises RuntimeError while handling it, safetensors has it
    in the text only."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            return int(number[1])
        error = error.__cause__ or error.__context__
    return None


def file_sha256(path: str | os.PathLike) -> str:
    """Hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
