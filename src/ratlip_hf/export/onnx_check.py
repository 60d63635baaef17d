"""Are exported graphs the networks they were made from? The same inputs through both, in batches of 1 and 5.
Owns the inputs, the differences and how large they may be."""

from dataclasses import dataclass

import torch

from ..frozen_clip import encode_text
from ..latents import draw_latents
from ..pipeline import RATLIPPipeline
from .onnx_networks import OnnxGenerator, OnnxTextEncoder

BATCHES = (1, 5)
_SENTENCES = (
    "a small red bird with black wings",
    "a white bird",
    "this bird has a long yellow beak, a blue crown and a brown belly with grey spots",
    "flowers on a table",
    "",
)


@dataclass(frozen=True)
class Difference:
    """Between graph and network, divided by the network's largest value: the largest and the mean one."""

    largest: float
    mean: float

    def within(self, bound: "Difference") -> bool:
        return self.largest <= bound.largest and self.mean <= bound.mean  # False for NaN, too


# Against the float32 networks. Rounding the weights alone to half precision moves single pixels by several 1e-3.
BOUNDS = {"float32": Difference(1e-3, 1e-3), "float16": Difference(3e-2, 1e-3)}


@torch.no_grad()
def compare(pipe: RATLIPPipeline, text_graph: OnnxTextEncoder, picture_graph: OnnxGenerator) -> dict[str, Difference]:
    """Differences over the batches, {"sentences": ..., "pictures": ...}; `pipe` is in float32.

    Raises:
        ValueError: when a graph does not take one of the batches.
    """
    seeds = [torch.Generator().manual_seed(seed) for seed in range(max(BATCHES))]
    noise = draw_latents(len(seeds), pipe.generator.config.noise_dim, seeds)
    pairs = {"sentences": [], "pictures": []}
    for batch in BATCHES:
        z, captions = noise[:batch], list(_SENTENCES[:batch])
        embeds = encode_text(pipe.tokenizer, pipe.text_encoder, captions)
        pairs["sentences"].append((encode_text(pipe.tokenizer, text_graph, captions), embeds))
        pairs["pictures"].append((picture_graph(z, embeds).sample, _drawn(pipe, z, embeds)))
    return {what: _difference(*map(torch.cat, zip(*found, strict=True))) for what, found in pairs.items()}


def _drawn(pipe: RATLIPPipeline, noise: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
    """As the pipeline draws: where the pictures of a batch influence each other, one at a time."""
    size = 1 if pipe.generator.couples_batch else len(noise)
    pairs = zip(noise.split(size), embeds.split(size), strict=True)
    return torch.cat([pipe.generator(z, text, pipe.image_encoder).sample for z, text in pairs])


def _difference(graph: torch.Tensor, network: torch.Tensor) -> Difference:
    apart = (graph - network).abs() / network.abs().max()
    return Difference(apart.max().item(), apart.mean().item())


def refuse_differences(found: dict[str, Difference], dtype: str) -> None:
    """Raise ValueError when a graph is further from its network than the precision explains."""
    bound = BOUNDS[dtype]
    for what, difference in found.items():
        if not difference.within(bound):
            raise ValueError(
                f"the exported graphs are wrong: {what} differ from PyTorch's by {difference.largest:.1e} "
                f"(mean {difference.mean:.1e}) of the largest value, more than {bound.largest} (mean {bound.mean})"
            )
