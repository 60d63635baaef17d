"""English captions of synthetic birds in the manner of crowd-written ones: synonyms, shuffled order, omissions.
Every caption is a pure function of the attributes and of the random generator passed in."""

import random

from .attributes import PARTS, BirdAttributes

CAPTIONS_PER_IMAGE = 10
MAX_WORDS = 25

_CROWN_NOUNS = ("crown", "crown", "cap", "head")
_BELLY_NOUNS = ("belly", "belly", "breast", "underside", "chest")
_SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
_DIRECTION_PHRASES = ("facing {0}", "facing {0}", "looking {0}", "looking to the {0}", "turned to the {0}")
_PERCH_VERBS = ("", "", "sitting ", "standing ", "perched ")
_PERCH_PHRASES = {
    "branch": ("on a branch", "on a branch", "on a twig"),
    "rock": ("on a rock", "on a rock", "on a stone"),
    "grass": ("on the grass", "in the grass"),
    "post": ("on a post", "on a wooden post"),
}
_BACKGROUND_PHRASES = {
    "sky": ("against the sky", "in front of the sky", "under a cloudy sky"),
    "meadow": ("in a meadow", "in front of a meadow", "in a field"),
    "sunset": ("at sunset", "at sunset", "in the evening light"),
    "snow": ("in the snow", "in winter", "in falling snow"),
}


def named_scene(caption: str, attributes: BirdAttributes) -> tuple[str, ...]:
    """Which of direction, background and perch a caption of this bird names; sizes are left out, being relative."""
    phrases = {
        "direction": [phrase.format(attributes.direction) for phrase in _DIRECTION_PHRASES],
        "background": _BACKGROUND_PHRASES[attributes.background],
        "perch": _PERCH_PHRASES[attributes.perch],
    }
    return tuple(name for name, known in phrases.items() if any(phrase in caption for phrase in known))


def with_article(phrase: str) -> str:
    """Put "a" or "an" before a phrase."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _crown_phrase(colour: str, rng: random.Random) -> str:
    return with_article(f"{colour} {rng.choice(_CROWN_NOUNS)}")


def _belly_phrase(colour: str, rng: random.Random) -> str:
    return with_article(f"{colour} {rng.choice(_BELLY_NOUNS)}")


def _wing_phrase(colour: str, rng: random.Random) -> str:
    return rng.choice((f"{colour} wings", f"{colour} wings", f"{colour} wings", with_article(f"{colour} wing")))


_PART_PHRASES = {"crown": _crown_phrase, "belly": _belly_phrase, "wing": _wing_phrase}


def _parts(attributes: BirdAttributes, parts: tuple[str, ...], rng: random.Random) -> str:
    """Noun phrases of the given parts in random order, as "a red crown, blue wings and a green belly"."""
    shuffled = rng.sample(parts, len(parts))
    return _listed([_PART_PHRASES[part](getattr(attributes, part), rng) for part in shuffled])


def _listed(phrases: list[str]) -> str:
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)


def _size_prefix(attributes: BirdAttributes, rng: random.Random, chance: float = 0.4) -> str:
    word = rng.choice(_SIZE_WORDS[attributes.size])
    return f"{word} " if rng.random() < chance else ""


def _setting(attributes: BirdAttributes, rng: random.Random) -> str:
    """A random selection, possibly empty, of direction, perch and background phrases."""
    direction = rng.choice(_DIRECTION_PHRASES).format(attributes.direction)
    perch = rng.choice(_PERCH_VERBS) + rng.choice(_PERCH_PHRASES[attributes.perch])
    background = rng.choice(_BACKGROUND_PHRASES[attributes.background])
    pieces = [piece for piece, chance in ((direction, 0.4), (perch, 0.35)) if rng.random() < chance]
    rng.shuffle(pieces)
    phrase = ", ".join(pieces)
    if rng.random() < 0.3:
        phrase = f"{phrase} {background}" if phrase else background
    return phrase


def _bird_with_parts(attributes: BirdAttributes, rng: random.Random) -> str:
    bird = with_article(f"{_size_prefix(attributes, rng)}bird")
    verb = rng.choice(("with", "with", "that has"))
    return f"{bird} {verb} {_parts(attributes, PARTS, rng)}"


def _bird_has_parts(attributes: BirdAttributes, rng: random.Random) -> str:
    determiner = rng.choice(("this", "this", "the"))
    parts = _parts(attributes, PARTS, rng)
    return f"{determiner} {_size_prefix(attributes, rng)}bird has {parts}"


def _coloured_bird_with_parts(attributes: BirdAttributes, rng: random.Random) -> str:
    bird = with_article(f"{_size_prefix(attributes, rng)}{attributes.belly} bird")
    return f"{bird} with {_parts(attributes, ('crown', 'wing'), rng)}"


def _bird_is_coloured(attributes: BirdAttributes, rng: random.Random) -> str:
    bird = f"this {_size_prefix(attributes, rng)}bird is {attributes.belly}"
    return f"{bird} with {_parts(attributes, ('crown', 'wing'), rng)}"


def _crowned_bird(attributes: BirdAttributes, rng: random.Random) -> str:
    bird = with_article(f"{_size_prefix(attributes, rng)}{attributes.crown}-crowned bird")
    return f"{bird} with {_parts(attributes, ('belly', 'wing'), rng)}"


def _part_sentences(attributes: BirdAttributes, rng: random.Random) -> str:
    crown = rng.choice(("crown", "top of its head", "cap"))
    belly = rng.choice(_BELLY_NOUNS)
    sentences = [f"the {crown} is {attributes.crown}", f"the {belly} is {attributes.belly}"]
    sentences.append(f"the wings are {attributes.wing}")
    rng.shuffle(sentences)
    return f"{with_article(_size_prefix(attributes, rng) + 'bird')}, {_listed(sentences)}"


def _keywords(attributes: BirdAttributes, rng: random.Random) -> str:
    words = [f"{attributes.crown} crown", f"{attributes.belly} belly", f"{attributes.wing} wings"]
    rng.shuffle(words)
    return f"{_size_prefix(attributes, rng)}bird, {', '.join(words)}"


def _uniform_bird(attributes: BirdAttributes, rng: random.Random) -> str:
    size = _size_prefix(attributes, rng)
    colour = attributes.belly
    whole = rng.choice(("all {0} bird", "completely {0} bird", "bird that is {0} all over", "{0} bird"))
    return with_article(f"{size}{whole.format(colour)}")


def _mostly_one_colour(attributes: BirdAttributes, rng: random.Random) -> str:
    bird = with_article(f"{_size_prefix(attributes, rng)}{rng.choice(('mostly ', 'all '))}{attributes.belly} bird")
    odd_part = "wing" if attributes.crown == attributes.belly else "crown"
    return f"{bird} with {_parts(attributes, (odd_part,), rng)}"


def _coloured_bird_with_wings(attributes: BirdAttributes, rng: random.Random) -> str:
    bird = with_article(f"{_size_prefix(attributes, rng)}{attributes.belly} bird")
    return f"{bird} with {_parts(attributes, ('wing',), rng)}"


def _coloured_bird(attributes: BirdAttributes, rng: random.Random) -> str:
    return with_article(f"{_size_prefix(attributes, rng)}{attributes.belly} bird")


def _bird_with_some_parts(attributes: BirdAttributes, rng: random.Random) -> str:
    parts = tuple(rng.sample(PARTS, rng.choice((1, 2, 2))))
    bird = with_article(f"{_size_prefix(attributes, rng)}bird")
    return f"{bird} with {_parts(attributes, parts, rng)}"


_FULL_STYLES = (
    _bird_with_parts,
    _bird_has_parts,
    _coloured_bird_with_parts,
    _coloured_bird_with_parts,
    _bird_is_coloured,
    _crowned_bird,
    _part_sentences,
    _keywords,
)
_SHORT_STYLES = (_coloured_bird_with_wings, _coloured_bird_with_wings, _coloured_bird, _bird_with_some_parts)


def _finished(description: str, attributes: BirdAttributes, rng: random.Random) -> str:
    setting = _setting(attributes, rng)
    caption = f"{description}, {setting}" if setting else description
    return caption if len(caption.split()) <= MAX_WORDS else description


def full_caption(attributes: BirdAttributes, rng: random.Random) -> str:
    """A caption that names the colours of all three parts.

    With a generator in the same state, two birds that differ only in colours get captions that differ only there.
    """
    return _finished(rng.choice(_FULL_STYLES)(attributes, rng), attributes, rng)


def loose_caption(attributes: BirdAttributes, rng: random.Random) -> str:
    """An everyday caption that may leave parts out, and that says "all red" where colours coincide."""
    crown, belly, wing = attributes.colours
    if crown == belly == wing and rng.random() < 0.6:
        return _finished(_uniform_bird(attributes, rng), attributes, rng)
    if belly in (crown, wing) and crown != wing and rng.random() < 0.4:
        return _finished(_mostly_one_colour(attributes, rng), attributes, rng)
    return _finished(rng.choice(_SHORT_STYLES)(attributes, rng), attributes, rng)


def scene_caption(attributes: BirdAttributes, rng: random.Random) -> str:
    """A caption of the scene alone: direction, perch and background in random order, no colours."""
    pieces = [
        rng.choice(_DIRECTION_PHRASES).format(attributes.direction),
        rng.choice(_PERCH_VERBS) + rng.choice(_PERCH_PHRASES[attributes.perch]),
        rng.choice(_BACKGROUND_PHRASES[attributes.background]),
    ]
    rng.shuffle(pieces)
    return f"{with_article(f'{_size_prefix(attributes, rng)}bird')}, {', '.join(pieces)}"


def any_caption(attributes: BirdAttributes, rng: random.Random) -> str:
    """A caption of either kind, the full one with probability 0.6."""
    kind = full_caption if rng.random() < 0.6 else loose_caption
    return kind(attributes, rng)


def make_captions(attributes: BirdAttributes, rng: random.Random, count: int = CAPTIONS_PER_IMAGE) -> list[str]:
    """`count` captions in random order; at least half of them name all three colours."""
    full = (count + 1) // 2
    captions = [full_caption(attributes, rng) for _ in range(full)]
    captions += [loose_caption(attributes, rng) for _ in range(count - full)]
    rng.shuffle(captions)
    return captions
