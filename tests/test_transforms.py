"""From a photograph to a training image: regions of boxes, crops, scaling, mirroring, decoding of parts.
Who asks for which part is in `test_data_reading`."""

import io

import numpy as np
import pytest
from PIL import Image

from corpora import encoded_image, make_birds
from ratlip_hf.data import block_jpeg
from ratlip_hf.data.block_jpeg import SAVE_OPTIONS, BlockJPEG, open_image
from ratlip_hf.data.images import BadImage
from ratlip_hf.data.prepare.shards import prepare
from ratlip_hf.data.read.transforms import ANTIALIASED, RELEASED, frame, object_region
from ratlip_hf.training.config import TrainingConfig
from ratlip_hf.training.samples import load_training_data


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


def photograph(width: int, height: int) -> bytes:
    """A prepared JPEG of coloured noise, smooth enough to survive compression."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((width, height)).save(buffer, "JPEG", quality=90, **SAVE_OPTIONS)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(130, 97), (64, 64), (33, 200)])
def test_a_part_of_a_prepared_jpeg_is_decoded_alone_and_exactly(size, monkeypatch):
    content = photograph(*size)
    whole, parts = Image.open(io.BytesIO(content)).convert("RGB"), open_image(content)
    assert isinstance(parts, BlockJPEG) and parts.size == size
    decoded, real = [], block_jpeg.decode
    monkeypatch.setattr(block_jpeg, "decode", lambda content: decoded.append(real(content)) or decoded[-1])
    rng = np.random.default_rng(1)
    for _ in range(50):
        (left, right), (top, bottom) = (sorted(rng.choice(side + 1, 2, replace=False)) for side in size)
        region = tuple(map(int, (left, top, right, bottom)))
        assert parts.crop(region).tobytes() == whole.crop(region).tobytes()
        assert decoded[-1].width <= region[2] - region[0] + 34 and decoded[-1].height <= region[3] - region[1] + 34
    assert parts.crop((0, 0, *size)).tobytes() == whole.tobytes()


def test_other_files_are_decoded_whole_and_damage_is_noticed():
    content = photograph(64, 64)
    exif = Image.Exif()
    exif[0x0112] = 6
    for other in (
        encoded_image(),
        encoded_image(kind="PNG"),
        encoded_image(exif=exif, **SAVE_OPTIONS),
        content + b"more",
    ):
        assert isinstance(open_image(other), Image.Image)
    with pytest.raises(BadImage):
        open_image(content[:-200])
    with pytest.raises(BadImage):
        open_image(b"<html>")


def test_a_image_of_the_right_size_is_taken_as_it_is():
    image = gradient(32, 32)
    assert np.array_equal(frame(image, 32, None, ANTIALIASED, np.random.default_rng(0)), np.asarray(image))


def test_boxes_are_used_where_they_are_and_can_be_left_out(tmp_path):
    prepare("birds", make_birds(tmp_path / "birds"), tmp_path / "out")
    config = TrainingConfig(train_data_dir=str(tmp_path / "out"))
    assert load_training_data(config, 16, 3).rows.row(0).box == [10, 5, 20, 30]
    config.crop_to_box = False
    assert load_training_data(config, 16, 3).rows.row(0).box is None
