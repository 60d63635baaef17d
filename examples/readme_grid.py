"""Makes the image at the top of the README: prompts that name everything beside real renders of them, one prompt with
eight seeds, and the way from one prompt to another. The colours of the first are of the test split.
Usage: python examples/readme_grid.py docs/images/grid.png"""

import sys

import torch
from PIL import Image

from ratlip_hf import RATLIPPipeline, bundled
from ratlip_hf.latents import lerp, prepare_latents, slerp
from ratlip_hf.synthetic_birds.attributes import BirdAttributes
from ratlip_hf.synthetic_birds.renderer import render_bird
from ratlip_hf.utils.display import labelled_grid

COLUMNS, RENDERS, SIDE = 8, 2, 96
BIRDS = (
    BirdAttributes("red", "green", "yellow", "right", "meadow", "rock"),
    BirdAttributes("blue", "yellow", "purple", "left", "sunset", "post"),
    BirdAttributes("orange", "black", "purple", "left", "snow", "branch"),
    BirdAttributes("white", "purple", "red", "right", "sky", "grass"),
)
PROMPTS = (
    "a red bird with a green belly and yellow wings, facing right, on a rock in a meadow",
    "a bird with a blue crown, a yellow belly and purple wings, facing left, on a post at sunset",
    "a bird with an orange crown, a black belly and purple wings, facing left, on a branch in the snow",
    "a bird with a white crown, a purple belly and red wings, facing right, in the grass, against the sky",
)
SHORT = "a small white bird with orange wings"
FROM = "a red bird with black wings, facing left, on a branch"
TO = "a yellow bird with blue wings, facing left, in snow"


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def main(path: str) -> None:
    pipe = RATLIPPipeline.from_pretrained(bundled.model_dir()).optimize()
    rows, count = [], COLUMNS - RENDERS
    for row, (prompt, bird) in enumerate(zip(PROMPTS, BIRDS, strict=True)):
        seeds = seeded(*range(row * count, (row + 1) * count))
        images = pipe(prompt, num_images_per_prompt=count, generator=seeds).images
        rows.append(images + [render_bird(bird, seed, images[0].width) for seed in range(RENDERS)])
    heads = ["generated", *[""] * (count - 1), "real", *[""] * (RENDERS - 1)]
    named = labelled_grid(rows, PROMPTS, heads, SIDE)

    start, end = pipe.encode_prompt([FROM, TO])[0]
    noise, shares = prepare_latents(2, pipe.generator.config.noise_dim, seeded(1, 2)), torch.linspace(0, 1, COLUMNS)
    strips = [
        pipe(SHORT, num_images_per_prompt=COLUMNS, generator=seeded(*range(COLUMNS))).images,
        pipe(prompt_embeds=lerp(start, end, shares), latents=slerp(*noise, shares)).images,
    ]
    varied = labelled_grid(strips, [f"{SHORT} (eight seeds)", f"from {FROM} to {TO}"], side=SIDE)

    page = Image.new("RGB", (named.width, named.height + varied.height + 16), "white")
    page.paste(named, (0, 0))
    page.paste(varied, (0, named.height + 16))
    page.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
