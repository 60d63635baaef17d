"""All-or-nothing writing of files and folders: a reader finds the old state or the new one, never half of either.
Everything in the package that leaves something on disk goes through here. And reading what others wrote: regular files
only, and no more than memory can hold."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .locks import in_turn, locked

LARGEST_TEXT = 2**28  # bytes of a file that is read as a whole: text, JSON, one image
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


def require_regular(path: str | os.PathLike) -> int:
    """Bytes of a regular file, links followed. Raises OSError for anything else: a pipe would hang whoever reads it, a
    device would never end."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return status.st_size


def require_regular_files(folder: str | os.PathLike) -> None:
    """[`require_regular`] for all files below a folder, which libraries are about to open."""
    for path in Path(folder).rglob("*"):
        if not path.is_dir():
            require_regular(path)


def read_bytes(path: str | os.PathLike, limit: int = LARGEST_TEXT) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises OSError for any other."""
    if require_regular(path) > limit:
        raise OSError(errno.EINVAL, f"it is larger than {limit / 1e6:.0f} MB", str(path))
    with open(path, "rb") as file:
        return file.read(limit + 1)[:limit]


def read_text(path: str | os.PathLike) -> str:
    """[`read_bytes`] as UTF-8, a byte order mark left out. Raises ValueError for bytes that are none."""
    return read_bytes(path).decode("utf-8-sig")


def split_lines(text: str) -> list[str]:
    """Lines ended by LF, CRLF or CR. Other separators of Unicode may stand within a line, also of JSON."""
    return re.split(r"\r\n|\r|\n", re.sub(r"(\r\n|\r|\n)\Z", "", text))


def read_json(path: str | os.PathLike):
    """The value in a JSON file. Raises OSError when it cannot be read, ValueError when it is not JSON."""
    try:
        return json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error


def append_line(path: str | os.PathLike, line: str) -> None:
    """Add a line to a text file, which is created if there is none; a failure leaves the file as it was. Processes may
    add to one file at the same time: each waits for its turn."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    with open(handle, "rb+", buffering=0) as file, in_turn(handle):
        before = file.seek(0, os.SEEK_END)
        file.seek(max(0, before - 1))
        ended = file.read(1) in (b"", b"\n")
        try:
            with _failed_writes_as_oserror(path):
                rest = f"{'' if ended else chr(10)}{line}\n".encode()
                while rest:
                    rest = rest[file.write(rest) :]
        except BaseException:
            file.truncate(before)
            raise


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
    with locked(path):
        yield from _atomic_directory(path)


def _atomic_directory(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):  # by a killed process: no other can be at work
        if re.fullmatch(r"[a-z0-9_]{8}(\.old)?", left.name[len(path.name) + 2 :]):
            if left.suffix == ".old" and not path.exists():  # it was between its two renames
                os.rename(left, path)
            shutil.rmtree(left, ignore_errors=True)
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
        except OSError as error:
            raise OSError(f"cannot write to {path}: {error.strerror}") from error
        with locked(path, inside=True):
            remove_unfinished(path / "staged")  # of a killed process: no other can be at work
            try:
                staged = tempfile.TemporaryDirectory(prefix=".staged.", dir=path)
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
    """Hash of the bytes of a regular file."""
    require_regular(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_recorded_hashes(folder: str | os.PathLike, record: str, suffixes: tuple[str, ...] = ("",)) -> None:
    """Compare files of these suffixes with the hashes that a JSON file in the folder has of them, where there is one.
    Raises ValueError for one that differs or is not there, or a damaged record."""
    path = Path(folder) / record
    if not path.is_file():
        return
    files = read_json(path)
    files = files.get("files", {}) if isinstance(files, dict) else None
    if not isinstance(files, dict):
        raise ValueError(f"{path} is damaged: it has no list of files")
    for name, known in files.items():
        file = path.parent / name
        if name.endswith(suffixes) and not (file.is_file() and file_sha256(file) == known):
            raise ValueError(f"{file} differs from its checksum in {record}: damaged, or changed after the export")
