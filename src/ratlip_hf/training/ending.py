"""How a run ends before its time: a signal lets the step end and a checkpoint be written; a launcher or another
process that is gone ends this one, which would otherwise wait, or train on alone."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from ..utils.errors import Stopped

_LAUNCHERS = ("accelerate", "torchrun", "torch.distributed", "deepspeed")
_INTERVAL = 2.0  # seconds between looks at other processes
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


class Ending:
    """Whether this process has been asked to end; a context manager, within which signals only ask. A second Ctrl-C
    interrupts; other signals come again by themselves, from a launcher and to a whole group."""

    def __init__(self):
        self.number: int | None = None  # the signal that asked
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Ending":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, number: int, frame) -> None:
        if self.number == number == signal.SIGINT:
            raise Stopped(number)
        self.number = self.number or number

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self.number is not None

    def stopped(self) -> Stopped:
        """What to raise once everything is saved; SIGTERM where only another process has had the signal."""
        return Stopped(self.number or signal.SIGTERM)


def ignore_signals(worker: int) -> None:
    """In a process that loads data: signals that reach a whole group are for the trainer, which needs its batches."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def watched_launcher() -> Iterator[None]:
    """Within the block, SIGTERM for this process when the launcher that started it is gone. A shell is none: what it
    leaves in the background is meant to go on."""
    parent = os.getppid()
    if not _is_launcher(parent):
        yield
        return
    with _every_interval(lambda: os.getppid() != parent and (os.kill(os.getpid(), signal.SIGTERM) or True)):
        yield


def _is_launcher(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:  # no Linux, or no such process any more
        return False
    return any(name in command for name in _LAUNCHERS)


class Peers:
    """The processes of a run that are on this machine. Each looks after the others: a collective operation with one
    that has died would wait for hours, or fail with words that do not name it."""

    def __init__(self, accelerator: Accelerator):
        self.rank, self.count = accelerator.process_index, accelerator.num_processes
        self.pids: dict[int, int] = {}
        if self.count > 1:
            everyone = gather_object([(self.rank, socket.gethostname(), os.getpid())])
            here = socket.gethostname()
            self.pids = {rank: pid for rank, host, pid in everyone if host == here and rank != self.rank}

    def dead(self) -> str | None:
        """Words about a process that is gone; None as long as all are there."""
        for rank, pid in self.pids.items():
            if not _is_alive(pid):
                return f"process {rank} of {self.count} (pid {pid}) has died"
        return None

    def explain(self) -> str | None:
        """[`dead`] after an operation has failed, when a process that dies may still be seen for a moment."""
        for _ in range(20):
            if self.pids and (words := self.dead()):
                return words
            time.sleep(0.1 if self.pids else 0)
        return None

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """End this process within the block, with one line, some seconds after another one has died."""
        seen: list[str] = []

        def look() -> bool:
            if words := self.dead():
                seen.append(words)
            if len(seen) > 1:  # the first time it may just have finished before this one
                print(
                    f"error: {words or seen[-1]}: this one ends, too; resume from the last checkpoint", file=sys.stderr
                )
                sys.stderr.flush()
                os._exit(1)
            return False

        if not self.pids:
            yield
            return
        with _every_interval(look):
            yield


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    with contextlib.suppress(OSError, IndexError):
        # One that nobody has waited for is still listed, in the state Z.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return True


@contextlib.contextmanager
def _every_interval(look) -> Iterator[None]:
    """Call `look` now and then in a thread until it says that there is nothing more to see, or the block ends."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_INTERVAL):
            if look():
                return

    threading.Thread(target=watch, name="watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()
