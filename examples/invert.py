"""Finds the noise that makes a given image, here a render of the small world, and changes a word of it.
Usage: python examples/invert.py [PIPELINE [FILE [STEPS]]]"""

import sys

import torch

from ratlip_hf import RATLIPPipeline, bundled
from ratlip_hf.evaluation.inputs import as_images
from ratlip_hf.explain.figures import as_pil
from ratlip_hf.inversion import edit, invert
from ratlip_hf.synthetic_birds.attributes import BirdAttributes
from ratlip_hf.synthetic_birds.renderer import render_pixels
from ratlip_hf.utils.display import labelled_grid

BEFORE = "a bird with a red crown, a yellow belly and blue wings"
AFTER = "a bird with a red crown, a yellow belly and black wings"


def main(model: str = bundled.NAME, file: str = "invert.png", steps: str = "60") -> None:
    pipe = RATLIPPipeline.from_pretrained(bundled.resolve(model))
    given = as_images(render_pixels([BirdAttributes("red", "yellow", "blue")], [7]))
    side = pipe.generator.config.sample_size
    given = torch.nn.functional.interpolate(given, (side, side), mode="area")
    with torch.no_grad():
        text = pipe.encode_prompt([BEFORE, AFTER])[0]
    found = invert(pipe.generator, pipe.image_encoder, given, text[:1], steps=int(steps))
    edited = edit(pipe.generator, pipe.image_encoder, found, text[1:] - text[:1])
    images = [as_pil(each[0]) for each in (given, found.images, edited.images)]
    labelled_grid([images], column_labels=["given", "found", "black wings"]).save(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
