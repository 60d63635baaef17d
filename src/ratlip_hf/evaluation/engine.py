"""One evaluation from beginning to end: networks are loaded, images go through accumulators, accumulators become
scores, and scores a record. Several processes share the images; all of them have the result.

A cluster is the images of one prompt (or of one real image's captions): no independent evidence, so intervals
resample whole clusters."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from ..bundled import find_world
from ..clip import load_clip
from ..metrics import Origins
from ..utils.errors import UserError
from ..utils.tensors import check_weights, weights_sha256
from . import scoring
from .features import DINOv2Features, FeatureExtractor
from .inception import InceptionFeatures
from .inputs import Candidate, EvalData, Images, prompts_sha256
from .protocols import CANDIDATES, KEPT, Protocol
from .records import ScoreRecord
from .scoring import (
    Accumulator,
    Batch,
    CLIPAccumulator,
    Embedder,
    FeatureAccumulator,
    Judge,
    PixelAccumulator,
    PredictionAccumulator,
)

_FEWEST = 4  # precision and recall need a third neighbour


@dataclass(frozen=True)
class Sources:
    """Where the networks that score come from: torch-fidelity's file of Inception's weights, repositories or folders
    of DINOv2 and of a CLIP that the generator was not trained with; small worlds have a scorer in its place."""

    inception: str | None = None
    dinov2: str = "facebook/dinov2-large"
    eval_clip: str | None = None


@dataclass
class ScoringNetworks:
    """The networks that score, on their device: a feature extractor for each space of the protocol, the evaluation
    CLIP or what embeds images and texts in its place, and groups of judges for the same attributes."""

    spaces: dict[str, FeatureExtractor]
    eval_clip: Embedder | None
    judges: list[list[Judge]] = field(default_factory=list)


def load_networks(protocol: Protocol, sources: Sources, device: torch.device) -> ScoringNetworks:
    """Raises UserError or ValueError for a network that is needed and not given, or cannot be loaded."""
    world = find_world(protocol.name)
    clip = None
    if sources.eval_clip:
        clip = load_clip(sources.eval_clip, dtype=torch.float32)  # however it is stored
    elif world:
        clip = world.load_scorer()
    if clip:
        clip.to(device)
    spaces = {space: _load_space(space, protocol, sources).to(device) for space in protocol.spaces}
    for space, extractor in spaces.items():
        check_weights(extractor.network, f"the network of {space}")
    return ScoringNetworks(spaces, clip, world.load_judges(device) if world else [])


def _load_space(space: str, protocol: Protocol, sources: Sources) -> FeatureExtractor:
    if space == "judge" and (world := find_world(protocol.name)):
        return world.load_features()
    if space == "dinov2":
        return DINOv2Features.from_pretrained(sources.dinov2)
    if not sources.inception:
        raise UserError("this protocol needs Inception's weights: give torch-fidelity's file with --inception")
    return InceptionFeatures.from_file(sources.inception, released=space == "inception-released")


class Evaluation:
    """Scores candidates by one protocol; the real images are processed once, however many candidates follow.

    Under `accelerate launch` every process takes its share of the images, and all have the result. `batch_size` images
    are generated and processed together, which changes no score beyond rounding. `progress` is called with a line now
    and then, on the main process.
    """

    def __init__(
        self,
        protocol: Protocol,
        eval_data: EvalData,
        networks: ScoringNetworks,
        batch_size: int = 50,
        progress: Callable[[str], None] = lambda line: None,
    ):
        self.protocol, self.eval_data, self.networks = protocol, eval_data, networks
        self.batch_size, self.progress, self.state = batch_size, progress, PartialState()
        self.real_origins = eval_data.origins(eval_data.real_clusters)
        self.real = self._accumulators()
        self._accumulate(eval_data.real, self.real_origins, None, list(self.real.values()), "real images")
        self.real_sha256 = self._digest(eval_data.real)

    def score(self, candidate: Candidate) -> ScoreRecord:
        """The record of a candidate. Raises UserError for too few images, or where nothing could be scored."""
        if min(len(candidate), len(self.eval_data.real)) < _FEWEST:
            raise UserError(f"scores of sets of images need at least {_FEWEST} of each kind")
        clusters, targets = self._clusters_and_targets(candidate)
        origins = self.eval_data.origins(clusters)
        fake = self._accumulators()
        if candidate.own_clip:
            prepared = partial(candidate.own_clip.embed_images, clip_input=self.protocol.own_clip_input)
            fake["own"] = CLIPAccumulator(candidate.own_clip, KEPT, prepared)
        judged = [PredictionAccumulator(judges) for judges in self.networks.judges] if targets is not None else []
        if not self.networks.spaces and not self.networks.eval_clip and not judged and "own" not in fake:
            raise UserError("nothing to score with: give a CLIP with --eval_clip")
        self._accumulate(candidate, origins, candidate.prompts, [*fake.values(), *judged], "images")
        scores, prompts = self._attribute_scores(judged, targets, origins)
        scores |= self._feature_scores(fake, origins, candidate.patch) | self._clip_scores(fake, candidate, origins)
        return ScoreRecord(self._describe(candidate), candidate.describe(), scores, per_prompt=prompts)

    def _accumulators(self) -> dict[str, Any]:
        """Those of real and generated images alike: of features by space, of pixels, of the evaluation CLIP."""
        found: dict[str, Any] = {"pixels": PixelAccumulator(KEPT)}
        found |= {space: FeatureAccumulator(extractor, KEPT) for space, extractor in self.networks.spaces.items()}
        if self.networks.eval_clip:
            found["eval_clip"] = CLIPAccumulator(self.networks.eval_clip, KEPT)
        return found

    @torch.no_grad()
    def _accumulate(
        self,
        source: Images | Candidate,
        origins: Origins,
        prompts: Sequence[str] | None,
        accumulators: Sequence[Accumulator],
        what: str,
    ) -> None:
        """Put this process's share of images through all accumulators, then merge those of all processes."""
        mine = share(len(source), self.state)
        most = source.most_at_once() if isinstance(source, Candidate) else None
        size = min(self.batch_size, most or self.batch_size)
        for start in range(mine.start, mine.stop, size):
            stop = min(start + size, mine.stop)
            images = source.load(start, stop)
            if self.protocol.rounded:
                images = (images * 127.5 + 127.5).round() / 127.5 - 1
            batch = Batch(images, start, origins.groups[start:stop].tolist(), prompts and prompts[start:stop])
            for accumulator in accumulators:
                accumulator.update(batch)
            passed_500 = (stop - mine.start) // 500 > (start - mine.start) // 500
            if (passed_500 or stop == mine.stop) and self.state.is_main_process:
                self.progress(f"{what}: {stop - mine.start} of {len(mine)}")
        for accumulator in accumulators:
            accumulator.merge(gathered(accumulator.state(), self.state))

    def _clusters_and_targets(self, candidate: Candidate) -> tuple[list[int], torch.Tensor | None]:
        """For each image its cluster and its target labels, both by its prompt, wherever the image is from.

        Without prompts every image is a cluster of its own; without target labels for every prompt there are none."""
        data = self.eval_data
        if candidate.prompts is None:
            first = 1 + max(data.real_clusters)
            return list(range(first, first + len(candidate))), None
        known = dict(zip(data.prompts, data.clusters, strict=True))
        if candidate.prompts == data.prompts:
            clusters = list(data.clusters)
        else:  # prompts that the protocol does not have are clusters of their own
            unknown = len(data.clusters)
            others = {text: unknown + number for number, text in enumerate(dict.fromkeys(candidate.prompts))}
            clusters = [known.get(text, others[text]) for text in candidate.prompts]
        if data.targets is None or not known.keys() >= set(candidate.prompts):
            return clusters, None
        targets = dict(zip(data.prompts, data.targets, strict=True))
        return clusters, torch.tensor([targets[text] for text in candidate.prompts])

    def _attribute_scores(
        self, judged: list[PredictionAccumulator], targets: torch.Tensor | None, origins: Origins
    ) -> tuple[scoring.Scores, dict]:
        if not judged or targets is None:
            return {}, {}
        readings = []
        for accumulator in judged:
            fields = list(accumulator.judges[0].config.reads)
            columns = [self.eval_data.fields.index(name) for name in fields]
            readings.append((accumulator.predictions, targets[:, columns], fields))
        return scoring.attribute_scores(readings, origins)

    def _feature_scores(self, fake: dict, origins: Origins, patch: int | None) -> scoring.Scores:
        scores: scoring.Scores = {}
        kept = _first(self.real_origins, KEPT), _first(origins, KEPT)
        for space in self.networks.spaces:
            suffix = "" if space.startswith("inception") else f"_{space}"
            scores |= scoring.set_scores(self.real[space], fake[space], kept, suffix)
            if _repeated(kept[0].prompts) and _repeated(kept[1].prompts):
                scores |= scoring.diversity_scores(fake[space], self.real[space], kept)
        if self.real["pixels"].side == fake["pixels"].side:
            scores |= scoring.pixel_scores(self.real["pixels"], fake["pixels"], kept[1], patch)
        return scores

    def _clip_scores(self, fake: dict, candidate: Candidate, origins: Origins) -> scoring.Scores:
        scores: scoring.Scores = {}
        seed, own = self.protocol.seed, candidate.own_clip
        own_sha256 = own.describe()["weights_sha256"] if own else None
        if "eval_clip" in fake:
            kept = _first(self.real_origins, KEPT), _first(origins, KEPT)
            scores |= scoring.clip_distance(self.real["eval_clip"], fake["eval_clip"], kept)
            # Where the generator's own CLIP is given as the evaluation CLIP, its score is the training signal.
            if candidate.prompts is not None and own_sha256 != self._eval_clip_sha256():
                scores |= scoring.prompt_scores(fake["eval_clip"], origins, seed)
        if own_sha256:
            # By its hash, so that scores of different CLIPs never stand under a common name.
            scores |= scoring.prompt_scores(fake["own"], origins, seed, f"_own_{own_sha256[:8]}")
        return scores

    def _eval_clip_sha256(self) -> str | None:
        clip = self.networks.eval_clip
        return clip.describe()["weights_sha256"] if clip else None

    def _digest(self, images: Images) -> str:
        mine = [images.digest(index) for index in share(len(images), self.state)]
        return hashlib.sha256(b"".join(digest for part in gathered(mine, self.state) for digest in part)).hexdigest()

    def _describe(self, candidate: Candidate) -> dict:
        """All that must agree before two scores compare; networks by their weights, not by where they lay."""
        spaces = self.networks.spaces.items()
        return {
            **self.protocol.describe(),
            **self.eval_data.facts,
            "num_real": len(self.eval_data.real),
            "num_fake": len(candidate),
            "prompts_sha256": prompts_sha256(candidate.prompts) if candidate.prompts is not None else None,
            "real_sha256": self.real_sha256,
            "kept": KEPT,
            "candidates": CANDIDATES,
            "networks": {space: extractor.describe() | {"features": space} for space, extractor in spaces},
            "judges_sha256": [weights_sha256(judge) for judges in self.networks.judges for judge in judges],
            "eval_clip_sha256": self._eval_clip_sha256(),
        }


def _first(origins: Origins, count: int) -> Origins:
    return Origins(*(numbers[:count] for numbers in origins))


def _repeated(prompts: torch.Tensor) -> bool:
    """Whether every prompt has several images."""
    return bool((prompts.unique(return_counts=True)[1] > 1).all())


Part = TypeVar("Part")


def share(count: int, state: PartialState) -> range:
    """The block of `count` images that belongs to this process; blocks follow each other in the order of ranks."""
    rank, world = state.process_index, state.num_processes
    return range(rank * count // world, (rank + 1) * count // world)


def gathered(part: Part, state: PartialState) -> list[Part]:
    """The parts of all processes in the order of ranks, on every process. Parts are pickled, tensors on the CPU."""
    return [part] if state.num_processes == 1 else gather_object([part])
