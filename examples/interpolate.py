"""Walks from one seed and prompt to another, on the sphere, in steps that look equally long.
Usage: python examples/interpolate.py [PIPELINE [FILE]]"""

import sys

import torch

from ratlip_hf import RATLIPPipeline, bundled, latents
from ratlip_hf.clip import FrozenCLIP
from ratlip_hf.utils.display import grid_image

PROMPTS = ["a red bird with blue wings", "a yellow bird with black wings, in the snow"]


@torch.no_grad()
def main(model: str = bundled.NAME, file: str = "interpolate.png") -> None:
    pipe = RATLIPPipeline.from_pretrained(bundled.resolve(model))
    noise = torch.randn(2, pipe.generator.config.noise_dim, generator=torch.Generator().manual_seed(0))
    (text,) = pipe.encode_prompt(PROMPTS)
    embedder = FrozenCLIP.of(pipe)

    def inputs(shares: torch.Tensor) -> dict:
        return {"latents": latents.path(noise, shares), "prompt_embeds": latents.path(text, shares)}

    def lengths_at(shares: torch.Tensor) -> torch.Tensor:
        images = pipe(**inputs(shares), output_type="pt").images
        return latents.step_lengths(2 * images - 1, embedder.embed_images)

    images = pipe(**inputs(latents.even_shares(lengths_at, 8))).images
    grid_image(images, columns=8, min_side=128).save(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
