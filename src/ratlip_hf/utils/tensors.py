"""Small helpers on tensors and networks: precision of sums and norms, eval mode for a while, hashes and checks of
weights, files of tensors that nobody vouches for."""

import contextlib
import hashlib
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .errors import one_line
from .files import require_regular

_CHECKED_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_EVALUATED: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()  # users, whether it was training
_MODES = threading.Lock()


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Half precision raised to float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@contextlib.contextmanager
def evaluating(*modules: torch.nn.Module) -> Iterator[None]:
    """Eval mode within the block; a training loop that samples from its own network gets it back as it was. Threads
    may share a network: the last one that leaves gives it back."""
    parts = list(dict.fromkeys(part for module in modules for part in module.modules()))
    with _MODES:
        for part in parts:
            users, was_training = _EVALUATED.get(part, (0, part.training))
            _EVALUATED[part] = users + 1, was_training
            part.training = False
    try:
        yield
    finally:
        with _MODES:
            for part in parts:
                users, part_was_training = _EVALUATED.pop(part)
                if users > 1:
                    _EVALUATED[part] = users - 1, part_was_training
                else:
                    part.training = part_was_training


def check_weights(network: nn.Module, source: object) -> None:
    """Raise ValueError for weights that no training leaves, which would make black images and scores that mean
    nothing: NaN, infinite values, variances below zero. `source` is where they come from, for the message."""
    for name, value in network.state_dict().items():
        if type(value) is not torch.Tensor or value.dtype not in _CHECKED_TYPES or value.is_meta:
            continue  # counters, and weights that a library has quantized or not loaded
        wrong = "holds NaN or infinite values" if not value.isfinite().all() else None
        if wrong is None and name.endswith("running_var") and (value < 0).any():
            wrong = "holds a variance below zero"
        if wrong:
            what = f"{name} of {type(network).__name__} {wrong}"
            raise ValueError(f"{source}: {what}; the file is damaged, or of a failed run")


def load_tensors(path: str | os.PathLike, mmap: bool = False):
    """What `torch.save` has written, as far as it is tensors and plain values; no code in the file can run.

    `mmap` leaves tensors on the disk until they are read. Raises OSError for what is no regular file, ValueError for
    one that is damaged (checksums are compared), packed with compression, or needs more than plain values.
    """
    require_regular(path)
    try:
        if packed := zipfile.is_zipfile(path):
            _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and packed)
    except OSError:
        raise
    except Exception as error:  # a damaged file raises almost anything
        if needed := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} is refused: to read it Python would have to run {needed[1]}; only tensors and plain values "
                "are read (if you trust the file, load it with torch and save its networks alone)"
            ) from error
        # Not all of torch's words: some advise to run whatever is in the file.
        said = type(error).__name__ if "weights_only" in str(error) else one_line(error)
        raise ValueError(f"{path} is not a PyTorch checkpoint that can be read safely: {said}") from error


def _check_archive(path: str | os.PathLike) -> None:
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it was packed again, with compression, which torch does not do: unpack and save it anew")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} differs, the file is damaged")


def weights_sha256(*networks: nn.Module) -> str:
    """Hash of the networks' names and values, one after the other; half precision counts by its values."""
    digest = hashlib.sha256()
    for network in networks:
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
