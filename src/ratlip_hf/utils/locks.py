"""One writer at a time: a lock on what a command writes. It ends with the process that holds it, however that ends."""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

_HELD: dict[Path, tuple[int, int]] = {}  # lock file -> thread that holds it, its open file
_GUARD = threading.Lock()


@contextlib.contextmanager
def locked(path: str | os.PathLike, inside: bool = False) -> Iterator[None]:
    """Be the only one that writes `path` within the block; a thread may take the same lock again.

    The lock is a file next to `path`, or within it as a folder, where the folder stays while its files change. The
    system lets go of it when the process ends, so that a killed one leaves at most the file, which the next one takes
    over. Raises OSError that names the other process when there is one.
    """
    path = Path(os.path.abspath(path))
    place = path / ".lock" if inside else path.with_name(f".{path.name}.lock")
    with _GUARD:
        mine = _HELD.get(place, (0, 0))[0] == threading.get_ident()
    if fcntl is None or mine:
        yield
        return
    created = [folder for folder in (place.parent, *place.parent.parents) if not folder.exists()]
    handle = _take(place, path)
    try:
        yield
    finally:
        with _GUARD:
            del _HELD[place]
        # While the lock is held: nobody else can have made a file of that name in the meantime.
        with contextlib.suppress(OSError):
            os.unlink(place)
        os.close(handle)
        for folder in created:  # if nothing was written after all
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def in_turn(handle: int) -> Iterator[None]:
    """Wait until no other process is within such a block with the same open file."""
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)


def _take(place: Path, path: Path) -> int:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        return _opened(place, path)
    except PermissionError as error:
        raise OSError(f"cannot write to {place.parent}: {error.strerror}") from error


def _opened(place: Path, path: Path) -> int:
    while True:
        handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 1000).decode("utf-8", "replace")
            os.close(handle)
            raise OSError(f"{path} is being written by {owner or 'another process'}: wait for it, or end it") from None
        except OSError:  # a file system without locks: better unlocked than not at all
            pass
        if _is_still(place, handle):
            break
        os.close(handle)  # its owner has removed it in between
    program = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()} ({program})".encode())
    with _GUARD:
        _HELD[place] = threading.get_ident(), handle
    return handle


def _is_still(place: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(place), os.fstat(handle))
    except FileNotFoundError:
        return False


def _leave_to_parent() -> None:
    """In a forked process, which would keep the lock of a parent that is killed."""
    for _, handle in _HELD.values():
        os.close(handle)
    _HELD.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_leave_to_parent)
