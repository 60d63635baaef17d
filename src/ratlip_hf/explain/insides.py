"""What the generator does on the way: what the steps of its recurrence take from the sentence, and the gates of
shuffle attention; what single words are worth; and which training images lie nearest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import CLIPVisionModelWithProjection

from ..models import RATLIPGenerator
from ..models.blocks import ShuffleAttention
from ..models.recurrence import AcrossLayersStates
from ..utils.tensors import evaluating
from .saliency import recorded


def words_left_out(prompt: str) -> list[tuple[str, str]]:
    """Each word of a prompt with the prompt without it; for a prompt of one word, what is left is empty."""
    words = prompt.split()
    return [(word, " ".join(words[:place] + words[place + 1 :])) for place, word in enumerate(words)]


@torch.no_grad()
def word_importance(
    score_of: Callable[[Sequence[str]], Callable], images: torch.Tensor, prompt: str
) -> list[tuple[str, float]]:
    """How far the score of images [B, 3, S, S] falls, on the mean, when a word is left out of the prompt.

    Args:
        score_of: from K captions to a score (images -> [B, K]), such as `partial(similarity, embedder)`.
        images: what the prompt is about.
        prompt: the words.

    Returns:
        A pair for each word, in their order; a negative number for a word that the image is better without.
    """
    left = words_left_out(prompt)
    scores = score_of([prompt, *(text for _, text in left)])(images).mean(dim=0)
    return [(word, float(scores[0] - rest)) for (word, _), rest in zip(left, scores[1:], strict=True)]


@dataclass(frozen=True)
class StateTrace:
    """The recurrence of one batch, step by step (affine layers of the bridge in order): the gates `input`, `forget`
    and `output` in 0..1, `written` (input gate times candidate), `cell` and `hidden`, each [B, T, h]."""

    input: torch.Tensor
    forget: torch.Tensor
    output: torch.Tensor
    written: torch.Tensor
    cell: torch.Tensor
    hidden: torch.Tensor


@torch.no_grad()
def trace_states(generator: RATLIPGenerator, noise: torch.Tensor, prompt_embeds: torch.Tensor) -> StateTrace:
    """Gates and states of noise [B, Z] and raw text embeddings [B, D] through the recurrence across layers.

    Raises ValueError for a generator with another one: there every layer has a cell of its own, or none.
    """
    states, text = _recurrence(generator), generator.text_conditioning(prompt_embeds)
    from_text = states.input_gates(text)
    hidden, cell, steps = states.initial_hidden(noise), states.initial_cell(noise), []
    for after in states(noise, text):
        i, f, u, o = (from_text + states.hidden_gates(hidden)).chunk(4, dim=1)
        written = i.sigmoid() * u.tanh()
        cell, hidden = f.sigmoid() * cell + written, after
        steps.append((i.sigmoid(), f.sigmoid(), o.sigmoid(), written, cell, hidden))
    return StateTrace(*(torch.stack(column, dim=1) for column in zip(*steps, strict=True)))


@torch.no_grad()
def word_traces(
    generator: RATLIPGenerator, noise: torch.Tensor, prompt_embeds: torch.Tensor, without: torch.Tensor
) -> torch.Tensor:
    """How far each step's state moves when a word is left out, as a share of the state's length: [W, T].

    Args:
        generator: with the recurrence across layers.
        noise: [1, Z].
        prompt_embeds: the whole prompt, [1, D].
        without: the prompt without each of W words, [W, D].
    """
    states = _recurrence(generator)
    texts = generator.text_conditioning(torch.cat([prompt_embeds, without]))
    hidden = torch.stack(states(noise.expand(len(texts), -1), texts), dim=1)
    return (hidden[1:] - hidden[:1]).norm(dim=2) / hidden[:1].norm(dim=2).clamp(min=1e-12)


def _recurrence(generator: RATLIPGenerator) -> AcrossLayersStates:
    if not isinstance(generator.states, AcrossLayersStates):
        raise ValueError(
            f"this generator (fusion={generator.config.fusion!r}, recurrence={generator.config.recurrence!r}) has no "
            "state that passes from layer to layer; only recurrence='across_layers' does"
        )
    return generator.states


@dataclass(frozen=True)
class AttentionGates:
    """Shuffle attention at one place of the generator: its name, the gates of channels [B, C/2] and of places
    [B, C/2, h, w], all in 0..1."""

    name: str
    channels: torch.Tensor
    places: torch.Tensor


@torch.no_grad()
def attention_gates(
    generator: RATLIPGenerator,
    image_encoder: CLIPVisionModelWithProjection,
    noise: torch.Tensor,
    prompt_embeds: torch.Tensor,
) -> list[AttentionGates]:
    """The gates of every shuffle attention while images are made of noise [B, Z] and raw text embeddings [B, D], in
    the order of the blocks; an empty list for a generator without any."""
    found = [(name, part) for name, part in generator.named_modules() if isinstance(part, ShuffleAttention)]
    with recorded([part for _, part in found], "input") as seen, torch.no_grad(), evaluating(generator):
        generator(noise, prompt_embeds, image_encoder)
    gates = []
    for (name, part), x in zip(found, seen, strict=True):
        channels, places = part.gates(*part.halves(x))
        count = len(x)
        gates.append(AttentionGates(name, channels.reshape(count, -1), places.reshape(count, -1, *x.shape[2:])))
    return gates


def nearest(features: torch.Tensor, bank: torch.Tensor, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest of M training images to each of N samples, by the angle of their features.

    A model that has learnt its training images by heart is nearer to them than other real images are: compare the
    distances of samples with those of held-out images.

    Args:
        features: [N, d] of samples.
        bank: [M, d] of training images.
        count: how many, at most M.

    Returns:
        Cosine distances (1 - cosine) [N, count], smallest first, and places in the bank [N, count].
    """
    unit = torch.nn.functional.normalize
    closest = (unit(features.float(), dim=1) @ unit(bank.float(), dim=1).T).topk(min(count, len(bank)), dim=1)
    return 1 - closest.values, closest.indices
