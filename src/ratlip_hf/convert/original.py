"""Reading an original checkpoint: tensors and plain values only, networks found whatever they are wrapped in.
Owns the file; what its tensors mean is the business of `layout` and `key_maps`."""

import hashlib
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..utils.errors import one_line

NETWORKS = ("netG", "netD", "netC")
_EVERY_GENERATOR = "fc_code.weight"  # by which a generator's bare tensors are known
_DEPTH = 4  # levels of wrapping; a file may even hold cycles
_WRAPPER = "module."  # what DataParallel and its distributed sibling put before every name

StateDict = dict[str, torch.Tensor]


@dataclass
class OriginalCheckpoint:
    """The networks of an original checkpoint, under the names that they have without wrappers.

    Args:
        path: the file.
        networks: state dicts by "netG", "netD" and "netC"; the last two may be absent.
        ignored: entries of the file that are not networks, such as "optimizers" and "epoch".
    """

    path: Path
    networks: dict[str, StateDict]
    ignored: list[str] = field(default_factory=list)

    def sha256(self) -> str:
        """Checksum of the file."""
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def read_original(path: str | os.PathLike) -> OriginalCheckpoint:
    """Read a `.pth` of the RATLIP or GALIP programs; no code in it can run.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when it is no PyTorch file, needs more than tensors and plain values (which is named), or holds no
            generator or several.
    """
    path = Path(path)
    content = _load(path)
    found = list(_find_networks(content, ()))
    if not found:
        top = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path} holds no generator of RATLIP or GALIP (no {_EVERY_GENERATOR}); it holds: {top}")
    if len(found) > 1:
        places = ", ".join(".".join(map(str, place)) for place, _ in found)
        raise ValueError(f"{path} holds several generators ({places}); save the one that is meant by itself")
    ((place, networks),) = found
    networks = {name: _unwrapped(path, name, tensors) for name, tensors in networks.items()}
    if ("netD" in networks) != ("netC" in networks):
        alone, absent = ("netD", "netC") if "netD" in networks else ("netC", "netD")
        raise ValueError(f"{path} holds {alone} without {absent}; a discriminator needs both")
    return OriginalCheckpoint(path, networks, _other_entries(content, place))


def _load(path: Path):
    with open(path, "rb"):  # a file that cannot be read is an OSError; torch would say other things of a folder
        pass
    try:
        # Mapped where the format allows it: optimizer states, twice as large as the weights, stay on the disk.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except Exception as error:  # a damaged file raises almost anything
        if needed := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} is refused: to read it Python would have to run {needed[1]}; only tensors and plain values "
                "are read (if you trust the file, load it with torch and save its networks alone)"
            ) from error
        raise ValueError(f"{path} is not a PyTorch checkpoint that can be read safely: {one_line(error)}") from error


def _find_networks(content, place: tuple) -> Iterator[tuple[tuple, dict[str, Mapping]]]:
    """(keys from the top, networks) of every generator, with its discriminator where that lies beside it."""
    if not isinstance(content, Mapping) or len(place) > _DEPTH:
        return
    if isinstance(content.get("netG"), Mapping):
        yield place, {name: content[name] for name in NETWORKS if isinstance(content.get(name), Mapping)}
    elif _EVERY_GENERATOR in content or _WRAPPER + _EVERY_GENERATOR in content:
        yield place, {"netG": content}
    else:
        for key, value in content.items():
            yield from _find_networks(value, (*place, key))


def _unwrapped(path: Path, network: str, tensors: Mapping) -> StateDict:
    strays = [str(name) for name, value in tensors.items() if not isinstance(value, torch.Tensor)]
    if strays:
        raise ValueError(f"{path}: {network} holds entries that are no tensors: {', '.join(strays[:8])}")
    names = list(tensors)
    while names and all(name.startswith(_WRAPPER) for name in names):
        tensors = {name.removeprefix(_WRAPPER): value for name, value in tensors.items()}
        names = list(tensors)
    return dict(tensors)


def _other_entries(content: Mapping, place: tuple) -> list[str]:
    """Names of what lies around the networks, from the top of the file to them; none around bare tensors."""
    others = []
    for key in place:
        others += [str(name) for name in content if name != key]
        content = content[key]
    if "netG" in content:
        others += [str(name) for name in content if name not in NETWORKS]
    return others
