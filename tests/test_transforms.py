"""From a photograph to a training image: regions of boxes, crops, scaling, mirroring."""

import numpy as np
import pytest
from PIL import Image

from ratlip_hf.data.images import object_region
from ratlip_hf.data.prepare.shards import prepare
from ratlip_hf.data.read.transforms import ANTIALIASED, RELEASED, frame
from ratlip_hf.training.config import TrainingConfig
from ratlip_hf.training.samples import load_training_data
from raw_datasets import make_birds


def gradient(width: int, height: int) -> Image.Image:
    """Red tells the column, green the row, each from 0 to 250."""
    red = np.tile(np.linspace(0, 250, width), (height, 1))
    green = np.tile(np.linspace(0, 250, height)[:, None], (1, width))
    return Image.fromarray(np.stack([red, green, np.zeros_like(red)], -1).round().astype(np.uint8))


def test_the_region_of_a_box_is_the_papers():
    assert object_region((500, 400), [100, 100, 80, 40], truncate=True) == (80, 60, 200, 180)
    assert object_region((500, 400), [0, 0, 100, 100], truncate=True) == (0, 0, 125, 125)  # clipped to the image
    assert object_region((500, 400), [10.9, 10.0, 30.9, 9.0], truncate=True) == (3, 0, 49, 37)
    assert object_region((500, 400), [10.9, 10.0, 30.9, 9.0], truncate=False) == (3, 0, 50, 38)
    assert object_region((500, 400), [900, 900, 10, 10], truncate=False) == (0, 0, 500, 400)


@pytest.mark.parametrize("variant", [ANTIALIASED, RELEASED])
def test_the_crop_shows_the_box_and_moves_at_random(variant):
    image, box = gradient(251, 251), [100, 100, 40, 40]  # the region is 90 to 150
    middle = frame(image, 32, box, variant)
    assert abs(middle[..., 0].mean() - 120) < 1.5 and abs(middle[..., 1].mean() - 120) < 1.5
    rng = np.random.default_rng(0)
    crops = [frame(image, 32, box, variant, rng) for _ in range(40)]
    centres = np.array([crop[..., 0].mean() for crop in crops])
    assert all(crop.shape == (32, 32, 3) and crop[..., 0].min() >= 88 and crop[..., 0].max() <= 152 for crop in crops)
    assert 110 < centres.min() < 118 and 122 < centres.max() < 130
    width = np.mean([np.ptp(crop[..., 0].astype(float)) for crop in crops])
    assert width == pytest.approx(60 * 64 / 76, rel=0.08)


@pytest.mark.parametrize("variant", [ANTIALIASED, RELEASED])
def test_shrinking_averages_instead_of_picking_pixels(variant):
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (256, 128))).convert("RGB")
    assert np.abs(frame(stripes, 32, None, variant).astype(float) - 127.5).max() < 12


def test_resampling_agrees_with_pillow():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8))
    for size in (40, 120):
        difference = frame(noise, size).astype(int) - np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC))
        assert np.abs(difference).max() <= 2


@pytest.mark.parametrize("variant", [ANTIALIASED, RELEASED])
@pytest.mark.parametrize("size", [32, 60])
def test_mirrored_images_show_the_same_part_reversed(variant, size):
    image, box = gradient(60, 60), None if size == 60 else [10, 15, 30, 30]
    plain, mirrored = (frame(image, size, box, variant, mirror=mirror).astype(int) for mirror in (False, True))
    assert np.abs(plain - mirrored[:, ::-1]).max() <= 1
    assert np.abs(plain - mirrored).max() > 50


def test_an_image_of_the_right_size_is_used_as_it_is():
    image = gradient(32, 32)
    assert np.array_equal(frame(image, 32, None, ANTIALIASED, np.random.default_rng(0)), np.asarray(image))


def test_boxes_are_used_where_they_are_and_can_be_left_out(tmp_path):
    prepare("birds", make_birds(tmp_path / "birds"), tmp_path / "out")
    config = TrainingConfig(train_data_dir=str(tmp_path / "out"))
    assert load_training_data(config, 16, 3).rows.row(0).box == [10, 5, 20, 30]
    config.crop_to_box = False
    assert load_training_data(config, 16, 3).rows.row(0).box is None
