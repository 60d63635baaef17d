"""Plugs the synthetic birds into training and evaluation: `bundled.find_world("synthetic-birds")` is this module.
A world of another name needs an entry in `bundled.WORLDS` and a module with the public names of this one."""

import hashlib
from dataclasses import dataclass, replace

import datasets
import torch

from .. import bundled
from ..clip import FrozenCLIP
from ..evaluation.inputs import Candidate, EvalData, as_images
from ..evaluation.protocols import Protocol
from ..metrics import UNNAMED, attribute_hits
from .attributes import FIELD_VOCABULARIES, PARTS, BirdAttributes
from .captions import named_scene
from .dataset import load_heldout_prompts, make_dataset, prompt_bird
from .judge import BirdJudge, BirdJudgeFeatures
from .renderer import first_render_seed, render_pixels

PROTOCOL = Protocol(
    bundled.NAME,
    "the 400 held-out prompts, six images each, against as many renders of the same birds; offline",
    prompts="heldout",
    passes=6,
    size=64,
    spaces=("judge",),
)
_FIELDS = tuple(FIELD_VOCABULARIES)
eval_clip_dir = bundled.eval_clip_dir


def load_training_dataset(count: int | None, seed: int, image_size: int) -> datasets.Dataset:
    """`count` birds of the training split, 20,000 unless given."""
    return make_dataset("train", count or 20_000, seed=seed, image_size=image_size)


def load_eval_data(protocol: Protocol) -> EvalData:
    """The held-out prompts, `protocol.passes` times, with a render and the target words of each."""
    entries = load_heldout_prompts()
    clusters = list(range(len(entries))) * protocol.passes
    return EvalData(
        [entry["prompt"] for entry in entries] * protocol.passes,
        clusters,
        Renders([prompt_bird(entry) for entry in entries] * protocol.passes, protocol.size),
        clusters,
        {"data": bundled.NAME, "split": "held-out prompts"},
        _FIELDS,
        [_targets(entry) for entry in entries] * protocol.passes,
    )


def _targets(entry: dict) -> list[int]:
    """The index of the word of each field that a prompt names, `UNNAMED` for the others."""
    named = (*PARTS, *named_scene(entry["prompt"], prompt_bird(entry)))
    return [FIELD_VOCABULARIES[name].index(entry[name]) if name in named else UNNAMED for name in _FIELDS]


@dataclass(frozen=True)
class Renders:
    """Renders of birds, one each, as the real images of an evaluation; `seed` chooses among their poses."""

    birds: list[BirdAttributes]
    size: int
    seed: int = 0

    def __len__(self) -> int:
        return len(self.birds)

    def first(self, count: int) -> "Renders":
        return replace(self, birds=self.birds[:count])

    def load(self, start: int, stop: int) -> torch.Tensor:
        return as_images(self._pixels(start, stop))

    def digest(self, index: int) -> bytes:
        return hashlib.sha256(self._pixels(index, index + 1).numpy().tobytes()).digest()

    def _pixels(self, start: int, stop: int) -> torch.Tensor:
        first = first_render_seed("prompts", self.seed)
        return render_pixels(self.birds[start:stop], list(range(first + start, first + stop)), self.size)


def fresh_renders(eval_data: EvalData) -> Candidate:
    """Other renders of the birds that the prompts speak of: what a perfect model would generate."""
    return _FreshRenders(eval_data.prompts, replace(eval_data.real, seed=1))


class _FreshRenders(Candidate):
    def __init__(self, prompts: list[str], renders: Renders):
        self.prompts, self.load = prompts, renders.load

    def describe(self) -> dict:
        return {"model": "fresh renders of the same birds"}


def load_features() -> BirdJudgeFeatures:
    """The feature extractor of the space "judge"."""
    return BirdJudgeFeatures.from_pretrained()


def load_judges(device: torch.device | str) -> list[list[BirdJudge]]:
    """Groups of judges, those of one group for the same fields: two of colours, one of the scene."""
    groups = (bundled.judge_dirs(), [bundled.scene_judge_dir()])
    return [[BirdJudge.from_pretrained(folder).to(device) for folder in group] for group in groups]


class QuickJudges:
    """Colour accuracy on the first held-out prompts, for the quick evaluations of a training run.

    The prompts stand in the file in random order, so that the first ones are a fair sample.

    Args:
        count: how many prompts, at most.
        clip: the CLIP that encodes the prompts, on the device that the judges go to.
        batch_size: prompts encoded together.
    """

    image_size = 64  # the judges read no other

    def __init__(self, count: int, clip: FrozenCLIP, batch_size: int):
        entries = load_heldout_prompts()[:count]
        texts = [entry["prompt"] for entry in entries]
        parts = [clip.encode(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        self.prompt_embeds, self.device = torch.cat(parts), clip.image_encoder.device
        self.targets = torch.tensor([prompt_bird(entry).colour_labels for entry in entries], device=self.device)
        self.judges = load_judges(self.device)[0]

    def accuracy(self, images: torch.Tensor) -> float:
        """Share of right colours over judges, images [N, 3, 64, 64] in [-1, 1] and parts."""
        predictions = torch.stack([judge.predict(images.to(self.device)) for judge in self.judges], dim=1)
        return attribute_hits(predictions, self.targets).float().mean().item()
