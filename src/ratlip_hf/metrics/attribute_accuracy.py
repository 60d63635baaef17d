"""Attribute accuracy: how often what a judge reads off a picture is what its prompt asked for.
Owns the counting; what is read and by whom is the caller's (`synthetic_birds.judge` for the birds)."""

from collections.abc import Sequence
from dataclasses import dataclass

from .checks import Vectors, as_tensor


@dataclass(frozen=True)
class AttributeAccuracy:
    """Shares in [0, 1]: the `mean` over all attributes, for each of the `parts`, and of pictures with `all` right."""

    mean: float
    parts: dict[str, float]
    all: float


def attribute_accuracy(read: Vectors, wanted: Vectors, parts: Sequence[str] | None = None) -> AttributeAccuracy:
    """Share of attributes that agree.

    Args:
        read: labels [N, P] of integers that a judge read, P attributes of each picture.
        wanted: labels [N, P] that the prompts ask for.
        parts: names of the P attributes; "0", "1", ... unless given. For the birds `synthetic_birds.attributes.PARTS`.

    Raises:
        ValueError: for other shapes, labels that are no integers, or another number of names.
    """
    read, wanted = as_tensor(read), as_tensor(wanted)
    if read.shape != wanted.shape or read.ndim != 2 or not read.numel():
        raise ValueError(f"labels must be [N, P] both, not {list(read.shape)} and {list(wanted.shape)}")
    if any(labels.is_floating_point() or labels.is_complex() for labels in (read, wanted)):
        raise ValueError("labels must be integers")
    names = [str(index) for index in range(read.shape[1])] if parts is None else list(parts)
    if len(names) != read.shape[1]:
        raise ValueError(f"{read.shape[1]} attributes need as many names, not {len(names)}")
    hits = (read == wanted.to(read.device)).double()
    by_part = dict(zip(names, hits.mean(dim=0).tolist(), strict=True))
    return AttributeAccuracy(float(hits.mean()), by_part, float(hits.prod(dim=1).mean()))
