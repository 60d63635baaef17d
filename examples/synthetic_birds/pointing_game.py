"""The pointing game on synthetic birds: does the explanation of a colour word point at the part that has the colour?
The renderer knows where parts are; run by score_explorations.py."""

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from ratlip_hf import RATLIPDiscriminator, RATLIPPipeline, bundled, explain
from ratlip_hf.clip import FrozenCLIP
from ratlip_hf.evaluation.inputs import as_images
from ratlip_hf.latents import prepare_latents
from ratlip_hf.metrics import clustered_mean, interval
from ratlip_hf.synthetic_birds.attributes import COLOURS, FIELD_VOCABULARIES, PARTS, SCENE, BirdAttributes
from ratlip_hf.synthetic_birds.captions import full_caption
from ratlip_hf.synthetic_birds.renderer import render_masks, render_pixels, sample_birds, wording_rng
from ratlip_hf.synthetic_birds.scorer import BirdScorer
from ratlip_hf.synthetic_birds.world import load_judges

# Of each word, the caption with it less the mean of the captions with the seven other colours is explained.
_GROUPS = [[0, *range(1 + 7 * part, 8 + 7 * part)] for part in range(len(PARTS))]
_POSES = 300  # renders among which the one nearest to a generated image is looked for


@dataclass(frozen=True)
class Case:
    """A bird's image [1, 3, S, S], the masks of its parts [3, S, S], and its caption followed by 21 others."""

    image: torch.Tensor
    masks: torch.Tensor
    captions: list[str]


def rival_captions(bird: BirdAttributes, seed: int) -> list[str]:
    wording = wording_rng(seed).getrandbits(32)
    birds = [bird]
    for part in PARTS:
        birds += [replace(bird, **{part: word}) for word in COLOURS if word != getattr(bird, part)]
    return [full_caption(each, random.Random(wording)) for each in birds]


def rendered_cases(count: int) -> list[Case]:
    birds, seeds = sample_birds("prompts", 9, count, "test")
    images = as_images(render_pixels(birds, seeds))
    return [
        Case(image[None], torch.from_numpy(render_masks(bird, seed)), rival_captions(bird, seed))
        for bird, seed, image in zip(birds, seeds, images, strict=True)
    ]


@torch.no_grad()
def generated_cases(pipe: RATLIPPipeline, count: int) -> list[Case]:
    """Generated images in which both judges see the three colours, with the masks of the nearest of 300 renders."""
    birds, seeds = sample_birds("prompts", 10, count, "test")
    draws = [torch.Generator().manual_seed(seed) for seed in range(count)]
    noise = prepare_latents(count, pipe.generator.config.noise_dim, draws)
    captions = [rival_captions(bird, seed) for bird, seed in zip(birds, seeds, strict=True)]
    made = pipe([each[0] for each in captions], latents=noise, batch_size=20, output_type="pt").images
    images, (colour_judges, (scene_judge,)) = 2 * made - 1, load_judges("cpu")
    truth = torch.tensor([bird.colour_labels for bird in birds])
    right = torch.stack([(judge.predict(images) == truth).all(1) for judge in colour_judges]).all(0)
    cases = []
    for index in right.nonzero()[:, 0].tolist():
        scene = zip(SCENE, scene_judge.predict(images[index][None])[0].tolist(), strict=True)
        bird = replace(birds[index], **{name: FIELD_VOCABULARIES[name][word] for name, word in scene})
        masks = nearest_masks(images[index], bird)
        cases.append(Case(images[index][None], masks, captions[index]))
    return cases


def nearest_masks(image: torch.Tensor, bird: BirdAttributes) -> torch.Tensor:
    """Masks of the render of this bird, of 300 poses, that differs least from an image [3, 64, 64]."""
    _, seeds = sample_birds("prompts", 11, _POSES, "test")
    renders = as_images(render_pixels([bird] * _POSES, seeds))
    nearest = (renders - image).abs().flatten(1).mean(1).argmin()
    return torch.from_numpy(render_masks(bird, seeds[int(nearest)]))


def overlap_of_nearest(count: int) -> float:
    """How well `nearest_masks` does on renders, whose masks are known: mean intersection over union of the parts."""
    birds, seeds = sample_birds("prompts", 12, count, "test")
    found = []
    for bird, seed, image in zip(birds, seeds, as_images(render_pixels(birds, seeds)), strict=True):
        true, near = torch.from_numpy(render_masks(bird, seed)) >= 0.5, nearest_masks(image, bird) >= 0.5
        found.append((true & near).sum(dim=(1, 2)) / (true | near).sum(dim=(1, 2)))
    return torch.stack(found).mean().item()


Method = Callable[[list[str], torch.Tensor], torch.Tensor]


def methods(pipe: RATLIPPipeline, scorer: BirdScorer, source: str, trained: bool) -> Iterator[tuple[str, str, Method]]:
    """(what is explained, how, function of captions and image): with trained weights, or the image side random."""
    torch.manual_seed(0)
    tower = pipe.image_encoder if trained else type(pipe.image_encoder)(pipe.image_encoder.config).eval()
    clip = FrozenCLIP(pipe.tokenizer, pipe.text_encoder, tower)
    scorer = scorer if trained else shuffled_images(scorer)
    discriminator = RATLIPDiscriminator.of_pipeline(bundled.resolve(source)).eval()
    discriminator = discriminator if trained else random_discriminator(discriminator)
    layers = tower.vision_model.encoder.layers

    def similarity(embedder) -> Callable:
        return lambda captions: explain.contrast(explain.similarity(embedder, captions), _GROUPS)

    def logit(captions: list[str]) -> Callable:
        texts = clip.encode(captions)
        return explain.contrast(explain.discriminator_logit(discriminator, pipe.image_encoder, texts), _GROUPS)

    scores = {"training CLIP": similarity(clip), "held-out scorer": similarity(scorer), "discriminator": logit}
    of = lambda name, how, *rest: lambda captions, image: how(scores[name](captions), image, *rest)  # noqa: E731
    yield "training CLIP", "Grad-CAM", of("training CLIP", explain.grad_cam, layers[-1].layer_norm1)
    yield "training CLIP", "attention x gradient", of("training CLIP", explain.attention_x_gradient, tower)
    # The second of four sizes: fine enough to point with.
    second = [part for part in scorer.layers if isinstance(part, nn.SiLU | nn.ReLU)][1]
    yield "held-out scorer", "Grad-CAM", of("held-out scorer", explain.grad_cam, second)
    yield "discriminator", "Grad-CAM", of("discriminator", explain.grad_cam, discriminator.extractor)
    yield (
        "discriminator",
        "attention x gradient",
        of("discriminator", explain.attention_x_gradient, pipe.image_encoder),
    )
    for name in scores:
        yield name, "integrated gradients", of(name, explain.gradient_x_input)
        yield name, "occlusion", of(name, explain.occlusion)


def shuffled_images(scorer: BirdScorer) -> BirdScorer:
    """The scorer with its image tower's weights drawn anew."""
    scorer = copy.deepcopy(scorer)
    for part in [*scorer.layers, scorer.image_projection]:
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return scorer


def random_discriminator(trained: RATLIPDiscriminator) -> RATLIPDiscriminator:
    fresh = RATLIPDiscriminator.from_config(trained.config).eval()
    fresh.feature_scale, fresh.text_conditioning = trained.feature_scale, trained.text_conditioning
    return fresh


def play(method: Method, cases: list[Case]) -> dict[str, dict[str, float]]:
    """Pointing and energy of the three words of each case, with intervals over birds. `chance` is what a random place
    gets, `other_bird` what the map of the next case gets, which knows where birds use to be."""
    maps = torch.cat([method(case.captions, case.image) for case in cases]).detach()
    masks = torch.stack([case.masks for case in cases])
    hits = explain.pointing_hits(maps, masks)
    columns = {"pointing": hits, "energy": explain.energy_inside(maps, masks)}
    columns["other_bird"] = explain.pointing_hits(maps.roll(1, 0), masks)
    columns["chance"] = (masks >= 0.5).float().mean(dim=(2, 3))
    clusters = [index for index in range(len(cases)) for _ in PARTS]
    scores = {name: _score(values.flatten(), clusters) for name, values in columns.items()}
    return scores | {f"pointing_{part}": _score(hits[:, i], clusters[:: len(PARTS)]) for i, part in enumerate(PARTS)}


def _score(values: torch.Tensor, clusters: list[int]) -> dict[str, float]:
    found = interval(clustered_mean(values, clusters))
    return {"value": found.value, "low": max(found.low, 0.0), "high": min(found.high, 1.0)}
