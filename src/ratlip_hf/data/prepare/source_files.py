"""A download as it comes, seen as one tree of files: a folder, a .tar, .tgz or .zip, or a folder with such archives.
Importers see `Folder`s. Members of archives are read where they are and never written by their names; a .tgz,
which can only be read from its start, is decompressed once into a scratch folder, as is an archive in an archive.
Imported by the processes that write shards, so nothing heavy is imported here."""

import errno
import gzip
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath

from ...utils.errors import UserError
from ...utils.files import LARGEST_TEXT, read_bytes, require_regular
from ..images import SUFFIXES, BadImage
from .source_dataset import ImageSource, Report, as_text

ARCHIVES = (".tar", ".tgz", ".tar.gz", ".zip")
_LONGEST_HEADER = 2**20
_MOST_EXPANSION = 200  # times the size of a .tgz; photographs hardly shrink, text about tenfold
_LINKED_DEPTH = 2  # links to folders are the user's own near the root only
_MOST_GROUPS = 8  # lines of `Folder.usage`
_READING = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, KeyError)


def natural_key(name: str) -> tuple[list, str]:
    """Sorting key under which "2" comes before "10"; names that differ in case or zeros only keep a fixed order."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if index % 2 else part.lower() for index, part in enumerate(parts)], name


# Files, wherever they are: each is an `ImageSource`


@dataclass(frozen=True)
class FileImage:
    """A file of its own."""

    path: Path

    def read(self) -> bytes:
        return read_bytes(self.path)

    def fingerprint(self) -> str:
        status = self.path.stat()
        return f"{self.path}:{status.st_size}:{status.st_mtime_ns}"

    def stored_bytes(self) -> int:
        return self.path.stat().st_size


@dataclass(frozen=True)
class Archive:
    """An archive under the name that reports give it; `path` is what is read, `identity` changes when it does."""

    name: str
    path: Path
    identity: str


@dataclass(frozen=True)
class TarMember:
    """A file within a tar file that is not compressed (any more)."""

    archive: Archive
    offset: int
    size: int

    def read(self) -> bytes:
        _require_readable(self.size)
        with open(self.archive.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def fingerprint(self) -> str:
        return f"{self.archive.identity}:{self.offset}:{self.size}"

    def stored_bytes(self) -> int:
        return self.size


@dataclass(frozen=True)
class ZipMember:
    """A file within a zip file, by its name there."""

    archive: Archive
    name: str
    size: int

    def read(self) -> bytes:
        _require_readable(self.size)
        try:
            return _open_zip(self.archive).read(self.name)
        except _READING as error:
            raise OSError(errno.EIO, f"damaged in its archive: {error}", self.name) from error

    def fingerprint(self) -> str:
        return f"{self.archive.identity}:{self.name}:{self.size}"

    def stored_bytes(self) -> int:
        return self.size


def _require_readable(size: int) -> None:
    if size > LARGEST_TEXT:
        raise BadImage(f"file of more than {LARGEST_TEXT / 1e6:.0f} MB")


@lru_cache(maxsize=8)
def _open_zip(archive: Archive) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive.path)


# What archives hold


class _Member(tarfile.TarInfo):
    """A member whose long names and other attributes, which are read into memory, are no longer than a name can be."""

    def _proc_member(self, tar):
        attributes = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        names = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        if self.type in attributes + names and not 0 <= self.size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header claims {self.size} bytes")
        return super()._proc_member(tar)


def _tar_members(archive: Archive, report: Report) -> Iterator[tuple[str, ImageSource]]:
    with tarfile.open(archive.path, "r:", tarinfo=_Member) as tar:
        for member in tar:
            if member.isfile() and member.issparse():
                report.skip("file with holes in a tar file", member.name)
            elif member.isfile():
                yield member.name, TarMember(archive, member.offset_data, member.size)


def _zip_members(archive: Archive, report: Report) -> Iterator[tuple[str, ImageSource]]:
    for member in _open_zip(archive).infolist():
        if member.flag_bits & 1:
            report.skip("encrypted file in a zip file", member.filename)
        elif not member.is_dir() and not stat.S_ISLNK(member.external_attr >> 16):
            yield member.filename, ZipMember(archive, member.filename, member.file_size)


def _decompressed(archive: Archive, report: Report) -> Iterator[bytes]:
    """The tar file in a .tgz, piece by piece, as far as it can be read and is not absurdly larger."""
    left = _MOST_EXPANSION * archive.path.stat().st_size + 2**20
    try:
        with gzip.open(archive.path) as compressed:
            while (left := left - len(piece := compressed.read(2**20))) > 0 and piece:
                yield piece
        if left <= 0:
            report.skip(f"rest of an archive that grows more than {_MOST_EXPANSION}-fold", archive.name)
    except (OSError, EOFError, zlib.error) as error:
        report.skip(f"rest of an archive that cannot be read ({error})", archive.name)


def _inside(name: str) -> str | None:
    """The name of an archive's member, or of a file in metadata, with plain slashes; None if it leads out. Backslashes
    are slashes."""
    name = name.strip().replace("\\", "/")
    parts = PurePosixPath(name).parts
    if not parts or "\0" in name or parts[0].startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", name):
        return None
    return "/".join(parts)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX/")) or "/." in name or "/__MACOSX/" in name


# The tree


@dataclass
class _Tree:
    """All files below one path, by their names with slashes."""

    path: Path
    report: Report
    scratch: Path | None
    apart: bool
    files: dict[str, ImageSource] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    archives: list[tuple[str, Path]] = field(default_factory=list)  # found in the folder, by their names
    written: int = 0  # to the scratch folder
    others: list["Folder"] = field(default_factory=list)  # sources that go with this one

    def index(self) -> None:
        if self.path.is_dir():
            self._scan(self.path, "", 0)
        else:
            self.archives = [(self.path.name, self.path)]
        if self.apart:
            self.files = {}
        for name, path in self.archives:
            status = path.stat()
            archive = Archive(as_text(name), path, f"{path}:{status.st_size}:{status.st_mtime_ns}")
            self._mount(archive, name, nested=self.apart)

    def _scan(self, folder: Path, prefix: str, depth: int) -> None:
        with os.scandir(folder) as entries:
            entries = sorted(entries, key=lambda entry: natural_key(entry.name))
        for entry in entries:
            name = prefix + entry.name
            if _is_hidden(name):
                continue
            try:
                if entry.is_dir():
                    if not entry.is_symlink() or self._may_follow(entry, depth):
                        self._scan(Path(entry.path), f"{name}/", depth + 1)
                elif not entry.is_file():
                    self.report.skip("link that leads nowhere, pipe or device", name)
                elif name.lower().endswith(ARCHIVES):
                    self.archives.append((name, Path(entry.path)))
                else:
                    self.files[name] = FileImage(Path(entry.path))
            except OSError as error:
                self.report.skip(f"file or folder that cannot be read ({error.strerror})", name)

    def _may_follow(self, link: os.DirEntry, depth: int) -> bool:
        """Whether a link to a folder is followed: near the root, and not to what is seen anyway."""
        target, root = Path(link.path).resolve(), self.path.resolve()
        return depth < _LINKED_DEPTH and not (target.is_relative_to(root) or root.is_relative_to(target))

    def _mount(self, archive: Archive, name: str, nested: bool) -> None:
        """Take in an archive's files where it lies itself, or below its own name where archives are kept apart. Files
        that are there already stay."""
        own = re.sub(r"\.(tar|tgz|tar\.gz|zip)$", "", name, flags=re.IGNORECASE)
        start = f"{own}/" if self.apart else name[: name.rfind("/") + 1]
        members: dict[str, ImageSource] = {}
        try:
            require_regular(archive.path)
            with open(archive.path, "rb") as file:
                head = file.read(4)
            if head[:2] == b"\x1f\x8b":
                archive = self._write(_decompressed(archive, self.report), archive.name, archive.identity)
            listing = _zip_members if head[:2] == b"PK" else _tar_members
            for member, source in listing(archive, self.report):
                if (inside := _inside(member)) is None:
                    self.report.skip("file in an archive whose name leads out of it", member)
                elif not _is_hidden(inside):
                    members[start + inside] = source
        except (tarfile.TarError, OSError, *_READING) as error:
            self.report.skip(f"rest of an archive that cannot be read ({error})", archive.name)
        if repeated := sum(name in self.files for name in members):
            self.report.notes.append(f"{repeated:,} files of {archive.name} are there already, and not read from it")
        new = {name: source for name, source in members.items() if name not in self.files}
        self.files |= new
        if not nested:
            for name in sorted((name for name in new if name.lower().endswith(ARCHIVES)), key=natural_key):
                self._mount_nested(archive, name)

    def _mount_nested(self, outer: Archive, name: str) -> None:
        try:
            content = self.files[name].read()
        except (OSError, BadImage) as error:
            self.report.skip(f"archive in an archive that cannot be read ({error})", name)
            return
        self.used.add(name)
        archive = self._write([content], f"{outer.name}/{as_text(name)}", f"{outer.identity}/{name}")
        self._mount(archive, name, nested=True)

    def _write(self, pieces: Iterable[bytes], name: str, identity: str) -> Archive:
        """An archive in the scratch folder. Raises UserError when there is no room or no such folder."""
        if self.scratch is None:
            raise UserError(f"{name} cannot be read where it is: unpack it first")
        path = self.scratch / f"{self.written}.archive"
        self.written += 1
        try:
            self.scratch.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                for piece in pieces:
                    file.write(piece)
        except OSError as error:
            raise UserError(f"cannot write what {name} holds to {path}: {error.strerror}") from error
        return Archive(name, path, identity)

    @cached_property
    def folders(self) -> set[str]:
        found: set[str] = set()
        for name in self.files:
            parent = name.rpartition("/")[0]
            while parent and parent not in found:
                found.add(parent)
                parent = parent.rpartition("/")[0]
        return found


class Folder:
    """A folder of a source, real or in an archive. Names of files are relative to it, with slashes."""

    def __init__(self, tree: _Tree, path: str = ""):
        self._tree, self._prefix = tree, f"{path}/" if path else ""
        self.report = tree.report

    def __str__(self) -> str:
        return str(self._tree.path / self._prefix)

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._tree.files

    @property
    def name(self) -> str:
        """Its own name, without those above; empty for the source as such."""
        return self._prefix.rstrip("/").rpartition("/")[2]

    @cached_property
    def files(self) -> list[str]:
        """Names of all files below, in natural order."""
        start = len(self._prefix)
        return sorted((name[start:] for name in self._tree.files if name.startswith(self._prefix)), key=natural_key)

    @cached_property
    def images(self) -> list[str]:
        """Names of all files below whose suffix is that of an image."""
        return [name for name in self.files if name.lower().endswith(SUFFIXES)]

    def sub(self, path: str) -> "Folder | None":
        """The folder of this path below; None if there is none."""
        return Folder(self._tree, self._prefix + path) if self._prefix + path in self._tree.folders else None

    def folders(self, *names: str) -> list["Folder"]:
        """All folders below whose path ends with one of these names: by the names' order, the least deep first."""
        paths = sorted(
            (path for path in self._tree.folders if f"{path}/".startswith(self._prefix)),
            key=lambda path: (path.count("/"), natural_key(path)),
        )
        return [Folder(self._tree, path) for name in names for path in paths if f"/{path}".endswith(f"/{name}")]

    def file(self, *names: str) -> str | None:
        """The file whose path ends with the first of these names that there is, the least deep one; None for none."""
        for name in names:
            found = [path for path in self.files if f"/{path}".endswith(f"/{name}")]
            if found:
                return min(found, key=lambda path: path.count("/"))
        return None

    def inside(self, name: str) -> str | None:
        """The name that metadata gives a file below; None if it would lie outside. Backslashes are slashes."""
        inside = _inside(name)
        # A link on the way may still lead out, and names in metadata are not the user's own.
        return inside if inside and (self._real / inside).resolve().is_relative_to(self._real) else None

    @cached_property
    def _real(self) -> Path:
        return (self._tree.path / self._prefix).resolve()

    def read(self, name: str) -> bytes:
        """Content of a file. Raises OSError when it is not there or cannot be read."""
        if name not in self:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        self._tree.used.add(self._prefix + name)
        try:
            return self._tree.files[self._prefix + name].read()
        except BadImage as error:
            raise OSError(errno.EFBIG, str(error), name) from error

    def image(self, name: str) -> ImageSource:
        """Where the bytes of a file that is there are, to be read by the process that needs them."""
        self._tree.used.add(self._prefix + name)
        return self._tree.files[self._prefix + name]

    def other(self, path: Path) -> "Folder":
        """Another source that goes with this one: that of --captions."""
        self._tree.others.append(open_source(path, self.report, self._tree.scratch and self._tree.scratch / "other"))
        return self._tree.others[-1]

    def usage(self) -> dict[str, dict[str, int]]:
        """What was read and what was not: {"read", "unread"}: number of files by a pattern of their names."""
        used = self._tree.used
        groups = {
            "read": self._groups([name for name in self.files if self._prefix + name in used]),
            "unread": self._groups([name for name in self.files if self._prefix + name not in used]),
        }
        for other in self._tree.others:
            for state, found in other.usage().items():
                groups[state] |= {f"--captions: {name}": count for name, count in found.items()}
        return groups

    def _groups(self, names: list[str]) -> dict[str, int]:
        for depth in (2, 1, 0):
            groups: dict[tuple[str, str], list[str]] = {}
            for name in names:
                archive, path = getattr(self._tree.files[self._prefix + name], "archive", None), PurePosixPath(name)
                pattern = "".join(f"{part}/" for part in path.parts[:-1][:depth]) + f"*{path.suffix.lower()}"
                groups.setdefault((f"{archive.name}: " if archive else "", pattern), []).append(name)
            if len(groups) <= _MOST_GROUPS:
                break
        largest = sorted(groups.items(), key=lambda item: -len(item[1]))[:_MOST_GROUPS]
        shown = {as_text(label + (of[0] if len(of) == 1 else pattern)): len(of) for (label, pattern), of in largest}
        return shown | ({"others": rest} if (rest := len(names) - sum(shown.values())) else {})


def open_source(path: Path, report: Report | None = None, scratch: Path | None = None, apart: bool = False) -> Folder:
    """Index a download, a folder or an archive.

    Args:
        path: the folder or archive. Archives in a folder are read as if they had been unpacked where they lie; files
            that are there already count first.
        report: where to count what cannot be read.
        scratch: folder, made when it is needed, for .tgz in a decompressed form and archives within archives. None
            for sources without them.
        apart: see archives alone, each as a folder of its name without the suffix.

    Raises:
        OSError: when the folder or archive cannot be read.
        UserError: when an archive has to be written to the scratch folder and cannot be.
    """
    tree = _Tree(Path(path), report or Report(), scratch, apart)
    tree.index()
    return Folder(tree)
