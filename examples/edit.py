"""Changes one word of a prompt with the noise held: the images before, and after.
Usage: python examples/edit.py [PIPELINE [FILE]]"""

import sys

import torch

from ratlip_hf import RATLIPPipeline, bundled
from ratlip_hf.utils.display import labelled_grid

BEFORE, AFTER = "a red bird with blue wings", "a red bird with yellow wings"


def main(model: str = bundled.NAME, file: str = "edit.png") -> None:
    pipe = RATLIPPipeline.from_pretrained(bundled.resolve(model))
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    images = pipe.edit([BEFORE] * 4, [AFTER] * 4, generators).images
    labelled_grid([images[:4], images[4:]], [BEFORE, AFTER]).save(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
