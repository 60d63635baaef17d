"""Which images a process looks at, and how what the processes saw comes together, in the order of the images.
An evaluation from beginning to end: images pass by the observers, scores are made, a record is returned."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from .. import bundled
from ..clip import FrozenCLIP, load_clip
from ..features import BirdJudgeFeatures, DINOv2Features, FeatureExtractor, InceptionFeatures
from ..synthetic_birds.judge import BirdJudge
from ..utils.errors import UserError
from ..utils.networks import weights_sha256
from . import scoring
from .inputs import Images, Material, Subject, prompts_sha256
from .protocols import CANDIDATES, KEPT, Protocol
from .records import Record
from .scoring import Batch, CLIPView, FeatureSet, Readings

Part = TypeVar("Part")


def share(count: int, state: PartialState) -> range:
    """The block of `count` images that belongs to this process; blocks follow each other in the order of ranks."""
    rank, world = state.process_index, state.num_processes
    return range(rank * count // world, (rank + 1) * count // world)


def gathered(part: Part, state: PartialState) -> list[Part]:
    """The parts of all processes in the order of ranks, on every process. Parts are pickled, tensors on the CPU."""
    return [part] if state.num_processes == 1 else gather_object([part])


_FEWEST = 4  # a third neighbour, for precision and recall


@dataclass(frozen=True)
class Sources:
    """Where the networks that score come from: files, folders or repositories.

    Attributes:
        inception: torch-fidelity's weight file.
        dinov2: repository or folder.
        scorer: a CLIP that the generator was not trained with; for the synthetic birds a bundled one by default.
    """

    inception: str | None = None
    dinov2: str = "facebook/dinov2-large"
    scorer: str | None = None


@dataclass
class Networks:
    """The networks that score, on their device."""

    spaces: dict[str, FeatureExtractor]
    scorer: FrozenCLIP | None
    colour_judges: list[BirdJudge] = field(default_factory=list)
    scene_judges: list[BirdJudge] = field(default_factory=list)


def load_networks(protocol: Protocol, sources: Sources, device: torch.device) -> Networks:
    """Raises UserError or ValueError for a network that is needed and not given, or cannot be loaded."""
    heldout = protocol.prompts == "heldout"
    scorer = sources.scorer or (str(bundled.scorer_dir()) if heldout else None)
    loaded = load_clip(scorer, dtype=torch.float32) if scorer else None  # however it is stored
    if loaded:
        loaded.text_encoder.to(device), loaded.image_encoder.to(device)
    networks = Networks({space: _load_space(space, sources).to(device) for space in protocol.spaces}, loaded)
    if heldout:
        networks.colour_judges = [BirdJudge.from_pretrained(folder).to(device) for folder in bundled.judge_dirs()]
        networks.scene_judges = [BirdJudge.from_pretrained(bundled.scene_judge_dir()).to(device)]
    return networks


def _load_space(space: str, sources: Sources) -> FeatureExtractor:
    if space == "judge":
        return BirdJudgeFeatures.from_pretrained()
    if space == "dinov2":
        return DINOv2Features.from_pretrained(sources.dinov2)
    if not sources.inception:
        raise UserError("this protocol needs Inception's weights: give torch-fidelity's file with --inception")
    return InceptionFeatures.from_file(sources.inception, released=space == "inception-released")


class Evaluation:
    """Scores subjects by one protocol; the real images are looked at once, however many subjects follow.

    Under `accelerate launch` every process takes its share of the images, and all have the result.

    Args:
        protocol: how.
        material: prompts and real images.
        networks: that score.
        batch_size: images drawn and looked at together; changes no score beyond rounding.
        progress: called with a line now and then, on the main process.
    """

    def __init__(
        self,
        protocol: Protocol,
        material: Material,
        networks: Networks,
        batch_size: int = 50,
        progress=lambda line: None,
    ):
        self.protocol, self.material, self.networks = protocol, material, networks
        self.batch_size, self.state = batch_size, PartialState()
        self.progress = progress if self.state.is_main_process else lambda line: None
        self.real = self._watchers()
        if self.real:
            self._look(material.real, material.real_clusters, None, self.real, "real images")
        self.real_sha256 = self._digest(material.real)

    def score(self, subject: Subject) -> Record:
        """The record of a subject.

        Raises:
            UserError: for too few images, or where nothing could be scored.
        """
        if min(len(subject), len(self.material.real)) < _FEWEST:
            raise UserError(f"scores of sets of images need at least {_FEWEST} of each kind")
        clusters, wanted = self._places(subject)
        watchers = self._watchers() | self._watchers_of_prompts(subject, wanted)
        if not watchers:
            raise UserError("nothing to score with: give a CLIP with --scorer")
        self._look(subject, clusters, subject.prompts, watchers, "images")
        found = self._scores(watchers, subject, clusters, wanted)
        return Record(self._describe(subject), subject.describe(), found)

    def _watchers(self) -> dict:
        watchers = {space: FeatureSet(extractor, KEPT) for space, extractor in self.networks.spaces.items()}
        if self.networks.scorer:
            watchers["scorer"] = CLIPView(self.networks.scorer, KEPT)
        return watchers

    def _watchers_of_prompts(self, subject: Subject, wanted: torch.Tensor | None) -> dict:
        watchers = {}
        if subject.own_clip:
            watchers["own"] = CLIPView(subject.own_clip, KEPT, self.protocol.own_clip_input)
        if wanted is not None:
            for name, judges in (("colours", self.networks.colour_judges), ("scene", self.networks.scene_judges)):
                watchers |= {name: Readings(judges)} if judges else {}
        return watchers

    def _is_scorer(self, clip: FrozenCLIP | None) -> bool:
        """Whether a generator's own CLIP is given as the scorer: what it says is then the training signal."""
        return (
            clip is not None and clip.describe()["weights_sha256"] == self.networks.scorer.describe()["weights_sha256"]
        )

    @torch.no_grad()
    def _look(self, source, clusters: Sequence[int], prompts: Sequence[str] | None, watchers: dict, what: str) -> None:
        """Show this process's share of images to all watchers, then bring together what all processes saw."""
        mine = share(len(source), self.state)
        for start in range(mine.start, mine.stop, self.batch_size):
            stop = min(start + self.batch_size, mine.stop)
            images = source.show(start, stop)
            if self.protocol.rounded:
                images = (images * 127.5 + 127.5).round() / 127.5 - 1
            batch = Batch(images, start, clusters[start:stop], prompts and prompts[start:stop])
            for watcher in watchers.values():
                watcher.observe(batch)
            if (stop - mine.start) // 500 > (start - mine.start) // 500 or stop == mine.stop:
                self.progress(f"{what}: {stop - mine.start} of {len(mine)}")
        for watcher in watchers.values():
            watcher.merge(gathered(watcher.state(), self.state))

    def _digest(self, images: Images) -> str:
        mine = [images.digest(index) for index in share(len(images), self.state)]
        everything = [digest for part in gathered(mine, self.state) for digest in part]
        return hashlib.sha256(b"".join(everything)).hexdigest()

    def _places(self, subject: Subject) -> tuple[list[int], torch.Tensor | None]:
        """For each image its cluster and the words it should show; by its prompt, wherever the image is from."""
        known = dict(zip(self.material.prompts, self.material.clusters, strict=True))
        if subject.prompts is None:
            return list(range(len(subject))), None
        if subject.prompts == self.material.prompts:
            clusters = list(self.material.clusters)
        else:  # sentences that the protocol does not have are clusters of their own
            unknown = len(self.material.clusters)
            others = {text: unknown + place for place, text in enumerate(dict.fromkeys(subject.prompts))}
            clusters = [known.get(text, others[text]) for text in subject.prompts]
        if self.material.wanted is None or not known.keys() >= set(subject.prompts):
            return clusters, None
        words = dict(zip(self.material.prompts, self.material.wanted, strict=True))
        return clusters, torch.tensor([words[text] for text in subject.prompts])

    def _scores(
        self, seen: dict, subject: Subject, clusters: list[int], wanted: torch.Tensor | None
    ) -> scoring.Scores:
        found, seed = {}, self.protocol.seed
        if wanted is not None:
            for name, judges in (("colours", self.networks.colour_judges), ("scene", self.networks.scene_judges)):
                if name not in seen:
                    continue
                words = torch.cat(seen[name].words)
                fields = list(judges[0].config.reads)
                count = scoring.colour_scores if name == "colours" else scoring.reading_scores
                found |= count(words, wanted[:, scoring.columns(fields)], fields, clusters)
        for space in self.networks.spaces:
            suffix = "" if space.startswith("inception") else f"_{space}"
            found |= scoring.set_scores(self.real[space], seen[space], suffix)
            if self.protocol.prompts == "heldout" and _repeated(clusters):
                found |= scoring.diversity_scores(seen[space], clusters, self.real[space], self.material.real_clusters)
        if "scorer" in seen:
            found |= scoring.clip_distance(self.real["scorer"], seen["scorer"])
            if subject.prompts is not None and not self._is_scorer(subject.own_clip):
                found |= scoring.prompt_scores(seen["scorer"], clusters, seed)
        if "own" in seen:
            # By its hash, so that scores of different CLIPs never stand under a common name.
            own = subject.own_clip.describe()["weights_sha256"][:8]
            found |= scoring.prompt_scores(seen["own"], clusters, seed, f"_own_{own}")
        return found

    def _describe(self, subject: Subject) -> dict:
        """All that must agree before two figures compare; networks by their weights, not by where they lay."""
        networks = {
            space: extractor.describe() | {"features": space} for space, extractor in self.networks.spaces.items()
        }
        scorer = self.networks.scorer
        judges = [*self.networks.colour_judges, *self.networks.scene_judges]
        return {
            **self.protocol.describe(),
            **self.material.facts,
            "num_real": len(self.material.real),
            "num_fake": len(subject),
            "prompts_sha256": prompts_sha256(subject.prompts) if subject.prompts is not None else None,
            "real_sha256": self.real_sha256,
            "kept": KEPT,
            "candidates": CANDIDATES,
            "networks": networks,
            "judges_sha256": [weights_sha256(judge) for judge in judges],
            "scorer_sha256": scorer.describe()["weights_sha256"] if scorer else None,
        }


def _repeated(clusters: Sequence[int]) -> bool:
    counts = torch.tensor(list(clusters)).unique(return_counts=True)[1]
    return bool((counts > 1).all())
