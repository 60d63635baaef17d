"""The attributes that define one synthetic bird, their vocabularies, and the rule that gives every colour triple to
one of three splits."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

COLOURS = ("red", "orange", "yellow", "green", "blue", "black", "white", "purple")
PARTS = ("crown", "belly", "wing")
DIRECTIONS = ("left", "right")
BACKGROUNDS = ("sky", "meadow", "sunset", "snow")
PERCHES = ("branch", "rock", "grass", "post")
SIZES = ("small", "large")
SCENE = ("direction", "background", "perch", "size")
SPLITS = ("train", "validation", "test")

_HELD_OUT_REMAINDERS = {1: "validation", 5: "test"}


@dataclass(frozen=True)
class BirdAttributes:
    """One bird: a colour name per part, where it looks, where it sits and how large it is.

    Raises `ValueError` for a word outside the vocabulary of its field.
    """

    crown: str
    belly: str
    wing: str
    direction: str = "right"
    background: str = "sky"
    perch: str = "branch"
    size: str = "large"

    def __post_init__(self):
        for name, vocabulary in FIELD_VOCABULARIES.items():
            value = getattr(self, name)
            if value not in vocabulary:
                raise ValueError(f"{name} must be one of {', '.join(vocabulary)}; got {value!r}")

    @property
    def colours(self) -> tuple[str, str, str]:
        """The colour names of crown, belly and wing, in the order of `PARTS`."""
        return self.crown, self.belly, self.wing

    @property
    def colour_labels(self) -> tuple[int, int, int]:
        """The indices of `colours` in `COLOURS`."""
        return attribute_labels(self, PARTS)


FIELD_VOCABULARIES = {
    **dict.fromkeys(PARTS, COLOURS),
    "direction": DIRECTIONS,
    "background": BACKGROUNDS,
    "perch": PERCHES,
    "size": SIZES,
}


def attribute_labels(attributes: BirdAttributes, fields: Sequence[str]) -> tuple[int, ...]:
    """The indices of a bird's words in the vocabularies of the given fields."""
    return tuple(FIELD_VOCABULARIES[name].index(getattr(attributes, name)) for name in fields)


def split_of(attributes: BirdAttributes) -> str:
    """The split that the colour triple belongs to: of the 512 triples, validation and test have 64 each.

    Both are Latin squares: any two colours leave one third colour for validation, one for test and six for training.
    Exchanging the colours of two parts never leaves the split.
    """
    return _HELD_OUT_REMAINDERS.get(sum(attributes.colour_labels) % len(COLOURS), "train")


def sample_attributes(rng: random.Random, split: str | None = None) -> BirdAttributes:
    """Sample attributes uniformly, of the colour triples of one split or (`split=None`) of all."""
    if split is not None and split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    while True:
        attributes = BirdAttributes(**{name: rng.choice(words) for name, words in FIELD_VOCABULARIES.items()})
        if split in (None, split_of(attributes)):
            return attributes


def swap_two_parts(attributes: BirdAttributes, rng: random.Random) -> BirdAttributes:
    """Exchange the colours of two parts whose colours differ; everything else stays.

    Raises `ValueError` if all three parts share one colour.
    """
    pairs = [
        (first, second)
        for index, first in enumerate(PARTS)
        for second in PARTS[index + 1 :]
        if getattr(attributes, first) != getattr(attributes, second)
    ]
    if not pairs:
        raise ValueError(f"an all {attributes.crown} bird has no two different colours to exchange")
    first, second = rng.choice(pairs)
    return replace(attributes, **{first: getattr(attributes, second), second: getattr(attributes, first)})


def with_another_word(attributes: BirdAttributes, field: str, rng: random.Random) -> BirdAttributes:
    """A bird with another word in one field and everything else as it was; of a training triple it is one again.

    Rival captions in training are made of it, and must not tell of colour triples that are held out.
    """
    words = [word for word in FIELD_VOCABULARIES[field] if word != getattr(attributes, field)]
    birds = [replace(attributes, **{field: word}) for word in words]
    return rng.choice([bird for bird in birds if split_of(bird) in ("train", split_of(attributes))])
