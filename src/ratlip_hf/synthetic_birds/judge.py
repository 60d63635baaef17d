"""Judges: small networks that tell the attributes of a synthetic bird from its image, trained apart from every CLIP.
`python -m ratlip_hf.synthetic_birds.judge` trains one on augmented renders and writes it."""

import json
import os
import sys
import time

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional

from .. import bundled
from ..evaluation.features import FeatureExtractor
from ..evaluation.inputs import as_images
from ..metrics import attribute_hits
from ..utils.errors import CommandParser, UserError, command_line
from ..utils.files import atomic_directory, atomic_write
from .attributes import FIELD_VOCABULARIES, PARTS, SCENE, attribute_labels
from .renderer import render_pixels, sample_birds

GATE = 0.97
READS = {"colours": PARTS, "scene": SCENE}

_STRIDES = (2, 2, 1, 2, 2)
_BATCH = 64


class BirdJudge(ModelMixin, ConfigMixin):
    """Convolutional classifier of images [B, 3, 64, 64] in [-1, 1]: logits [B, words of the field] for each field.

    `reads` are fields of `BirdAttributes`; words stand in the order of their vocabularies. The default is colours.
    Raises `ValueError` for images of another shape.
    """

    @register_to_config
    def __init__(self, widths: tuple[int, ...] = (24, 48, 64, 96, 96), reads: tuple[str, ...] = PARTS):
        super().__init__()
        layers, before = [], 3
        for width, stride in zip(widths, _STRIDES, strict=True):
            convolution = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.layers = nn.Sequential(*layers)
        self.words = [len(FIELD_VOCABULARIES[name]) for name in reads]
        self.head = nn.Linear(before * 16, sum(self.words))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.head(self.features(images)).split(self.words, dim=1)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What the last layer reads, [B, 16 * widths[-1]]."""
        if images.ndim != 4 or images.shape[1:] != (3, 64, 64):
            raise ValueError(f"the judge reads images [B, 3, 64, 64]; got {list(images.shape)}")
        return self.layers(images).flatten(1)

    @torch.no_grad()
    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Return the most likely words [B, fields] of images [B, 3, 64, 64] in [-1, 1], as indices."""
        parts = [[logits.argmax(1) for logits in self(part)] for part in images.split(256)]
        return torch.cat([torch.stack(words, dim=1) for words in parts])


class BirdJudgeFeatures(FeatureExtractor):
    """What a judge's last linear layer reads: its maps [width, 4, 4], flattened. Images must be 64 x 64.

    Trained to tell three colours on noisy and shifted birds, these features hold colours and their places well, and
    little of what else an image shows.

    Args:
        judge: the network.
        name: under which scores record it.
    """

    preprocessing = "none"

    def __init__(self, judge: BirdJudge, name: str = "bird-judge"):
        super().__init__(judge, name, judge.head.in_features)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike | None = None) -> "BirdJudgeFeatures":
        """Load a judge's folder; the first bundled one by default."""
        source = bundled.judge_dirs()[0] if source is None else source
        return cls(BirdJudge.from_pretrained(source), f"bird-judge:{os.path.basename(os.fspath(source))}")

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.features(images)


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
