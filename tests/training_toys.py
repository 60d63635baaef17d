"""What the training tests have in common: toy configurations, a dataset of grey images, the inputs of a step.
The fixtures made of them are in `shared_fixtures`."""

import datasets
import numpy as np
import torch
from PIL import Image

from ratlip_hf.data.read.rows import Columns, MapRows
from ratlip_hf.training.config import TrainingConfig
from ratlip_hf.training.samples import CaptionedImages, StepInputs
from ratlip_hf.training.step import Networks

DISCRIMINATOR = {
    "clip_width": 32,
    "clip_grid": 4,
    "text_dim": 16,
    "feature_layers": [0, 1, 2],
    "extractor_channels": 8,
    "head_channels": 4,
    "gate_init": 1.0,
    "scale_features": True,
    "text_center": True,
    "text_norm": 4.0,
}
GENERATOR = {
    "sample_size": 64,
    "noise_dim": 8,
    "text_dim": 16,
    "clip_width": 32,
    "clip_grid": 4,
    "base_channels": 4,
    "bridge_channels": 8,
    "bridge_blocks": 1,
    "lstm_hidden": 4,
    "prompt_layers": [0, 1],
    "attention_groups": 2,
}


def toy_dataset(config: TrainingConfig, count: int = 10) -> CaptionedImages:
    rows = {
        "image": [Image.fromarray(np.full((40, 64, 3), index, np.uint8)) for index in range(count)],
        "captions": [[f"{index} first", f"{index} second"] for index in range(count)],
    }
    columns = Columns(config.image_column, config.caption_column)
    return CaptionedImages(MapRows(datasets.Dataset.from_dict(rows), columns, config.seed), config, 32, noise_dim=3)


def step_inputs() -> StepInputs:
    """Four samples; the mismatched text of each is the next one's, as in the released code."""
    torch.manual_seed(1)
    images, noise, text = torch.rand(4, 3, 32, 32) * 2 - 1, torch.randn(4, 8), torch.randn(4, 16)
    return StepInputs(images, noise, text, text.roll(-1, 0), indices=range(4))


def keep_gradients(nets: Networks) -> None:
    """Let gradients lie where a step would clear them, for a test to look at."""
    for moving in (nets.generator_optimization, nets.discriminator_optimization):
        moving.optimizer.zero_grad = lambda: None
