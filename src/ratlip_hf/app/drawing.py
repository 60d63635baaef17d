"""What the app does, without its looks: images of prompts and seeds and between them, words that can be exchanged,
and the commands that make the same images again. Every function depends on its arguments alone, so that visitors
cannot meet; nothing here knows Gradio."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image

from ..latents import lerp, prepare_latents, slerp
from ..pipeline import RATLIPPipeline
from ..utils.errors import UserError
from ..web.export import KINDS

LONGEST_PROMPT = 1000  # characters
LARGEST_SEED = 2**53 - 1  # the largest whole number that browsers hold
MOST_IMAGES = 64  # for one request
UNTRUNCATED = 3.0  # this end of the slider leaves the noise as it is, as on the page
HISTORY = 50
_AT_ONCE = 4  # images per forward pass, then the visitor sees them


@dataclass(frozen=True)
class Model:
    """A pipeline, and the `--model` by which visitors and commands know it."""

    name: str
    pipe: RATLIPPipeline


@dataclass(frozen=True)
class Request:
    """Images that somebody asked for; image i of all has seed + i, as in `ratlip generate`.

    Raises [`UserError`] for what no model could make, in words that may be shown to whoever asked.
    """

    prompts: tuple[str, ...]
    num_images_per_prompt: int = 1
    seed: int = 0
    truncation: float | None = None

    def __post_init__(self):
        if not self.prompts or any(not prompt.strip() for prompt in self.prompts):
            raise UserError("say what the image should show")
        if any(len(prompt) > LONGEST_PROMPT for prompt in self.prompts):
            raise UserError(f"a prompt may have {LONGEST_PROMPT} characters at most")
        if self.num_images_per_prompt < 1 or self.count > MOST_IMAGES:
            raise UserError(f"between 1 and {MOST_IMAGES} images can be made at once, not {self.count}")
        if not 0 <= self.seed <= LARGEST_SEED - self.count:
            raise UserError(f"a seed is a whole number from 0 to {LARGEST_SEED - self.count}")
        if self.truncation is not None and not 0.1 <= self.truncation <= UNTRUNCATED:
            raise UserError(f"truncation goes from 0.1 to {UNTRUNCATED:.0f}")

    @property
    def count(self) -> int:
        return len(self.prompts) * self.num_images_per_prompt

    def jobs(self) -> list[tuple[str, int]]:
        """(prompt, seed) of each image."""
        prompts = [prompt for prompt in self.prompts for _ in range(self.num_images_per_prompt)]
        return [(prompt, self.seed + index) for index, prompt in enumerate(prompts)]

    def command(self, model: str) -> str:
        """The line that makes the same images in a shell."""
        options = ["--num_images", self.num_images_per_prompt, "--seed", self.seed, "--model", model]
        options += [] if self.truncation is None else ["--truncation", self.truncation]
        return shlex.join(["ratlip", "generate", *self.prompts, *map(str, options)])


def request(
    prompt: str, num_images_per_prompt: float = 1, seed: float = 0, truncation: float | None = None
) -> Request:
    """A request as the app's controls have it: one prompt per line, the slider's end for no truncation."""
    prompts = tuple(line.strip() for line in (prompt or "").splitlines() if line.strip())
    cut = None if truncation is None or truncation >= UNTRUNCATED else round(float(truncation), 3)
    return Request(prompts, int(num_images_per_prompt or 0), int(seed or 0), cut)


def generate(pipe: RATLIPPipeline, asked: Request) -> Iterator[list[Image.Image]]:
    """The images, a few at a time."""
    jobs = asked.jobs()
    for start in range(0, len(jobs), _AT_ONCE):
        prompts, seeds = zip(*jobs[start : start + _AT_ONCE], strict=True)
        yield pipe(list(prompts), generator=[_seeded(seed) for seed in seeds], truncation=asked.truncation).images


def one(pipe: RATLIPPipeline, asked: Request) -> Image.Image:
    """The first image of a request."""
    return next(generate(pipe, Request(asked.prompts[:1], 1, asked.seed, asked.truncation)))[0]


def between(pipe: RATLIPPipeline, start: Request, end: Request, mix: float) -> Image.Image:
    """The image `mix` of the way from one request's first image to the other's, in the text embedding and the noise.

    At 0 and 1 these are the two images themselves.
    """
    text, other = pipe.encode_prompt([start.prompts[0], end.prompts[0]])[0]
    seeds = [_seeded(each.seed) for each in (start, end)]
    a, b = prepare_latents(2, pipe.generator.config.noise_dim, seeds, start.truncation)
    return pipe(prompt_embeds=lerp(text, other, mix)[None], latents=slerp(a, b, mix)[None]).images[0]


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Words that can be exchanged

_KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}
_WORDS = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, sorted(_KIND_OF, key=len, reverse=True)))})(?!\w)", re.I)


@dataclass(frozen=True)
class Word:
    """A word, or phrase, of a prompt that has others of its kind."""

    start: int
    text: str

    @property
    def others(self) -> list[str]:
        here = self.text.lower()
        return [word for word in KINDS[_KIND_OF[here]] if word != here]


def words(prompt: str) -> list[Word]:
    """What can be exchanged in a prompt, from left to right."""
    return [Word(found.start(), found[0]) for found in _WORDS.finditer(prompt)]


def exchanged(prompt: str, word: Word, other: str) -> str:
    """The prompt with `other` in the place of the word, and "a" or "an" before it as that wants it."""
    before = re.sub(
        r"\b(a)n?(\s+)$",
        lambda found: found[1] + "n" * (other[0] in "aeiou") + found[2],
        prompt[: word.start],
        flags=re.I,
    )
    return before + other + prompt[word.start + len(word.text) :]


# What was made


def remembered(history: list[dict], entry: dict) -> list[dict]:
    """The history with an entry at its top. While somebody types, only the last of the images stays."""
    rest = [old for old in history if old["command"] != entry["command"]]
    if rest and rest[0]["typed"] and entry["typed"]:
        rest = rest[1:]
    return [entry, *rest][:HISTORY]
