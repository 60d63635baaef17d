"""What importers share: text in any encoding, captions as they come, plain values from pickles, splits.
Metadata from elsewhere is not trusted: pickles may hold plain values only."""

import codecs
import io
import json
import pickle
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

from ...utils.files import split_lines
from ..images import SUFFIXES
from .source_dataset import TEST, TRAIN, Report, SourceOptions, as_text
from .source_files import Folder

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_UNPRINTABLE = re.compile("[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
KEYS = ("captions", "caption", "text", "sentences", "description")
_PLAIN = (list, dict, str, int, float, bool)  # what a pickle may hold


# Names


def stem_of(name: str) -> str:
    """The name of a file without its suffix."""
    return str(PurePosixPath(name).with_suffix(""))


def stem_id(name: str) -> str:
    """Name of an image within its dataset: its stem."""
    return as_text(stem_of(name))


# Text and captions


def read_text(folder: Folder, name: str) -> str:
    """Text of a file in UTF-8, with or without a byte order mark, or else in Windows' Western encoding."""
    return decode_text(folder.read(name), name, folder.report)


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


def read_lines(folder: Folder, name: str) -> list[str]:
    """Lines that are not blank, without surrounding white space and whatever ends them (also CRLF)."""
    return [line.strip() for line in split_lines(read_text(folder, name)) if line.strip()]


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


def captions_of(folder: Folder, stem: str) -> list[str]:
    """Captions in `stem`.txt (one per line) or else `stem`.json; [] if there is neither."""
    text, structured = f"{stem}.txt", f"{stem}.json"
    try:
        if text in folder:
            return split_lines(read_text(folder, text))
        if structured in folder:
            return captions_from_json(parse_json(read_text(folder, structured), structured, folder.report))
    except OSError as error:
        folder.report.skip(f"captions that cannot be read ({error.strerror})", stem)
    return []


def caption_folder(source: Folder, stems: list[str], options: SourceOptions) -> Folder | None:
    """The folder below --captions, or else the source, in which most images of these stems have a .txt or .json: it
    may lie anywhere. None if no image has one."""
    place, stems = source.other(options.captions) if options.captions else source, set(stems)
    votes: Counter[str] = Counter()
    for name in place.files:
        stem, _, suffix = name.rpartition(".")
        if suffix in ("txt", "json"):
            # Every ending of the name may be the stem: what is before it is the folder.
            parts = stem.split("/")
            for start in range(len(parts)):
                if "/".join(parts[start:]) in stems:
                    votes["/".join(parts[:start])] += 1
    if not votes:
        return None
    best = min(votes, key=lambda path: (-votes[path], path.count("/"), path))
    return place.sub(best) if best else place


def captions_by_name(source: Folder, options: SourceOptions) -> tuple[Folder, dict[str, str]]:
    """--captions or else the source, and for the bare names of its .txt and .json files their stems."""
    place = source.other(options.captions) if options.captions else source
    texts = (PurePosixPath(name) for name in place.files if name.endswith((".txt", ".json")))
    return place, {path.stem: str(path.with_suffix("")) for path in texts}


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


def load_plain_pickle(content: bytes) -> list | dict | str | int | float:
    """Read a pickle of lists, dicts, strings and numbers, such as the `filenames.pickle` of older projects.

    No code of the pickle runs: whatever needs a class or function is refused before it is looked up. Raises
    RefusedPickle, which names what else is in it or says that it is damaged.
    """
    try:
        value = _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()  # Python 2 wrote most of them
    except RefusedPickle:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        if b"\r\n" in content and not content.startswith(b"\x80"):  # text that has become that of Windows on its way
            return load_plain_pickle(content.replace(b"\r\n", b"\n"))
        raise RefusedPickle(f"it is damaged ({type(error).__name__})") from error
    _check_plain(value)
    return value


def pickled_split(source: Folder, known: Iterable[str]) -> dict[str, str] | None:
    """Split by name, with and without its folder, from train/filenames.pickle and test/filenames.pickle wherever they
    lie; None, with a note, when they cannot be used. `known` are the names that images have here."""
    listed: dict[str, str] = {}
    for split in (TRAIN, TEST):
        name = f"{split}/filenames.pickle"
        if (path := source.file(name)) is None:
            return None
        try:
            names = load_plain_pickle(source.read(path))
            if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
                raise RefusedPickle("it is no list of names")
        except (RefusedPickle, OSError) as error:
            source.report.notes.append(f"{name} was refused, {error}; it decides no split")
            return None
        for entry in names:
            entry = str(entry).strip().replace("\\", "/")
            entry = stem_id(entry) if entry.lower().endswith(SUFFIXES) else entry
            listed |= {entry: split, entry.rpartition("/")[2]: split}
    if not listed.keys() & set(known):
        source.report.notes.append("filenames.pickle names no image that is here; it decides no split")
        return None
    return listed


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
