"""Training rows from prepared datasets: map-style, streamed, mixed; cursors, crops. Lanes of streams are in
`test_lanes`.
Each image has a colour of its own, so that what was read can be told from the pixels."""

import json
import shutil
import weakref
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from ratlip_hf.data.prepare.shards import Storage, prepare
from ratlip_hf.data.read import lanes
from ratlip_hf.data.read.embeddings import embed_captions
from ratlip_hf.data.read.rows import Columns, MapRows, MixedRows, ShardRows, find_shards
from ratlip_hf.training.__main__ import main
from ratlip_hf.training.config import TrainingConfig
from ratlip_hf.training.samples import CaptionedImages, load_training_data
from ratlip_hf.utils.errors import UserError
from raw_datasets import encoded_image, make_folder, write

REAL = Path(__file__).parents[2] / "shared" / "data"
COUNT = 23


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """23 images with two captions each, in 6 shards."""
    folder = tmp_path_factory.mktemp("dataset")
    prepare("folder", make_folder(folder / "raw", COUNT), folder / "out", storage=Storage(images_per_shard=4))
    return folder / "out"


def map_rows(folder: Path, seed: int = 0) -> MapRows:
    return MapRows(datasets.load_dataset(str(folder), split="train"), Columns(), seed)


def shard_rows(folder: Path, seed: int = 0, lanes: int = 4) -> ShardRows:
    return ShardRows(find_shards(str(folder)), Columns(), seed, lanes)


def names(rows, visits: range) -> list[str]:
    """Which images the visits read: the second word of their captions."""
    return [rows.row(visit).captions[0].split()[1] for visit in visits]


# Order


@pytest.mark.parametrize("make", [map_rows, shard_rows])
def test_every_epoch_shows_every_row_once_in_its_own_order(prepared, make):
    rows = make(prepared)
    epochs = [names(rows, range(start, start + COUNT)) for start in (0, COUNT, 2 * COUNT)]
    assert all(sorted(map(int, epoch)) == list(range(COUNT)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert epochs[0] == names(make(prepared), range(COUNT))
    assert epochs[0] != names(make(prepared, seed=1), range(COUNT))


def test_any_visit_is_reached_without_the_ones_before_it(prepared):
    whole = names(shard_rows(prepared), range(3 * COUNT))
    for visit in (0, 5, COUNT - 1, COUNT, 2 * COUNT + 7):
        assert names(shard_rows(prepared), range(visit, visit + 1)) == [whole[visit]]


def test_the_order_of_shards_and_the_order_within_them_both_change_from_epoch_to_epoch(prepared):
    rows = shard_rows(prepared, lanes=1)
    epochs = [[rows.row(visit).place for visit in range(start, start + COUNT)] for start in (0, COUNT)]
    shards = [list(dict.fromkeys(place // 4 for place in epoch)) for epoch in epochs]
    within = [[[place for place in epoch if place // 4 == shard] for shard in range(6)] for epoch in epochs]
    assert shards[0] != shards[1] and within[0] != within[1]


def test_no_footer_of_a_shard_is_kept(prepared, monkeypatch):
    """A hundred kilobytes each: of ten thousand shards a gigabyte in every process."""
    kept, opened = [], pyarrow.parquet.ParquetFile

    def counting(*arguments, **options):
        assert sum(footer() is not None for footer in kept) < 2
        file = opened(*arguments, **options)
        kept.append(weakref.ref(file))
        return file

    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", counting)
    monkeypatch.setattr(lanes, "_COUNTERS", 1)
    lanes.counted_rows(find_shards(str(prepared)))
    assert len(kept) == 6
    rows = shard_rows(prepared)
    assert len(kept) == 7  # the manifest has the numbers of rows
    monkeypatch.undo()
    names(rows, range(3 * COUNT))
    assert len(rows._windows._shared) <= 2 * 2 * rows.lanes


def test_places_number_the_rows_in_the_order_of_storage(prepared):
    stored = [row["captions"] for row in datasets.load_dataset(str(prepared), split="train")]
    for rows in (map_rows(prepared), shard_rows(prepared)):
        assert all(stored[rows.row(visit).place] == rows.row(visit).captions for visit in range(COUNT))
        assert list(rows.captions(9)) == stored[:9]


# Mixtures


@pytest.fixture
def mixture(prepared, tmp_path) -> MixedRows:
    """Images 0 to 22 and, three times as often, one called 99."""
    write(tmp_path / "raw/a.jpg", encoded_image(99))
    write(tmp_path / "raw/a.txt", "image 99 alone")
    prepare("folder", tmp_path / "raw", tmp_path / "out")
    return MixedRows([map_rows(prepared), shard_rows(tmp_path / "out", lanes=1)], [1, 3], seed=0)


def test_a_mixture_keeps_weights_epochs_and_cursor(mixture):
    whole = names(mixture, range(2000))
    assert Counter(whole[:1000])["99"] == Counter(whole[1000:])["99"] == 750
    assert [name for name in whole if name != "99"] == names(mixture.parts[0], range(500))
    assert whole[:1000] != whole[1000:]
    assert names(mixture, range(1990, 1995)) == whole[1990:1995]
    assert mixture.row(next(v for v in range(2000) if whole[v] == "99")).part == 1
    assert len(mixture) == COUNT + 1
    assert len({captions[0] for captions in mixture.captions(40)}) > 5


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1], [1, 10_000]])
def test_weights_that_make_no_sense_are_refused(mixture, weights):
    with pytest.raises(UserError, match="weight"):
        MixedRows(mixture.parts, weights, 0)


# Batches for training


@pytest.fixture
def config(prepared) -> TrainingConfig:
    return TrainingConfig(train_data_dir=str(prepared), train_batch_size=4)


def test_each_visit_samples_one_of_the_captions(config):
    captions = Counter(caption.split()[-1] for caption in load_training_data(config, 16, 3).batch(range(200)).captions)
    assert captions.keys() == {"0", "1"} and min(captions.values()) > 70


@pytest.mark.parametrize("captions", [[["0"], ["1"]], [["a", "b", "c"], ["d", "e", "f"]], ["one string", "another"]])
def test_any_columns_and_any_number_of_captions(captions, tmp_path):
    image = Image.new("L", (20, 20), 80)
    dataset = datasets.Dataset.from_dict({"photo": [image] * 2, "said": captions})
    dataset.to_parquet(tmp_path / "train-00000.parquet")
    for streaming in (False, True):
        config = TrainingConfig(train_data_dir=str(tmp_path), image_column="photo", caption_column="said")
        config.streaming = streaming
        batch = load_training_data(config, 16, 3).batch(range(30))
        assert set(batch.captions) == ({*captions} if isinstance(captions[0], str) else {*captions[0], *captions[1]})
        torch.testing.assert_close(batch.images, torch.full((30, 3, 16, 16), 80 / 127.5 - 1))


@pytest.mark.parametrize("captions", [[], None, [None]])
def test_a_row_without_captions_is_named(captions):
    rows = {"image": [Image.new("RGB", (8, 8))] * 2, "captions": [["image 0"], captions]}
    features = {"image": datasets.Image(), "captions": datasets.List(datasets.Value("string"))}
    data = MapRows(datasets.Dataset.from_dict(rows, datasets.Features(features)), Columns(), 0)
    with pytest.raises(UserError, match="row 1 has no captions"):
        names(data, range(2))


def test_a_damaged_image_is_named(tmp_path, config):
    features = datasets.Features({"image": datasets.Image(), "captions": datasets.Value("string")})
    rows = {"image": [{"bytes": b"<html>", "path": None}] * 2, "captions": ["a", "b"]}
    data = MapRows(datasets.Dataset.from_dict(rows, features), Columns(), 0)
    with pytest.raises(UserError, match=r"row [01] of the data: web page"):
        CaptionedImages(data, config, 16, 3).batch([0])


def test_classes_stand_in_for_missing_captions(tmp_path):
    for folder in ("1", "2", "10"):
        write(tmp_path / folder / "a.jpg", encoded_image(int(folder)))
    write(tmp_path / "cat_to_name.json", json.dumps({"1": "aster", "2": "rose", "10": "iris"}))
    data = load_training_data(TrainingConfig(train_data_dir=str(tmp_path)), 16, 3)
    assert set(data.batch(range(3)).captions) == {"a photo of an aster", "a photo of a rose", "a photo of an iris"}


def test_a_number_is_never_made_a_caption(tmp_path, caplog):
    for folder in ("1", "2"):
        write(tmp_path / folder / "a.jpg", encoded_image(int(folder)))
    write(tmp_path / "cat_to_name.json", json.dumps({"1": "aster"}))
    with pytest.raises(UserError, match="no column 'captions'"):
        load_training_data(TrainingConfig(train_data_dir=str(tmp_path)), 16, 3)
    assert "have numbers, such as 2, for names" in caplog.text and "cat_to_name.json" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--streaming", "true", "--dataset_name", "synthetic-birds"], "streaming"),
        (["--streaming", "true", "--train_data_dir", "x", "--max_train_samples", "3"], "streaming"),
        (["--data_mixture", '{"a": 0}'], "positive weight"),
        (["--data_mixture", '{"a": 1, "b": Infinity}'], "positive weight"),
        (["--data_mixture", '{"a": 1}', "--dataset_name", "b"], "one of them"),
        (["--train_data_dir", "x", "--resize", "nearest"], "resize"),
        (["--train_data_dir", "x", "--stream_window", "0"], "stream_window"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_an_image_folder_cannot_be_streamed(tmp_path):
    make_folder(tmp_path, count=2)
    with pytest.raises(UserError, match="does not consist of Parquet"):
        load_training_data(TrainingConfig(train_data_dir=str(tmp_path), streaming=True), 16, 3)


def test_a_damaged_shard_is_named(prepared, tmp_path):
    content = next((prepared / "data").iterdir()).read_bytes()
    write(tmp_path / "train-0.parquet", content[:-100])
    with pytest.raises(UserError, match="cannot read the shard"):
        ShardRows([str(tmp_path / "train-0.parquet")], Columns(), 0)


# Stored embeddings


@pytest.mark.parametrize("streaming", [False, True])
def test_stored_embeddings_are_those_of_the_sampled_captions(config, small_clip, tmp_path, streaming):
    folder = tmp_path / "out"
    shutil.copytree(config.train_data_dir, folder)
    embed_captions(folder, small_clip.encode, small_clip.describe()["weights_sha256"])
    config.train_data_dir, config.streaming, config.text_embeddings = str(folder), streaming, True
    batch = load_training_data(config, 16, 3, small_clip).batch(range(30))
    for embeds, captions in (
        (batch.prompt_embeds, batch.captions),
        (batch.mismatched_embeds, batch.mismatched_captions),
    ):
        torch.testing.assert_close(embeds, small_clip.encode(captions), rtol=0, atol=1e-5)
    config.text_embeddings = False
    assert load_training_data(config, 16, 3, small_clip).batch(range(2)).prompt_embeds is None


def test_stored_embeddings_of_another_clip_or_of_other_shards_are_refused(config, small_clip, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(config.train_data_dir, folder)
    config.train_data_dir, config.text_embeddings, config.streaming = str(folder), True, True
    fingerprint = small_clip.describe()["weights_sha256"]
    embed_captions(folder, small_clip.encode, "0" * 64)
    with pytest.raises(UserError, match="no embeddings of this CLIP"):
        load_training_data(config, 16, 3, small_clip)
    (written,) = embed_captions(folder, small_clip.encode, fingerprint)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"]["files"][0]["sha256"] = "1" * 64
    write(folder / "manifest.json", json.dumps(manifest))
    with pytest.raises(UserError, match="belongs to other shards"):
        load_training_data(config, 16, 3, small_clip)
    write(written / "starts.npy", b"")
    with pytest.raises(UserError, match="run ratlip data embed"):
        load_training_data(config, 16, 3, small_clip)


# Embeddings that a run makes itself


class Encoder:
    """A CLIP's encoder that counts what it was asked; `name` stands for its weights."""

    def __init__(self, name: str = "0"):
        self.name, self.asked = name, []

    def encode(self, captions: list[str]) -> torch.Tensor:
        self.asked += captions
        return torch.tensor([[len(caption), sum(caption.encode()), ord(self.name)] for caption in captions]).float()

    def describe(self) -> dict[str, str]:
        return {"weights_sha256": self.name * 64}


@pytest.fixture
def embedded(config, tmp_path) -> TrainingConfig:
    config.text_embeddings, config.output_dir = True, str(tmp_path / "run")
    return config


def assert_they_are_those_of_the_captions(data: CaptionedImages, clip: Encoder) -> None:
    batch = data.batch(range(60))
    assert torch.equal(batch.prompt_embeds, clip.encode(batch.captions))


def test_captions_are_embedded_once_and_found_again(embedded):
    clip, again = Encoder(), Encoder()
    data = load_training_data(embedded, 16, 3, clip)
    assert sorted(clip.asked) == sorted(caption for captions in data.rows.captions(COUNT) for caption in captions)
    assert_they_are_those_of_the_captions(data, clip)
    assert_they_are_those_of_the_captions(load_training_data(embedded, 16, 3, again), Encoder())
    assert not again.asked
    assert np.load(Path(embedded.output_dir) / "text_embeddings" / "0" / "embeds.npy").dtype == np.float32


def test_embeddings_are_made_anew_for_another_clip_other_captions_and_damaged_files(embedded):
    place = Path(embedded.output_dir) / "text_embeddings" / "0"

    def damage(content: bytes | None) -> None:
        write(place / "embeds.npy", content) if content is not None else shutil.rmtree(place)

    load_training_data(embedded, 16, 3, Encoder())
    other = Encoder("1")
    assert_they_are_those_of_the_captions(load_training_data(embedded, 16, 3, other), other)
    embedded.caption_column, others = "image_id", Encoder("1")
    assert_they_are_those_of_the_captions(load_training_data(embedded, 16, 3, others), others)
    for content in (b"", b"\x93NUMPY", (place / "embeds.npy").read_bytes()[:-1], None):
        damage(content)
        again = Encoder("1")
        assert_they_are_those_of_the_captions(load_training_data(embedded, 16, 3, again), again)
    assert [path.name for path in place.parent.iterdir()] == ["0"]


def test_a_mixture_takes_stored_embeddings_and_makes_the_others(embedded, small_clip, tmp_path):
    stored, folder = tmp_path / "stored", tmp_path / "folder"
    shutil.copytree(embedded.train_data_dir, stored)
    clip = Encoder()
    embed_captions(stored, clip.encode, clip.describe()["weights_sha256"])
    images = [{"file_name": f"{index}.jpg", "captions": [f"other {index}", "b" * index]} for index in range(1, 4)]
    for index, row in enumerate(images):
        write(folder / row["file_name"], encoded_image(index))
    write(folder / "metadata.jsonl", "\n".join(map(json.dumps, images)))
    embedded.train_data_dir, embedded.data_mixture = None, {str(stored): 1, str(folder): 2}
    clip = Encoder()
    data = load_training_data(embedded, 16, 3, clip)
    assert len(clip.asked) == 6
    assert_they_are_those_of_the_captions(data, clip)
    assert [path.name for path in (tmp_path / "run" / "text_embeddings").iterdir()] == ["1"]


def test_stored_embeddings_of_another_column_are_not_taken(embedded, tmp_path):
    """`ratlip data embed` encodes the column `captions`, whatever the run reads."""
    embed_captions(Path(embedded.train_data_dir), Encoder().encode, "0" * 64)
    embedded.caption_column, clip = "image_id", Encoder()
    data = load_training_data(embedded, 16, 3, clip)
    assert len(clip.asked) == COUNT
    assert_they_are_those_of_the_captions(data, clip)
    shutil.rmtree(Path(embedded.train_data_dir) / "text_embeddings")


def test_streams_without_stored_embeddings_are_refused_in_dry_runs_too(embedded, tmp_path):
    rows = {"image": [Image.new("RGB", (8, 8))], "captions": ["a"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "out" / "train-0.parquet")
    embedded.train_data_dir, embedded.streaming, embedded.dry_run = str(tmp_path / "out"), True, True
    with pytest.raises(UserError, match="run ratlip data embed there"):
        load_training_data(embedded, 16, 3, Encoder())


def test_captions_are_read_without_their_images(prepared):
    rows = map_rows(prepared)
    rows.dataset.set_transform(lambda values: pytest.fail("images were read") if "image" in values else values)
    assert len(list(rows.captions(COUNT))) == COUNT


# Whole runs on real data, where it is there


@pytest.mark.slow
@pytest.mark.parametrize("streaming", ["false", "true"])
@pytest.mark.skipif(not REAL.is_dir(), reason="the real subsets are not next to the checkout")
def test_real_birds_and_flowers_train(streaming, tmp_path):
    prepare("birds", REAL / "birds_subset", tmp_path / "birds", storage=Storage(size=304))
    prepare("flowers", REAL / "flowers_subset", tmp_path / "flowers")
    sources = [tmp_path / "birds", tmp_path / "flowers"]
    sources += [REAL / "flowers_subset"] if streaming == "false" else []
    for index, source in enumerate(sources):
        options = [
            "--preset",
            "tiny",
            "--clip",
            "synthetic-birds",
            "--max_train_images",
            "8",
            "--train_batch_size",
            "4",
        ]
        place = ["--train_data_dir", str(source), "--output_dir", str(tmp_path / f"run{index}")]
        assert main([*options, *place, "--streaming", streaming]) == 0
        assert (tmp_path / f"run{index}/pipeline/model_index.json").is_file()
