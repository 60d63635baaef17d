"""Trains the scorer of synthetic birds, and writes it. It learns to tell a bird's caption from the captions of other
birds and from rivals that differ in one word; images, captions and rivals are of training triples only."""

import json
import random
import re
import sys
import time

import torch
from torch.nn import functional

from clip_checks import GATES, RivalChecks, below_gates
from ratlip_hf.evaluation.inputs import as_images
from ratlip_hf.synthetic_birds.attributes import FIELD_VOCABULARIES, attribute_labels
from ratlip_hf.synthetic_birds.captions import make_captions
from ratlip_hf.synthetic_birds.renderer import render_pixels, sample_birds
from ratlip_hf.synthetic_birds.scorer import BirdScorer
from ratlip_hf.utils.errors import CommandParser, UserError, command_line
from ratlip_hf.utils.files import atomic_directory, atomic_write
from train_clip import LabelHead, caption_with_rivals, contrastive_loss, scene_with_rivals

_CAPTIONS_FOR_WORDS = 2000
_SCENE_EVERY = 3
_NOISE = 0.15
_CHECK_EVERY = 200


def train_scorer(
    seed: int, steps: int, pool_size: int = 20_000, batch_size: int = 96, check_count: int = 1200
) -> tuple[BirdScorer, dict]:
    """Train with a one-cycle learning rate; returns the scorer in eval mode and a report as of a small CLIP."""
    torch.manual_seed(seed)
    birds, seeds = sample_birds("scorer", seed, pool_size, "train")
    pixels, rng = render_pixels(birds, seeds), random.Random(seeds[0])
    texts = [caption for bird in birds[:_CAPTIONS_FOR_WORDS] for caption in make_captions(bird, rng)]
    scorer = BirdScorer(tuple(sorted({word for text in texts for word in re.findall("[a-z]+", text)}))).train()
    labels = torch.tensor([attribute_labels(bird, tuple(FIELD_VOCABULARIES)) for bird in birds])
    label_head = LabelHead(scorer.config.dim)
    parameters = [*scorer.parameters(), *label_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    checks = RivalChecks(scorer.embed_texts, scorer.embed_images, check_count)
    for step in range(1, steps + 1):
        chosen = rng.sample(range(pool_size), batch_size)
        describe = scene_with_rivals if step % _SCENE_EVERY == 0 else caption_with_rivals
        kinds = zip(*(describe(birds[index], rng) for index in chosen), strict=True)
        captions = [caption for kind in kinds for caption in kind]
        images = as_images(pixels[chosen])
        images = images + _NOISE * torch.rand(batch_size, 1, 1, 1) * torch.randn_like(images)
        seen = functional.normalize(scorer.embed_images(images), dim=1)
        read = functional.normalize(scorer.embed_texts(captions), dim=1)
        loss = contrastive_loss(seen, read, captions, scorer.logit_scale.exp().clamp(max=100))
        loss = loss + label_head(seen, labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % _CHECK_EVERY == 0:
            scorer.eval()  # or BatchNorm's statistics would take in validation renders
            print(f"step {step}  loss {loss.item():.3f}  {checks.measure()}", flush=True)
            scorer.train()
    scorer.eval()
    return scorer, {"seed": seed, "steps": steps, "gates": GATES, **checks.measure(), **checks.measure_choice()}


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Train, check the gates of the small CLIPs, and write scorer and `training_report.json` into one folder."""
    parser = CommandParser(description=main.__doc__)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1600)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    start = time.monotonic()
    scorer, report = train_scorer(options.seed, options.steps)
    if below := below_gates(report):
        raise UserError(f"not good enough: {', '.join(below)}; try another --seed or more --steps")
    report["minutes"] = round((time.monotonic() - start) / 60, 1)
    with atomic_directory(options.output_dir) as folder:
        scorer.half().save_pretrained(folder)  # the package stays small
        atomic_write(folder / "training_report.json", json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    sys.exit(main())
