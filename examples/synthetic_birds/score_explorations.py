"""Scores edits, interpolations and inversions of a model of synthetic birds by the judges, and explanations by the
renderer's masks; appends records. Usage:
python examples/synthetic_birds/score_explorations.py --record docs/records/explore.jsonl"""

import argparse
import math
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

import pointing_game
from ratlip_hf import RATLIPPipeline, bundled, latents
from ratlip_hf.clip import FrozenCLIP
from ratlip_hf.evaluation.inputs import as_images
from ratlip_hf.evaluation.records import ScoreRecord, append_record, check_place_for_records
from ratlip_hf.inversion import edit, invert
from ratlip_hf.latents import prepare_latents
from ratlip_hf.metrics import clustered_mean, interval
from ratlip_hf.synthetic_birds.attributes import (
    COLOURS,
    PARTS,
    SCENE,
    BirdAttributes,
    attribute_labels,
    sample_attributes,
)
from ratlip_hf.synthetic_birds.captions import full_caption
from ratlip_hf.synthetic_birds.renderer import render_pixels, sample_birds, wording_rng
from ratlip_hf.synthetic_birds.scorer import BirdScorer
from ratlip_hf.synthetic_birds.world import load_judges
from ratlip_hf.utils.tensors import weights_sha256

FIELDS = PARTS + SCENE
FRAMES = 24


class Reader:
    """What the judges say of images [N, 3, S, S] in [-1, 1]: words [N, 7] in the order of `FIELDS`. Where the two
    judges of colours disagree, -1, which is right nowhere."""

    def __init__(self):
        self.colours, (self.scene,) = load_judges("cpu")

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        first, second = (judge.predict(images) for judge in self.colours)
        colours = torch.where(first == second, first, -1)
        return torch.cat([colours, self.scene.predict(images)], dim=1)


def edited_captions(bird: BirdAttributes, rng: random.Random) -> tuple[int, int, str, str]:
    """A colour word exchanged: which part, for which colour, and the caption before and after."""
    part = rng.randrange(len(PARTS))
    colour = rng.choice([word for word in COLOURS if word != getattr(bird, PARTS[part])])
    wording = rng.getrandbits(32)
    edited = replace(bird, **{PARTS[part]: colour})
    texts = [full_caption(each, random.Random(wording)) for each in (bird, edited)]
    return part, COLOURS.index(colour), *texts


def changed_and_kept(before: torch.Tensor, after: torch.Tensor, edits: list[tuple[int, int]]) -> dict[str, list]:
    """Per edit: whether its part has the new colour, the share of other attributes that stay, and of each field."""
    parts, colours = (torch.tensor(column) for column in zip(*edits, strict=True))
    rows = torch.arange(len(edits))
    same = (before == after).float()
    same[rows, parts] = torch.nan
    columns = {f"kept_{name}": same[:, index] for index, name in enumerate(FIELDS)}
    return {"changed": (after[rows, parts] == colours).float(), "kept": same.nanmean(dim=1), **columns}


def with_intervals(columns: dict[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    scores = {}
    for name, values in columns.items():
        values = values[~values.isnan()]
        found = interval(clustered_mean(values, list(range(len(values)))))
        scores[name] = {"value": found.value, "low": max(found.low, 0.0), "high": min(found.high, 1.0)}
    return scores


def score_edits(pipe: RATLIPPipeline, count: int, keep_steps: int) -> dict[str, dict[str, float]]:
    """Edits of one colour word in captions of held-out birds: is the part changed, and does all else stay?"""
    birds, seeds = sample_birds("prompts", 7, count, "test")
    edits = [edited_captions(bird, wording_rng(seed)) for bird, seed in zip(birds, seeds, strict=True)]
    read, befores, afters = Reader(), [], []
    for start in range(0, count, 20):
        part = edits[start : start + 20]
        draws = [torch.Generator().manual_seed(seed) for seed in range(start, start + len(part))]
        captions = [list(texts) for texts in zip(*(edit[2:] for edit in part), strict=True)]
        images = 2 * pipe.edit(*captions, draws, keep_steps=keep_steps, output_type="pt").images - 1
        befores.append(read(images[: len(part)]))
        afters.append(read(images[len(part) :]))
    columns = changed_and_kept(torch.cat(befores), torch.cat(afters), [edit[:2] for edit in edits])
    return with_intervals(columns)


def score_interpolations(pipe: RATLIPPipeline, count: int) -> dict[str, dict[str, float]]:
    """Ways of 24 images between two seeds and two captions: the longest step by the shortest, before and after the
    steps are made even."""
    embed = torch.no_grad()(FrozenCLIP.of(pipe).embed_images)
    rng, ratios, plain = random.Random(0), [], []
    for seed in range(count):
        captions = [full_caption(sample_attributes(rng, "test"), rng) for _ in range(2)]
        draws = [torch.Generator().manual_seed(2 * seed + each) for each in range(2)]
        noise = prepare_latents(2, pipe.generator.config.noise_dim, draws)
        text = pipe.encode_prompt(captions)[0].detach()

        def lengths_at(shares: torch.Tensor, noise=noise, text=text) -> torch.Tensor:
            way = {"latents": latents.path(noise, shares), "prompt_embeds": latents.path(text, shares)}
            images = pipe(**way, batch_size=16, output_type="pt").images
            return latents.step_lengths(2 * images - 1, embed)

        uneven = lengths_at(torch.linspace(0, 1, FRAMES))
        even = lengths_at(latents.even_shares(lengths_at, FRAMES))
        plain.append(uneven.max() / uneven.min())
        ratios.append(even.max() / even.min())
    ratios, plain = torch.stack(ratios), torch.stack(plain)
    within = with_intervals({"within_factor_2": (ratios <= 2).float(), "plain_within_factor_2": (plain <= 2).float()})
    return {
        **within,
        "median_ratio": {"value": ratios.median().item()},
        "plain_median": {"value": plain.median().item()},
    }


def score_inversions(pipe: RATLIPPipeline, count: int, steps: int) -> dict[str, dict[str, float]]:
    """Held-out renders found again: are their attributes kept? Then a colour word of each is edited."""
    birds, seeds = sample_birds("prompts", 8, count, "test")
    truth = torch.tensor([attribute_labels(bird, FIELDS) for bird in birds])
    edits = [edited_captions(bird, wording_rng(seed)) for bird, seed in zip(birds, seeds, strict=True)]
    images, read = as_images(render_pixels(birds, seeds, pipe.generator.config.sample_size)), Reader()
    found, edited, began = [], [], time.process_time()
    for start in range(0, count, 8):
        part = slice(start, min(start + 8, count))
        texts = [pipe.encode_prompt([edit[side] for edit in edits[part]])[0].detach() for side in (2, 3)]
        result = invert(pipe.generator, pipe.image_encoder, images[part], texts[0], steps=steps)
        after = edit(pipe.generator, pipe.image_encoder, result, texts[1] - texts[0])
        found.append(read(result.images))
        edited.append(read(after.images))
    seconds = (time.process_time() - began) / count
    found, edited = torch.cat(found), torch.cat(edited)
    hits = (found == truth).float()
    columns = {"kept": hits.mean(dim=1), **{f"kept_{name}": hits[:, i] for i, name in enumerate(FIELDS)}}
    after = changed_and_kept(found, edited, [edit[:2] for edit in edits])
    columns |= {"edit_changed": after["changed"], "edit_kept": after["kept"]}
    return {**with_intervals(columns), "cpu_seconds_per_image": {"value": seconds}}


CHECKS: dict[str, Callable] = {
    "edits": lambda pipe, options: score_edits(pipe, options.count, 0),
    "edits-kept": lambda pipe, options: score_edits(pipe, options.count, 10),
    "interpolations": lambda pipe, options: score_interpolations(pipe, max(2, math.ceil(options.count / 10))),
    "inversions": lambda pipe, options: score_inversions(pipe, options.count, 60),
}


def play_pointing_games(pipe: RATLIPPipeline, options: argparse.Namespace, model: dict) -> None:
    """A record for each network and method, on renders, on generated images, and on renders with random weights."""
    scorer = BirdScorer.from_pretrained(options.scorer)
    renders, generated = (
        pointing_game.rendered_cases(options.birds),
        pointing_game.generated_cases(pipe, options.birds),
    )
    overlap = {"nearest_mask_overlap": {"value": pointing_game.overlap_of_nearest(min(30, options.birds))}}
    for images, trained, cases in (
        ("renders", True, renders),
        ("generated", True, generated),
        ("renders", False, renders),
    ):
        for network, method, function in pointing_game.methods(pipe, scorer, options.model, trained):
            scores = pointing_game.play(function, cases) | (overlap if cases is generated else {})
            protocol = {"name": "pointing-game", "images": images, "weights": "trained" if trained else "random"}
            protocol |= {"num_real": len(renders), "num_fake": len(cases) if cases is generated else 0}
            candidate = {"explained": network, "method": method, **model}
            append_record(options.record, ScoreRecord(protocol, candidate, scores))
            print(images, protocol["weights"], network, method, round(scores["pointing"]["value"], 3), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=bundled.NAME, help="folder of a pipeline (default: the bundled one)")
    parser.add_argument("--checks", nargs="+", choices=[*CHECKS, "pointing"], default=[*CHECKS, "pointing"])
    parser.add_argument("--count", type=int, default=400, help="edits and inversions; a tenth as many interpolations")
    parser.add_argument("--birds", type=int, default=100, help="of the pointing game, three words each")
    scorer = bundled.model_dir().parent / "scorer"
    parser.add_argument("--scorer", default=scorer, help="folder of the held-out scorer (default: the bundled one)")
    parser.add_argument("--record", type=Path, required=True, help="file to which the records are added")
    options = parser.parse_args()
    check_place_for_records(options.record)
    torch.set_num_threads(1)
    pipe = RATLIPPipeline.from_pretrained(bundled.resolve(options.model))
    model = {"model": options.model, "weights_sha256": weights_sha256(pipe.generator)}
    for check in (name for name in options.checks if name in CHECKS):
        scores = CHECKS[check](pipe, options)
        protocol = {"name": f"explore-{check}", "num_real": 0, "num_fake": options.count}
        append_record(options.record, ScoreRecord(protocol, model, scores))
        print(check, {name: round(score["value"], 3) for name, score in scores.items()}, flush=True)
    if "pointing" in options.checks:
        play_pointing_games(pipe, options, model)


if __name__ == "__main__":
    main()
