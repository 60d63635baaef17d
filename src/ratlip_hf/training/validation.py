"""The quick evaluation during a run, and the best weights it finds, in the folder `best/`."""

import json
import logging
import math
from pathlib import Path

import torch
import torch.nn.functional as F

from ..bundled import find_world
from ..clip import FrozenCLIP
from ..latents import prepare_latents
from ..losses import clip_similarity
from ..metrics import kernel_distance
from ..models import RATLIPGenerator
from ..pipeline import RATLIPPipeline
from ..utils.errors import UserError
from ..utils.files import atomic_directory, atomic_write, remove_unfinished
from .config import TrainingConfig
from .samples import CaptionedImages

logger = logging.getLogger(__name__)

_NOISE_SEED = 0


class QuickEvaluation:
    """Scores a generator on images that are the same for the whole run; built once, before the first step.

    - `kid`: kernel distance between the frozen CLIP's embeddings of the first real training samples and of images
      generated for their captions; embeddings at unit length, so that the kernel is (cos + 1)^3. Lower is better.
    - `clip_similarity`: mean cosine of those images' embeddings with their captions'.
    - of a small world (`bundled.WORLDS`) also what its judges say of images of validation prompts, see its
      `QuickJudges`. Test prompts are never touched here.

    `protocol["decisive"]` names the distance by which weights are the best, lower being better: that of the judges
    where there are some, because the frozen CLIP is the training signal and they know nothing of it; otherwise `kid`.
    With few samples these scores compare states of one run; they are no results to publish.

    Texts are encoded here, so that the text tower is not needed afterwards. Neither building nor running uses a
    global random generator.

    Args:
        config: `evaluation_samples` (at most the size of the dataset is used) and the batch size.
        data: the training data; N samples from 0 on are the real ones, of a large stream those of one lane.
        clip: the run's frozen CLIP, on the device to run on.

    Raises:
        UserError: for fewer than two samples.
    """

    def __init__(self, config: TrainingConfig, data: CaptionedImages, clip: FrozenCLIP):
        self.count, self.batch_size = min(config.evaluation_samples, len(data)), config.train_batch_size
        if self.count < 2:
            raise UserError("a quick evaluation compares at least two images: raise evaluation_samples")
        self.samples = data.few(self.count)
        self.clip, self.device, self.noise_dim = clip, clip.image_encoder.device, data.noise_dim
        self.real_embeds, self.prompt_embeds = self._read_real(data)
        world, self.judges = find_world(config.dataset_name), None
        if world and data.size in world.QuickJudges.sizes:
            self.judges = world.QuickJudges(config.evaluation_samples, clip, self.batch_size)
        self.protocol = self._describe()

    def _describe(self) -> dict:
        """What a score of this evaluation means, for the record that is kept with it."""
        return {
            "samples": self.count,
            "real": f"training samples 0 to {self.samples[-1]}"
            + (f", every {self.samples.step}th" if self.samples.step > 1 else ""),
            "features": "image embeddings of the frozen CLIP, unit length",
            "kid": "unbiased, all pairs, kernel (cos + 1)^3",
            "clip_sha256": self.clip.describe()["weights_sha256"],
            "validation_prompts": len(self.judges.prompt_embeds) if self.judges else 0,
            "noise_seed": _NOISE_SEED,
            "decisive": self.judges.decisive if self.judges else "kid",
        }

    @torch.no_grad()
    def run(self, generator: RATLIPGenerator) -> dict[str, float]:
        """Score a generator that is in eval mode, such as the one of EMA weights. Returns the scores by name."""
        embeds = torch.cat([self._embed(part) for part in self._generate(generator, self.prompt_embeds)])
        scores = {
            "kid": kernel_distance(_for_kernel(self.real_embeds), _for_kernel(embeds)),
            "clip_similarity": clip_similarity(embeds, self.prompt_embeds).item(),
        }
        if self.judges:
            images = torch.cat(list(self._generate(generator, self.judges.prompt_embeds)))
            scores |= self.judges.scores(images)
        return scores

    def _generate(self, generator: RATLIPGenerator, prompt_embeds: torch.Tensor):
        """Yield the images for `prompt_embeds` in batches of the training's size, which is known to fit."""
        noise = prepare_latents(len(prompt_embeds), self.noise_dim, torch.Generator().manual_seed(_NOISE_SEED))
        batches = zip(noise.to(self.device).split(self.batch_size), prompt_embeds.split(self.batch_size), strict=True)
        for latents, embeds in batches:
            # Within the range that a saved image has.
            yield generator(latents, embeds, self.clip.image_encoder, return_dict=False)[0].float().clamp(-1, 1)

    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        return self.clip.embed_images(images).float()

    @torch.no_grad()
    def _read_real(self, data: CaptionedImages) -> tuple[torch.Tensor, torch.Tensor]:
        images, texts = [], []
        for start in range(0, self.count, self.batch_size):
            batch = data.batch(self.samples[start : start + self.batch_size])
            stored = batch.prompt_embeds
            images.append(self._embed(batch.images))
            texts.append(self.clip.encode(batch.captions) if stored is None else stored.to(self.device))
        return torch.cat(images), torch.cat(texts)


class Best:
    """The best weights of a run so far, by the decisive score, in `best/`: a pipeline and `best.json`.

    Registered in the checkpoints, so that a resumed run neither forgets nor undoes what was best before.
    """

    def __init__(self, output_dir: Path):
        self.folder = Path(output_dir) / "best"
        self.score: float | None = None
        self.decisive: str | None = None  # the name of that score

    def update(self, record: dict, pipeline: RATLIPPipeline) -> bool:
        """Save `pipeline` if `record` (step, images, scores, protocol) beats the best so far; says whether it did.

        A score that is not finite never does, nor does an equal one.
        """
        decisive = record["protocol"]["decisive"]
        score = record["scores"][decisive]
        # Of another name, as in a checkpoint of an earlier version, a score compares with nothing.
        beaten = self.score is None or self.decisive != decisive or score < self.score
        if not math.isfinite(score) or not beaten:
            return False
        with atomic_directory(self.folder) as folder:
            pipeline.save_pretrained(folder)
            atomic_write(folder / "best.json", json.dumps(record, indent=2, allow_nan=False) + "\n")
        remove_unfinished(self.folder)
        self.score, self.decisive = score, decisive
        logger.info("the best so far: %s %.4g at %d images", decisive, score, record["images"])
        return True

    def state_dict(self) -> dict:
        return {"score": self.score, "decisive": self.decisive}

    def load_state_dict(self, state: dict) -> None:
        # In another output folder, or without its weights, nothing has been the best yet.
        self.score = state["score"] if self.folder.is_dir() else None
        self.decisive = state.get("decisive")


def _for_kernel(embeds: torch.Tensor) -> torch.Tensor:
    """Embeddings [N, d] of length sqrt(d), for which x.y / d of the kernel is their cosine."""
    return F.normalize(embeds.double(), dim=1) * embeds.shape[1] ** 0.5
