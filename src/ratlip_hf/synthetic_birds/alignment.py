"""Measures how often generated birds wear the colours their prompts ask for, on held-out colour triples.
Owns the figures (accuracy per part and judge, spread, standard error) and the command that prints them."""

import json
import sys
from collections.abc import Callable, Sequence

import torch

from ..utils.errors import CommandParser, command_line
from .attributes import PARTS
from .dataset import load_heldout_prompts, prompt_bird, prompt_labels
from .judge import BirdJudge, to_signed
from .renderer import first_render_seed, render_pixels

Generate = Callable[[list[str], list[int]], torch.Tensor]

_BATCH = 50


def measure_alignment(
    generate: Generate, judges: Sequence[BirdJudge], prompts: list[dict], noise_seeds: Sequence[int] = (0, 1, 2)
) -> dict:
    """Let judges read the colours of generated images and compare them with the prompts'.

    Args:
        generate: takes a list of prompts and as many integer seeds, returns images [N, 3, 64, 64] in [-1, 1].
        judges: the colour readers; at least one.
        prompts: entries as in `heldout_prompts.jsonl`.
        noise_seeds: every prompt is drawn once for each; at least one.

    Returns:
        "judges": accuracy per part for each judge; "parts": the same averaged over judges; "mean": over everything;
        "all_three": share of images with all parts right; "spread_over_seeds": standard deviation of the mean
        between noise seeds; "standard_error": of the mean, over prompts; "real_renders": the "parts" and "mean"
        figures for renders of the same attributes; "num_prompts" and "noise_seeds".
    """
    if not judges or not prompts or not noise_seeds:
        raise ValueError("measuring alignment needs at least one judge, one prompt and one noise seed")
    labels = torch.tensor(prompt_labels(prompts))
    texts = [entry["prompt"] for entry in prompts]
    hits = torch.stack([attribute_hits(_generated(generate, texts, seed), judges, labels) for seed in noise_seeds])
    real = attribute_hits(_real_renders(prompts), judges, labels)
    by_seed, by_prompt = hits.mean((1, 2, 3)), hits.mean((0, 1, 3))
    return {
        "judges": [_by_part(hits[:, index].mean((0, 1))) for index in range(len(judges))],
        "parts": _by_part(hits.mean((0, 1, 2))),
        "mean": _rounded(hits.mean()),
        "all_three": _rounded(hits.prod(-1).mean()),
        "spread_over_seeds": _rounded(by_seed.std(unbiased=len(by_seed) > 1)),
        "standard_error": _rounded(by_prompt.std(unbiased=len(by_prompt) > 1) / len(by_prompt) ** 0.5),
        "real_renders": {"parts": _by_part(real.mean((0, 1))), "mean": _rounded(real.mean())},
        "num_prompts": len(prompts),
        "noise_seeds": list(noise_seeds),
    }


def _rounded(value: torch.Tensor) -> float:
    return round(value.item(), 4)


def _by_part(accuracies: torch.Tensor) -> dict[str, float]:
    return {part: _rounded(accuracy) for part, accuracy in zip(PARTS, accuracies, strict=True)}


def _generated(generate: Generate, texts: list[str], noise_seed: int) -> torch.Tensor:
    batches = []
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        first = noise_seed * len(texts) + start
        batches.append(generate(batch, list(range(first, first + len(batch)))))
    return torch.cat(batches)


def _real_renders(prompts: list[dict]) -> torch.Tensor:
    first = first_render_seed("prompts", 0)
    birds = [prompt_bird(entry) for entry in prompts]
    return to_signed(render_pixels(birds, list(range(first, first + len(birds)))))


def attribute_hits(images: torch.Tensor, judges: Sequence[BirdJudge], labels: torch.Tensor) -> torch.Tensor:
    """Compare what judges read with what prompts ask for.

    Args:
        images: [N, 3, 64, 64] in [-1, 1].
        judges: J colour readers.
        labels: colour indices [N, 3] as from `prompt_labels`.

    Returns:
        [J, N, 3], 1.0 where a judge reads the colour that the prompt asks for, else 0.0.
    """
    return torch.stack([(judge.read(images) == labels).float() for judge in judges])


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Print the alignment of a synthetic-birds pipeline (default: the one that ships with the package) as JSON."""
    parser = CommandParser(description=main.__doc__)
    parser.add_argument("--model", help="folder of a saved RATLIPPipeline")
    options = parser.parse_args(arguments)
    # Imported here so that measuring a callable does not pull in the pipeline.
    from .. import RATLIPPipeline, bundled

    pipe = RATLIPPipeline.from_pretrained(options.model or bundled.model_dir())
    pipe.set_progress_bar_config(disable=True)

    def generate(prompts: list[str], seeds: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe(prompts, generator=generators, output_type="pt").images * 2 - 1

    judges = [BirdJudge.from_pretrained(folder) for folder in bundled.judge_dirs()]
    print(json.dumps(measure_alignment(generate, judges, load_heldout_prompts()), indent=2))


if __name__ == "__main__":
    sys.exit(main())
