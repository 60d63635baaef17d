"""How commands tell a user what went wrong: one clear line on stderr and exit code 2, never a traceback. And how they
end on a signal: what was begun is cleared away, and the exit code is the one that a shell gives."""

import argparse
import contextlib
import functools
import logging
import signal
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterator


class UserError(Exception):
    """A mistake the person at the keyboard can correct; its text is one line saying what and how."""


class Stopped(KeyboardInterrupt):
    """A signal has asked the process to end; `number` is the signal's."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def one_line(error: Exception) -> str:
    """What an exception of another library says, as one line of bearable length; its class if it says nothing."""
    return printable(textwrap.shorten(str(error), 300, placeholder=" ...")) or type(error).__name__


def printable(text: str) -> str:
    """Text that came from a file, for a terminal or a card: what would move the cursor, end the line or turn the
    direction of writing becomes its escape sequence in Python."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose complaints are [`UserError`]s, and that takes options only under their full names."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        for word in sys.argv[1:] if args is None else args:
            if not word.isascii() and word != word.encode(errors="replace").decode():
                raise UserError(
                    f"the argument {printable(word)} is not UTF-8 text, and could be neither shown nor kept"
                )
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        raise UserError(f"{message} (see {self.prog} --help)")


def command_line(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a command's `main`: [`UserError`], `ValueError` and `OSError` become one line on stderr and exit code 2.

    Ctrl-C is one line, too, and 130 as in a shell; so are SIGTERM (143) and SIGHUP (129), unless the process was told
    to ignore them. Other exceptions are defects of the program and keep their traceback.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int:
        try:
            with signals_as_exceptions():
                return main(*args, **kwargs) or 0
        except (UserError, ValueError, OSError) as error:
            print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as error:
            number = error.number if isinstance(error, Stopped) else signal.SIGINT
            print(
                "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}",
                file=sys.stderr,
            )
            return 128 + number

    return wrapped


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise [`Stopped`] in the main thread, once, as Ctrl-C raises
    KeyboardInterrupt: whatever is being written is cleared away or finished by the code that writes it."""
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [number for name in names if signal.getsignal(number := getattr(signal, name)) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        numbers = []

    def stop(number: int, frame) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    try:
        for number in numbers:
            signal.signal(number, stop)
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def first_few(log: logging.Logger, count: int = 3) -> Iterator[None]:
    """Let a few messages of each kind through, then say that they fall silent: long captions come by thousands."""
    seen: Counter[object] = Counter()

    def rare(record: logging.LogRecord) -> bool:
        kind = record.msg
        seen[kind] += 1
        if seen[kind] == count:
            record.msg, record.args = f"{record.getMessage()} (more like this are not shown)", ()
        return seen[kind] <= count

    log.addFilter(rare)
    try:
        yield
    finally:
        log.removeFilter(rare)
