"""Generates four images of a prompt, one for each seed.
Usage: python examples/sample.py [PIPELINE [PROMPT [FILE]]]"""

import sys

import torch

from ratlip_hf import RATLIPPipeline, bundled
from ratlip_hf.utils.display import grid_image


def main(model: str = bundled.NAME, prompt: str = "a yellow bird with blue wings", file: str = "sample.png") -> None:
    pipe = RATLIPPipeline.from_pretrained(bundled.resolve(model))
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    images = pipe(prompt, num_images_per_prompt=4, generator=generators).images
    grid_image(images, columns=4, min_side=192).save(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
