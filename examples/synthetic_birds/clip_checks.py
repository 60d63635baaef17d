"""Whether a CLIP binds words to parts: renders of validation triples, which no training shows, with their captions and
rival captions. `GATES` are what a small CLIP must reach."""

import random
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.nn import functional

from ratlip_hf.evaluation.inputs import as_images
from ratlip_hf.synthetic_birds.attributes import COLOURS, PARTS, BirdAttributes, swap_two_parts, with_another_word
from ratlip_hf.synthetic_birds.captions import full_caption, named_scene
from ratlip_hf.synthetic_birds.renderer import render_pixels, sample_birds, wording_rng

# What the tests by rival captions must reach: colours exchanged, and another scene.
GATES = {"swap_accuracy": 0.98, "scene_accuracy": 0.95}

_PART_PROMPTS = {"crown": "a bird with a {} crown", "belly": "a bird with a {} belly", "wing": "a bird with {} wings"}
_BATCH = 256
_CHOICE_COUNT = 300


def below_gates(scores: dict[str, float]) -> list[str]:
    """The scores that stay below their gates, as text."""
    return [f"{name} {scores[name]} below {gate}" for name, gate in GATES.items() if scores[name] < gate]


def _batches(captions: list[str]) -> list[list[str]]:
    return [captions[start : start + _BATCH] for start in range(0, len(captions), _BATCH)]


Embed = Callable[..., torch.Tensor]


class RivalChecks:
    """Renders of validation triples with their captions, kept so that a model can be checked repeatedly.

    A model is two functions, `embed_texts(captions)` and `embed_images(images [B, 3, H, W] in [-1, 1])`, which give
    embeddings of any length.
    """

    def __init__(
        self, embed_texts: Embed, embed_images: Embed, count: int = 1200, image_size: int = 64, seed: int = 0
    ):
        birds, seeds = sample_birds("clip_check", seed, count, "validation")
        # A bird of one colour has no exchanged caption to be confused with.
        kept = [index for index, bird in enumerate(birds) if len(set(bird.colours)) > 1]
        birds, seeds = [birds[index] for index in kept], [seeds[index] for index in kept]
        self._embed_texts, self._embed_images = embed_texts, embed_images
        self.birds: list[BirdAttributes] = birds
        self.images = as_images(render_pixels(birds, seeds, image_size))
        self.labels = torch.tensor([bird.colour_labels for bird in birds])
        self.captions, self.exchanged, self.elsewhere, self.wordings = [], [], [], []
        for bird, render_seed in zip(birds, seeds, strict=True):
            rng = wording_rng(render_seed)
            exchanged, wording = swap_two_parts(bird, rng), rng.getrandbits(32)
            self.wordings.append(wording)
            self.captions.append(full_caption(bird, random.Random(wording)))
            self.exchanged.append(full_caption(exchanged, random.Random(wording)))
            self.elsewhere.append(self._scene_changed(bird, wording, rng))

    def _scene_changed(self, bird: BirdAttributes, wording: int, rng: random.Random) -> str | None:
        """The last caption with another direction, background or perch; None where it names none of them."""
        named = named_scene(self.captions[-1], bird)
        if not named:
            return None
        return full_caption(with_another_word(bird, rng.choice(named), rng), random.Random(wording))

    def texts(self, captions: list[str]) -> torch.Tensor:
        """Unit-length embeddings [N, D] of captions."""
        return torch.cat([functional.normalize(self._embed_texts(part), dim=1) for part in _batches(captions)])

    def all_images(self, count: int | None = None) -> torch.Tensor:
        """Unit-length embeddings [N, D] of the first `count` renders."""
        parts = self.images[:count].split(_BATCH)
        return torch.cat([functional.normalize(self._embed_images(part), dim=1) for part in parts])

    @torch.no_grad()
    def measure_choice(self) -> dict[str, float]:
        """Return per part how often a render prefers its full caption to the seven with another colour for that part.

        Much slower than `measure`, hence on the first 300 renders only; names are "crown_in_caption" and so on.
        """
        images = self.all_images(_CHOICE_COUNT)
        scores = {}
        for index, part in enumerate(PARTS):
            choices = [
                full_caption(replace(bird, **{part: colour}), random.Random(wording))
                for bird, wording in zip(self.birds[: len(images)], self.wordings, strict=False)
                for colour in COLOURS
            ]
            texts = self.texts(choices).unflatten(0, (len(images), -1))
            guesses = torch.einsum("nd,ncd->nc", images, texts).argmax(-1)
            hits = guesses == self.labels[: len(images), index]
            scores[f"{part}_in_caption"] = round(hits.float().mean().item(), 4)
        return scores

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Return the share of renders that prefer their caption over the exchanged one ("swap_accuracy") and over one
        of another scene ("scene_accuracy", of those that name a scene; 0 if none does), the zero-shot colour accuracy
        per part ("crown", "belly", "wing"), and the number of renders ("count")."""
        images = self.all_images()
        truth = (images * self.texts(self.captions)).sum(-1)
        rival = (images * self.texts(self.exchanged)).sum(-1)
        named = [index for index, text in enumerate(self.elsewhere) if text is not None]
        other = self.texts([self.elsewhere[index] for index in named] or [""])
        scene = truth[named] > (images[named] * other[: len(named)]).sum(-1)
        scores = {"swap_accuracy": (truth > rival).float().mean().item()}
        scores["scene_accuracy"] = scene.float().mean().item() if named else 0.0
        for index, part in enumerate(PARTS):
            prompts = self.texts([_PART_PROMPTS[part].format(colour) for colour in COLOURS])
            guesses = (images @ prompts.T).argmax(-1)
            scores[part] = (guesses == self.labels[:, index]).float().mean().item()
        return {name: round(value, 4) for name, value in scores.items()} | {"count": len(self.captions)}
