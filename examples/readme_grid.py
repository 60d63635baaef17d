"""Makes the image at the top of the README: six prompts, four images each, each prompt next to its images.
Usage: python examples/readme_grid.py docs/images/grid.png"""

import sys
import textwrap

import torch
from PIL import Image, ImageDraw, ImageFont

from ratlip_hf import RATLIPPipeline, bundled
from ratlip_hf.utils.display import grid_image

PROMPTS = (
    "a small red bird with black wings",
    "a yellow bird with a blue crown and green wings",
    "this bird has a white belly, purple wings and an orange crown",
    "a large blue bird with a yellow crown and white wings, sitting on a branch",
    "a large green bird facing left with a red crown and yellow wings, on a rock at sunset",
    "a big bird with a black crown, an orange belly and blue wings, in the snow",
)
SIDE, TEXT_WIDTH, PER_PROMPT, COLUMNS = 96, 150, 4, 2


def caption(text: str) -> Image.Image:
    """The prompt as an image as wide as a column and as high as a row."""
    image = Image.new("RGB", (TEXT_WIDTH, SIDE), "white")
    lines = "\n".join(textwrap.wrap(text, 21))
    font = ImageFont.load_default(size=13)
    ImageDraw.Draw(image).multiline_text((6, SIDE / 2), lines, font=font, fill="#333", anchor="lm", spacing=3)
    return image


def main(path: str) -> None:
    pipe = RATLIPPipeline.from_pretrained(bundled.model_dir())
    rows = []
    for index, prompt in enumerate(PROMPTS):
        seeds = range(PER_PROMPT * index, PER_PROMPT * (index + 1))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = pipe(prompt, num_images_per_prompt=PER_PROMPT, generator=generators).images
        images = [image.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for image in images]
        row = Image.new("RGB", (TEXT_WIDTH + PER_PROMPT * (SIDE + 2), SIDE), "white")
        row.paste(caption(prompt), (0, 0))
        row.paste(grid_image(images, PER_PROMPT), (TEXT_WIDTH, 0))
        rows.append(row)
    grid_image(rows, COLUMNS, gap=4).save(path, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
