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
from ..metrics import UNNAMED, attribute_hits, frechet_distance, words_right
from ..utils.errors import UserError
from .attributes import FIELD_VOCABULARIES, PARTS, BirdAttributes
from .captions import named_scene
from .dataset import load_prompts, make_dataset, prompt_bird
from .judge import BirdJudge, BirdJudgeFeatures
from .renderer import first_render_seed, render_pixels
from .scorer import BirdScorer

PROTOCOL = Protocol(
    bundled.NAME,
    "400 prompts of held-out colours, six images each, against as many renders of the same birds; offline",
    prompts="heldout",
    passes=6,
    size=64,
    spaces=("judge",),
)
_FIELDS = tuple(FIELD_VOCABULARIES)


def load_training_dataset(count: int | None, seed: int, image_size: int) -> datasets.Dataset:
    """`count` birds of the training split, 20,000 unless given."""
    return make_dataset("train", count or 20_000, seed=seed, image_size=image_size)


_SPLIT_NAMES = {"test": "held-out prompts", "validation": "validation prompts"}


def load_eval_data(protocol: Protocol, split: str = "test") -> EvalData:
    """The prompts of a split, `protocol.passes` times, with a render and the target words of each.

    "validation" is for choosing weights and settings, "test" for what is reported. Raises UserError for another split.
    """
    if split not in _SPLIT_NAMES:
        raise UserError(f"--split of {bundled.NAME} must be one of {', '.join(_SPLIT_NAMES)}, not {split!r}")
    entries = load_prompts(split)
    clusters = list(range(len(entries))) * protocol.passes
    # Held-out prompts stand for triples that were never seen, of which there are 64: these are what was sampled.
    triples_of_prompts = [prompt_bird(entry).colours for entry in entries]
    triples = sorted(set(triples_of_prompts))
    return EvalData(
        [entry["prompt"] for entry in entries] * protocol.passes,
        clusters,
        Renders([prompt_bird(entry) for entry in entries] * protocol.passes, protocol.size),
        clusters,
        {"data": bundled.NAME, "split": _SPLIT_NAMES[split]},
        _FIELDS,
        [_targets(entry) for entry in entries] * protocol.passes,
        [triples.index(triple) for triple in triples_of_prompts],
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


def load_scorer() -> BirdScorer:
    """What tells how well images fit prompts, in the place of an evaluation CLIP."""
    return BirdScorer.from_pretrained(bundled.scorer_dir()).float()  # stored in half precision


def load_judges(device: torch.device | str) -> list[list[BirdJudge]]:
    """Groups of judges, those of one group for the same fields: two of colours, one of the scene."""
    groups = (bundled.judge_dirs(), [bundled.scene_judge_dir()])
    return [[BirdJudge.from_pretrained(folder).to(device) for folder in group] for group in groups]


class QuickJudges:
    """What the judges say of images of validation prompts, for the quick evaluations of a training run.

    The prompts stand in random order, so that the first ones are a fair sample; `count` of them are used, at most
    all, and `clip` encodes `batch_size` together, on the device that the judges go to.
    """

    decisive = "judge_fid"
    sizes = (64, 128, 256)  # what the judges can bring to their own

    def __init__(self, count: int, clip: FrozenCLIP, batch_size: int):
        entries = load_prompts("validation")[:count]
        texts = [entry["prompt"] for entry in entries]
        parts = [clip.encode(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        self.prompt_embeds, self.device = torch.cat(parts), clip.image_encoder.device
        self.targets = torch.tensor([_targets(entry) for entry in entries], device=self.device)
        self.judges, self.features = load_judges(self.device), load_features().to(self.device)
        renders = Renders([prompt_bird(entry) for entry in entries], PROTOCOL.size)
        self.real = self._vectors(renders.load(0, len(renders)))

    def scores(self, images: torch.Tensor) -> dict[str, float]:
        """Of one image [N, 3, S, S] in [-1, 1] per prompt: `attribute_accuracy`, the share of right colours;
        `all_words_right`, the share of images with every named word right; `judge_fid`, the Fréchet distance from
        renders of the same birds."""
        readings = [self._reading(group, images) for group in self.judges]
        return {
            "attribute_accuracy": attribute_hits(*readings[0]).mean().item(),
            "all_words_right": words_right(readings).mean().item(),
            "judge_fid": frechet_distance(self.real, self._vectors(images)),
        }

    def _reading(self, judges: list[BirdJudge], images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What a group of judges predicts, [N, judges, fields], and what the prompts say, [N, fields]."""
        columns = [_FIELDS.index(name) for name in judges[0].config.reads]
        predictions = torch.stack([judge.predict(images.to(self.device)) for judge in judges], dim=1)
        return predictions, self.targets[:, columns]

    def _vectors(self, images: torch.Tensor) -> torch.Tensor:
        # Not their statistics: of fewer vectors than dimensions the distance takes a fiftieth of the time.
        return torch.cat([self.features(part) for part in images.split(256)])
