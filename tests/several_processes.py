"""A training run in float64, where rounding cannot be mistaken for an error: launched as one process or as several.
Arguments are those of the trainer; the weights after each checkpoint are what tests compare."""

import sys

import torch

from ratlip_hf.training import loop, run
from ratlip_hf.training.config import load_config


def double_clip(*arguments, load=run.load_frozen_clip):
    clip = load(*arguments)
    clip.text_encoder.double(), clip.image_encoder.double()
    return clip


def double_inputs(*arguments, to_device=loop.to_device):
    return to_device(*arguments).map(torch.Tensor.double)


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    run.load_frozen_clip, loop.to_device = double_clip, double_inputs
    loop.train(load_config(sys.argv[1:]))
