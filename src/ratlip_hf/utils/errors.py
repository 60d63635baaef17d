"""How commands tell a user what went wrong: one clear line on stderr and exit code 2, never a traceback."""

import argparse
import contextlib
import functools
import logging
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator


class UserError(Exception):
    """A mistake the person at the keyboard can correct; its text is one line saying what and how."""


def one_line(error: Exception) -> str:
    """What an exception of another library says, as one line of bearable length; its class if it says nothing."""
    return textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose complaints are [`UserError`]s, and that takes options only under their full names."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str):
        raise UserError(f"{message} (see {self.prog} --help)")


def command_line(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a command's `main`: [`UserError`], `ValueError` and `OSError` become one line on stderr and exit code 2.

    Ctrl-C is one line, too, and 130 as in a shell. Other exceptions are defects of the program and keep their
    traceback.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except (UserError, ValueError, OSError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return wrapped


@contextlib.contextmanager
def first_few(log: logging.Logger, count: int = 3) -> Iterator[None]:
    """Let a few messages of each kind through, then say that they fall silent: long captions come by thousands."""
    seen = Counter()

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
