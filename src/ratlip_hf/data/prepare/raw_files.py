"""What importers share: finding files, text in any encoding, captions as they come, plain values from pickles.
Metadata from elsewhere is not trusted: pickles may hold plain values only, paths stay inside the source folder."""

import codecs
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ...utils.errors import UserError
from ...utils.files import read_bytes, require_regular, split_lines
from ..images import SUFFIXES
from .source_dataset import Report, as_text

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_UNPRINTABLE = re.compile("[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
KEYS = ("captions", "caption", "text", "sentences", "description")
_PLAIN = (list, dict, str, int, float, bool)  # what a pickle may hold


# Finding files


def first_folder(candidates: list[Path]) -> Path | None:
    """The first that is a folder."""
    return next((path for path in candidates if path.is_dir()), None)


def need_folder(candidates: list[Path], what: str) -> Path:
    """The first that is a folder; UserError naming the places if none is."""
    found = first_folder(candidates)
    if found is None:
        raise UserError(f"{what} not found: looked for {', '.join(map(str, candidates))}")
    return found


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


def stem_id(path: Path, root: Path) -> str:
    """Name of an image within its dataset: path below `root`, without suffix."""
    return as_text(path.relative_to(root).with_suffix("").as_posix())


def path_inside(root: Path, name: str) -> Path | None:
    """The path that metadata calls `name`, seen from `root`; None if it would lie outside. Backslashes are slashes."""
    name = name.strip().replace("\\", "/")
    path = PurePosixPath(name)
    if not name or "\0" in name or path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
        return None
    found = root.joinpath(*path.parts)
    # A link on the way may still lead out, and names in metadata are not the user's own.
    return found if found.resolve().is_relative_to(root.resolve()) else None


# Text and captions


def read_text(path: Path, report: Report) -> str:
    """Text of a file in UTF-8, with or without a byte order mark, or else in Windows' Western encoding."""
    return decode_text(read_bytes(path), path.name, report)


def decode_text(content: bytes, name: str, report: Report) -> str:
    """`read_text` for bytes that are already here; `name` is for the report."""
    try:
        if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):  # before UTF-16, whose mark begins the same
            return content.decode("utf-32")
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return content.decode("utf-16")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        report.repair("text that is not UTF-8, read as Windows-1252", name)
        return content.decode("cp1252", errors="replace")


def read_lines(path: Path, report: Report) -> list[str]:
    """Lines that are not blank, without surrounding white space and whatever ends them (also CRLF)."""
    return [line.strip() for line in split_lines(read_text(path, report)) if line.strip()]


def clean_captions(raw_captions: list[str], name: str, report: Report) -> tuple[str, ...]:
    """Distinct, non-empty captions in their order, white space collapsed and U+FFFD replaced by a space."""
    cleaned: dict[str, None] = {}
    for caption in raw_captions:
        if REPLACEMENT in caption:
            report.repair("caption with U+FFFD, which became a space", name)
        if _UNPRINTABLE.search(caption):
            report.repair("caption with control characters or half characters, which became spaces", name)
        caption = _UNPRINTABLE.sub(" ", caption.replace(REPLACEMENT, " "))
        caption = re.sub(r"\s+", " ", caption).strip()
        if not caption:
            report.skip("empty caption", name)
        elif caption in cleaned:
            report.skip("caption that repeats another one of its image", name)
        else:
            cleaned[caption] = None
    return tuple(cleaned)


def captions_from_json(value) -> list[str]:
    """Captions in a JSON value: a string, a list of strings, or an object with one of `KEYS`; [] if none."""
    if isinstance(value, dict):
        value = next((value[key] for key in KEYS if key in value), None)
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, str)]


def parse_json(text: str, name: str, report: Report):
    """The JSON value of `text`; None, counted as skipped, if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        report.skip("metadata that is not valid JSON", name)
        return None


def captions_next_to(stem: Path, report: Report) -> list[str]:
    """Captions of `stem`.txt (one per line) or else `stem`.json; [] if there is neither."""
    text, structured = (stem.with_name(stem.name + suffix) for suffix in (".txt", ".json"))
    try:
        if text.is_file():
            return split_lines(read_text(text, report))
        if structured.is_file():
            return captions_from_json(parse_json(read_text(structured, report), structured.name, report))
    except OSError as error:
        report.skip(f"captions that cannot be read ({error.strerror})", stem.name)
    return []


def distinct_names(names: list[str], report: Report) -> list[str]:
    """Names of classes, made different where two are the same: a class label needs that."""
    result: dict[str, None] = {}
    numbers: dict[str, int] = {}
    for name in names:
        candidate = name
        while candidate in result:
            numbers[name] = numbers.get(name, 1) + 1
            candidate = f"{name} ({numbers[name]})"
        if candidate != name:
            report.repair("class with the name of another, numbered", name)
        result[candidate] = None
    return list(result)


# Pickles


class RefusedPickle(ValueError):
    """A pickle that holds, or would have to run, something other than plain values."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        raise RefusedPickle(f"it asks for {module}.{name}")

    def persistent_load(self, pid):
        raise RefusedPickle("it refers to an outside object")


def load_plain_pickle(path: Path) -> list | dict | str | int | float:
    """Read a pickle of lists, dicts, strings and numbers, such as the `filenames.pickle` of older projects.

    No code of the pickle runs: whatever needs a class or function is refused before it is looked up. Raises
    RefusedPickle, which names what else is in it or says that it is damaged.
    """
    require_regular(path)
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
