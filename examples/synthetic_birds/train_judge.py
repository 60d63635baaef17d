"""Trains a judge of synthetic birds on augmented renders of all colour triples, and writes it. A judge is a measuring
instrument, not a model under test: it has to read every triple equally well, so that none is held out from it."""

import json
import sys
import time

import torch
from torch.nn import functional

from ratlip_hf.evaluation.inputs import as_images
from ratlip_hf.metrics import attribute_hits
from ratlip_hf.synthetic_birds.attributes import PARTS, SCENE, attribute_labels
from ratlip_hf.synthetic_birds.judge import BirdJudge
from ratlip_hf.synthetic_birds.renderer import render_pixels, sample_birds
from ratlip_hf.utils.errors import CommandParser, UserError, command_line
from ratlip_hf.utils.files import atomic_directory, atomic_write

GATE = 0.97
READS = {"colours": PARTS, "scene": SCENE}

_BATCH = 64


def augment(images: torch.Tensor) -> torch.Tensor:
    """Make renders [B, 3, H, W] in [-1, 1] imperfect like generated ones: shifted, blurred, noisy, brighter or paler.

    Samples with torch's global generator; the result may leave the range slightly.
    """
    count = len(images)
    down, right = torch.randint(-3, 4, (2,)).tolist()
    images = images.roll((down, right), dims=(2, 3))
    blurred = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.lerp(images, blurred, torch.rand(count, 1, 1, 1))
    contrast = 1 + 0.3 * (torch.rand(count, 1, 1, 1) - 0.5)
    brightness = 0.3 * (torch.rand(count, 1, 1, 1) - 0.5)
    noise = 0.2 * torch.rand(count, 1, 1, 1) * torch.randn_like(images)
    return images * contrast + brightness + noise


def _renders(
    purpose: str, seed: int, count: int, split: str | None, reads: tuple[str, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    birds, seeds = sample_birds(purpose, seed, count, split)
    return render_pixels(birds, seeds), torch.tensor([attribute_labels(bird, reads) for bird in birds])


def train_judge(
    seed: int, steps: int = 1500, pool_size: int = 20_000, check_count: int = 2000, reads: tuple[str, ...] = PARTS
) -> tuple[BirdJudge, dict[str, float]]:
    """Train a judge on augmented renders of all colour triples with a one-cycle learning rate.

    Returns it in eval mode with its accuracy per field on `check_count` untouched renders of held-out triples.
    """
    torch.manual_seed(seed)
    pixels, labels = _renders("judge", seed, pool_size, None, reads)
    judge = BirdJudge(reads=reads).train()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for step in range(steps):
        chosen = torch.randint(pool_size, (_BATCH,))
        logits = judge(augment(as_images(pixels[chosen])))
        losses = [functional.cross_entropy(each, labels[chosen, field]) for field, each in enumerate(logits)]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 250 == 0:
            print(f"step {step + 1}  loss {loss.item():.4f}", flush=True)
    pixels, labels = _renders("judge_check", seed, check_count, "test", reads)
    hits = attribute_hits(judge.eval().predict(as_images(pixels)), labels).mean(0)
    return judge, {name: round(hit, 4) for name, hit in zip(reads, hits.tolist(), strict=True)}


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Train a judge, check it on held-out renders, and write it with `training_report.json` into one folder."""
    parser = CommandParser(description=main.__doc__)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--reads", default="colours", help=f"one of {', '.join(READS)} (default: colours)")
    options = parser.parse_args(arguments)
    if options.reads not in READS:
        raise UserError(f"--reads must be one of {', '.join(READS)}, not {options.reads!r}")
    torch.set_num_threads(1)
    start = time.monotonic()
    judge, accuracy = train_judge(options.seed, options.steps, reads=READS[options.reads])
    if min(accuracy.values()) < GATE:
        raise UserError(f"accuracy on held-out renders is {accuracy}, below {GATE}; raise --steps")
    minutes = round((time.monotonic() - start) / 60, 1)
    report = {"seed": options.seed, "steps": options.steps, **accuracy, "minutes": minutes}
    with atomic_directory(options.output_dir) as folder:
        judge.save_pretrained(folder)
        atomic_write(folder / "training_report.json", json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    sys.exit(main())
