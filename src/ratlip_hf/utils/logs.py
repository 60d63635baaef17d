"""Keeping a log readable.
Owns the filter for messages that come by thousands."""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator


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
