"""Training samples as functions of seed and index: order, captions, mismatched captions, crops, worker processes.
The readers underneath are in `test_data_reading`."""

import multiprocessing
import pickle
from collections import Counter
from multiprocessing import forkserver

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from ratlip_hf.data.prepare.shards import prepare
from ratlip_hf.data.read import rows as stored
from ratlip_hf.data.read.embeddings import StoredEmbeddings, embed_captions, remembered_embeddings
from ratlip_hf.data.read.rows import Columns, MapRows, MixedRows, ShardRows
from ratlip_hf.training.samples import CaptionedImages, load_training_data
from ratlip_hf.utils.errors import UserError
from raw_datasets import make_folder
from training_toys import toy_dataset


def test_samples_do_not_depend_on_how_batches_are_cut(config):
    data = toy_dataset(config)
    whole = data.batch(range(8, 16))
    first, second = (next(data.batches(8, rank, world=2)) for rank in (0, 1))
    for name in ("noise", "images", "captions", "mismatched_captions"):
        expected = getattr(whole, name)
        for rank, found in enumerate((first, second)):
            share = getattr(found, name)
            assert torch.equal(share, expected[rank::2]) if name in ("noise", "images") else share == expected[rank::2]
    assert len({tuple(row.tolist()) for row in whole.noise}) == 8


def test_the_mismatched_caption_is_the_next_samples_one(config):
    data = toy_dataset(config, count=20)
    captions = data.batch(range(9)).captions
    assert data.batch(range(8)).mismatched_captions == captions[1:]


def test_the_mismatched_caption_belongs_to_another_image_and_says_something_else(config):
    rows = {
        "image": [Image.new("RGB", (32, 32), (index, 0, 0)) for index in range(6)],
        "captions": [["a rose"], ["a rose"], ["a daisy", "a flower"], ["a tulip"], ["a tulip"], ["a tulip"]],
    }
    rows = MapRows(datasets.Dataset.from_dict(rows), Columns(), config.seed)
    batch = CaptionedImages(rows, config, 32, 3).batch(range(60))
    own = {"a flower": "a daisy"}
    assert all(own.get(a, a) != own.get(b, b) for a, b in zip(batch.captions, batch.mismatched_captions, strict=True))


def test_rows_of_two_datasets_with_one_number_are_different_images(config):
    parts = [{"image": [Image.new("RGB", (32, 32))], "captions": [[name]]} for name in ("a rose", "a finch")]
    parts = [MapRows(datasets.Dataset.from_dict(part), Columns(), config.seed) for part in parts]
    batch = CaptionedImages(MixedRows(parts, [1, 1], config.seed), config, 32, 3).batch(range(20))
    assert all(
        {own, other} == {"a rose", "a finch"}
        for own, other in zip(batch.captions, batch.mismatched_captions, strict=True)
    )


def test_a_dataset_of_one_caption_is_refused(config):
    rows = {"image": [Image.new("RGB", (32, 32))] * 3, "captions": [["a rose"]] * 3}
    rows = MapRows(datasets.Dataset.from_dict(rows), Columns(), config.seed)
    with pytest.raises(UserError, match="mismatched pairs need different captions"):
        CaptionedImages(rows, config, 32, 3).batch([0])


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing_and_their_errors_are_one_line(config, workers):
    config.dataloader_num_workers = workers
    data = toy_dataset(config)
    batches = data.batches(4)
    for start in (4, 8, 12):
        batch, expected = next(batches), data.batch(range(start, start + 4))
        assert torch.equal(batch.images, expected.images) and batch.mismatched_captions == expected.mismatched_captions
    rows = datasets.Dataset.from_dict({"image": [Image.new("RGB", (9, 9))] * 2, "captions": [["a"], []]})
    with pytest.raises(UserError, match=r"^row 1 has no captions$"):
        next(CaptionedImages(MapRows(rows, Columns(), 0), config, 32, 3).batches(0))
    rows = {"image": ["no/such.png"] * 2, "captions": [["a"], ["b"]]}
    rows = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False))
    with pytest.raises(UserError, match=r"^cannot read the image of row \d, no/such.png: No such file or directory$"):
        next(CaptionedImages(MapRows(rows, Columns(), 0), config, 32, 3).batches(0))


def test_data_can_be_sent_to_another_process(config):
    data = toy_dataset(config)
    data.batch(range(4))
    assert torch.equal(pickle.loads(pickle.dumps(data)).batch(range(4)).images, data.batch(range(4)).images)


# Each process of the others imports torch first, for seconds.
@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(name, marks=pytest.mark.slow) for name in ("forkserver", "spawn"))]
)
def test_workers_load_the_same_however_processes_are_started(method, config, tmp_path):
    """A mixture of rows in memory and streamed shards, with embeddings. Which way is the default depends on Python."""
    folder = tmp_path / "prepared"
    prepare("folder", make_folder(tmp_path / "source", count=5), folder)

    def encode(captions):
        return torch.rand(len(captions), 2)

    embed_captions(folder, encode, "a" * 64)
    parts = [toy_dataset(config).rows, ShardRows(stored.find_shards(str(folder)), Columns(), config.seed)]
    captions = list(parts[0].captions(10))
    tables = [
        remembered_embeddings(tmp_path / "kept", captions, encode, ""),
        StoredEmbeddings(folder, "train", "a" * 64),
    ]
    data = CaptionedImages(MixedRows(parts, [1, 1], config.seed), config, 32, 3, tables)
    expected = data.batch(range(4, 8))
    config.dataloader_num_workers = 1
    default = multiprocessing.get_start_method()
    try:
        multiprocessing.set_start_method(method, force=True)
        batch = next(data.batches(4))
    finally:
        multiprocessing.set_start_method(default, force=True)
    assert torch.equal(batch.images, expected.images) and batch.captions == expected.captions
    assert torch.equal(batch.prompt_embeds, expected.prompt_embeds)
    if method == "forkserver":  # whose server has imported what workers need
        assert forkserver._forkserver._preload_modules == [CaptionedImages.__module__]


def test_each_epoch_visits_every_sample_once_in_another_order(config):
    data = toy_dataset(config)
    epochs = [[caption.split()[0] for caption in data.batch(range(start, start + 10)).captions] for start in (0, 10)]
    assert all(sorted(epoch, key=int) == [str(index) for index in range(10)] for epoch in epochs)
    assert epochs[0] != epochs[1]
    captions = Counter(caption.split()[1] for caption in data.batch(range(200)).captions)
    assert min(captions.values()) > 70  # both captions of an image are used


def test_images_are_cropped_square_and_scaled_to_minus_one_and_one(config):
    images = toy_dataset(config).batch(range(10)).images
    assert images.shape == (10, 3, 32, 32)
    expected = torch.arange(10) / 127.5 - 1
    torch.testing.assert_close(images.mean(dim=(1, 2, 3)).sort().values, expected)


def test_where_a_image_is_cropped_is_a_function_of_seed_and_index(config):
    ramp = np.tile(np.arange(96, dtype=np.uint8)[None, :, None], (40, 1, 3))
    rows = datasets.Dataset.from_dict({"image": [Image.fromarray(ramp)] * 2, "captions": [["a ramp"], ["another"]]})
    data = CaptionedImages(MapRows(rows, Columns(), config.seed), config, 32, 3)
    first, again = data.batch(range(8)).images, data.batch(range(4, 8)).images
    assert torch.equal(first[4:], again)
    assert len({float(image.mean()) for image in first}) > 4
    config.random_crop = False
    middle = data.batch(range(8)).images
    assert all(torch.equal(image, middle[0]) for image in middle)


def test_data_without_the_named_columns_is_refused(config):
    config.caption_column = "text"
    with pytest.raises(UserError, match="no column 'text'"):
        toy_dataset(config)
    config.dataset_name, config.train_data_dir = None, "no-such-folder"
    with pytest.raises(UserError, match="no-such-folder"):
        load_training_data(config, 64, 8)
