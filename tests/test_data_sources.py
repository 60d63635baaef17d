"""`ratlip data prepare`, kind by kind: what every source holds, its splits, and metadata that cannot be trusted.
Datasets are made on the spot; the real subsets are read too where they lie next to the checkout."""

import json
import pickle
from collections import OrderedDict
from pathlib import Path

import datasets
import numpy as np
import pytest

import raw_datasets
from ratlip_hf.cli.main import main
from ratlip_hf.data.images import decode
from ratlip_hf.data.prepare.importers.birds import BIRD_SPLITS
from ratlip_hf.data.prepare.importers.flowers import NAMES
from ratlip_hf.data.prepare.raw_files import RefusedPickle, load_plain_pickle
from ratlip_hf.data.prepare.shards import prepare
from ratlip_hf.data.prepare.source_dataset import SourceOptions
from ratlip_hf.data.prepare.source_files import open_source
from ratlip_hf.utils.errors import UserError
from raw_datasets import encoded_image, make_birds, make_coco, make_faces, make_tar, repaired, rows_of, skipped, write

REAL = Path(__file__).parents[2] / "shared" / "data"

# Birds


def test_birds_have_images_captions_classes_boxes_and_disjoint_splits(tmp_path):
    manifest = prepare("birds", make_birds(tmp_path / "birds"), tmp_path / "out")
    assert {name: split["rows"] for name, split in manifest["splits"].items()} == {"train": 8, "test": 4}
    assert not manifest["skipped"] and not manifest["repaired"]
    train, test = rows_of(tmp_path / "out"), rows_of(tmp_path / "out", "test")
    assert {row["image_id"].split("/")[0] for row in test} == {"001.Red_bird"}
    assert {row["label"] for row in train} == {1, 2} and {row["label"] for row in test} == {0}
    assert train[0]["captions"] == [f"bird 5 caption {k}" for k in range(10)]
    assert train[0]["bbox"] == [10, 5, 20, 30]
    original = tmp_path / "birds/CUB_200_2011/images" / (train[0]["image_id"] + ".jpg")
    assert train[0]["image"]["bytes"] == original.read_bytes()
    features = datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=True).features
    assert features["label"].names == raw_datasets.CLASSES
    assert isinstance(features["image"], datasets.Image)


def test_windows_line_ends_change_nothing(tmp_path):
    plain = prepare("birds", make_birds(tmp_path / "a"), tmp_path / "out_a")
    crlf = prepare("birds", make_birds(tmp_path / "b", newline="\r\n"), tmp_path / "out_b")
    assert plain["splits"] == crlf["splits"]


def test_the_archive_alone_is_split_by_the_chosen_published_list(tmp_path):
    source = make_birds(tmp_path / "birds")
    (source / "text").rename(source / "CUB_200_2011" / "text")
    for name in ("train", "test"):
        (source / name / "filenames.pickle").unlink()
    stackgan = prepare("birds", source / "CUB_200_2011", tmp_path / "stackgan")
    assert stackgan["splits"]["test"]["rows"] == 4 and "built-in" in stackgan["splits_from"]
    reed = prepare("birds", source, tmp_path / "reed", SourceOptions(split="reed"))
    assert "test" not in reed["splits"] and reed["choices"]["split"] == "reed"
    official = prepare("birds", source, tmp_path / "official", SourceOptions(split="official"))
    assert official["splits"]["test"]["rows"] == official["splits"]["train"]["rows"] == 6
    with pytest.raises(UserError, match="stackgan, reed, official"):
        prepare("birds", source, tmp_path / "none", SourceOptions(split="mine"))


def test_published_lists_have_50_test_classes_and_share_18():
    lists = [split.test_classes for split in BIRD_SPLITS.values()]
    assert [len(classes) for classes in lists] == [50, 50] and len(lists[0] & lists[1]) == 18
    assert all(1 <= number <= 200 for classes in lists for number in classes)


def test_class_lists_of_the_source_decide_the_reed_split(tmp_path):
    source = make_birds(tmp_path / "birds")
    write(source / "class_splits/trainvalclasses.txt", "001.Red_bird\r\n002.Green_bird\r\n")
    write(source / "class_splits/testclasses.txt", "010.Blue_bird\r\n")
    prepare("birds", source, tmp_path / "out", SourceOptions(split="reed"))
    assert {row["label"] for row in rows_of(tmp_path / "out", "test")} == {2}


def test_incomplete_birds_are_counted_and_the_rest_is_prepared(tmp_path):
    source = make_birds(tmp_path / "birds")
    cub = source / "CUB_200_2011"
    (cub / "images/001.Red_bird/Red_bird_0000.jpg").unlink()
    (source / "text/001.Red_bird/Red_bird_0001.txt").unlink()
    write(cub / "images/001.Red_bird/extra.jpg", encoded_image())
    with open(cub / "images.txt", "a") as file:
        file.write("99 ../../../../etc/passwd\nnonsense\n")
    with open(cub / "bounding_boxes.txt", "a") as file:
        file.write("77 1 2 3 4\n5 1 2 0 4\n")
    manifest = prepare("birds", source, tmp_path / "out")
    assert skipped(manifest) == {
        "image listed in images.txt that is not there": 1,
        "image without captions": 1,
        "image without a row of images.txt": 1,
        "path in images.txt that leaves the source folder": 1,
        "line of images.txt that is no number and value": 1,
        "row of bounding_boxes.txt without a row of images.txt": 1,
    }
    assert repaired(manifest)["bounding box that is not four numbers with an area; left empty"] == 1
    assert sum(split["rows"] for split in manifest["splits"].values()) == 10


@pytest.mark.parametrize("missing", ["classes.txt", "image_class_labels.txt", "bounding_boxes.txt", "images.txt"])
def test_missing_label_files_are_made_up_for_and_said(missing, tmp_path):
    source = make_birds(tmp_path / "birds")
    (source / "CUB_200_2011" / missing).unlink()
    manifest = prepare("birds", source, tmp_path / "out")
    assert any(f"no {missing}" in note for note in manifest["notes"])
    assert manifest["label_names"] == raw_datasets.CLASSES
    train = rows_of(tmp_path / "out")
    assert len(train) == 8 and train[-1]["label"] == 2
    assert ("bbox" in train[0]) == (missing not in ("bounding_boxes.txt", "images.txt"))


def test_a_pickle_that_would_run_code_is_refused_by_name_and_the_published_list_used(tmp_path, capsys):
    class Attack:
        def __reduce__(self):
            return print, ("the pickle ran",)

    source = make_birds(tmp_path / "birds")
    write(source / "train/filenames.pickle", pickle.dumps([Attack()]))
    manifest = prepare("birds", source, tmp_path / "out")
    assert any("builtins.print" in note for note in manifest["notes"])
    assert "the pickle ran" not in capsys.readouterr().out
    assert manifest["splits"]["test"]["rows"] == 4


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (OrderedDict(a=1), "collections.OrderedDict"),
        ([np.int64(3)], "scalar"),
        ([("a", "b")], "tuple"),
        ({"a": {1, 2}}, "set"),
        ([b"bytes"], "bytes"),
        ([None], "NoneType"),
        (np.zeros(3), "_reconstruct|_frombuffer"),
    ],
)
def test_pickles_of_anything_but_plain_values_are_refused_by_name(value, name):
    with pytest.raises(RefusedPickle, match=name):
        load_plain_pickle(pickle.dumps(value, protocol=4))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_plain_pickles_are_read(protocol):
    value = {"names": ["a/b", "c"], "numbers": [1, 2.5, 2**70]}
    assert load_plain_pickle(pickle.dumps(value, protocol)) == value
    assert load_plain_pickle(b"(lp0\nV001.A/x\np1\naS'y'\np2\na.") == ["001.A/x", "y"]
    assert load_plain_pickle(b"(lp0\r\nS'y'\r\np2\r\na.\r\n") == ["y"]  # its line ends became those of Windows
    looped: list = []
    looped.append(looped)
    assert len(load_plain_pickle(pickle.dumps(looped))) == 1
    with pytest.raises(RefusedPickle, match="damaged"):
        load_plain_pickle(b"\x80\x04garbage")


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/passwd", "a/../../b", "..\\a.jpg", "C:\\a.jpg", "", "a\0b"])
def test_paths_that_leave_the_folder_are_no_paths(name, tmp_path):
    assert open_source(tmp_path).inside(name) is None
    assert open_source(tmp_path).inside("a\\b.jpg") == "a/b.jpg"


# Other kinds


def test_flowers_in_numbered_folders_get_names_in_numeric_order_and_captions_from_them(tmp_path):
    for folder in ("1", "2", "10"):
        write(tmp_path / "flowers" / folder / f"image_{folder:0>5}.jpg", encoded_image(int(folder)))
    write(tmp_path / "flowers/cat_to_name.json", json.dumps({"10": "iris", "2": "aster", "1": "pink primrose"}))
    manifest = prepare("flowers", tmp_path / "flowers", tmp_path / "out")
    assert manifest["label_names"] == ["pink primrose", "aster", "iris"]
    rows = {row["image_id"]: row for row in rows_of(tmp_path / "out")}
    assert rows["10/image_00010"]["label"] == 2
    assert rows["10/image_00010"]["captions"] == ["a photo of an iris"]
    assert any("numeric order" in note for note in manifest["notes"])


def test_flowers_without_names_get_those_of_the_dataset(tmp_path):
    for folder in ("1", "2", "10"):
        write(tmp_path / "flowers" / folder / f"image_{folder:0>5}.jpg", encoded_image(int(folder)))
    manifest = prepare("flowers", tmp_path / "flowers", tmp_path / "out")
    assert manifest["label_names"] == list(NAMES)
    assert {row["captions"][0] for row in rows_of(tmp_path / "out")} == {
        "a photo of a pink primrose",
        "a photo of a hard-leaved pocket orchid",
        "a photo of a globe thistle",
    }


def test_flowers_of_the_original_archive_with_caption_folders_and_class_lists(tmp_path):
    source = tmp_path / "flowers"
    for index, name in ((1, "class_00001"), (2, "class_00002")):
        write(source / "jpg" / f"image_{index:05d}.jpg", encoded_image(index))
        write(source / "text_c10" / name / f"image_{index:05d}.txt", f"flower {index}\nagain {index}\n")
    write(source / "trainvalclasses.txt", "class_00001\n")
    write(source / "testclasses.txt", "class_00002\n")
    prepare("flowers", source, tmp_path / "out")
    (test,) = rows_of(tmp_path / "out", "test")
    assert test["captions"] == ["flower 2", "again 2"] and test["label"] == 1


def test_faces_are_sampled_by_seed_and_the_choice_is_recorded(tmp_path):
    source = make_faces(tmp_path / "faces")
    options = [SourceOptions(seed=seed, num_images=6, num_test_images=2) for seed in (0, 0, 1)]
    manifests = [prepare("faces", source, tmp_path / str(index), value) for index, value in enumerate(options)]
    sampled = [[row["image_id"] for row in rows_of(tmp_path / str(index))] for index in range(3)]
    assert sampled[0] == sampled[1] != sampled[2] and len(sampled[0]) == 4
    assert manifests[2]["choices"] == {"seed": 1, "num_images": 6, "num_test_images": 2}
    fewer = prepare("faces", source, tmp_path / "fewer", SourceOptions())
    assert {name: split["rows"] for name, split in fewer["splits"].items()} == {"test": 2, "train": 8}
    assert any("10 usable faces instead of 10,000" in note for note in fewer["notes"])


def test_coco_joins_images_and_captions_and_counts_what_does_not_fit(tmp_path):
    source = make_coco(tmp_path / "coco")
    (source / "train2017/000000000002.jpg").unlink()
    manifest = prepare("coco", source, tmp_path / "out")
    (train,) = rows_of(tmp_path / "out")
    assert train["captions"] == [f"scene 1 seen {k}" for k in range(5)]
    assert len(rows_of(tmp_path / "out", "validation")) == 1
    assert skipped(manifest) == {"image listed in captions_train2017.json that is not there": 1}


def test_a_folder_takes_captions_from_rows_json_and_text(tmp_path):
    source = tmp_path / "folder"
    for name in ("train/rows.jpg", "train/json.png", "val/text.jpg", "train/alone.jpg"):
        write(source / name, encoded_image(kind="PNG" if name.endswith("png") else "JPEG"))
    rows = [
        {"file_name": "rows.jpg", "text": "one string"},
        {"file_name": "gone.jpg", "text": "x"},
        {"file_name": "../../x.jpg", "text": "x"},
        {"text": "x"},
    ]
    lines = [json.dumps(row) for row in rows]
    write(source / "train/metadata.jsonl", "\r\n".join([*lines, "{broken"]))
    write(source / "train/json.json", json.dumps({"captions": ["a", "b", "c"]}))
    write(source / "val/text.txt", "one\n\ntwo\n")
    manifest = prepare("folder", source, tmp_path / "out")
    assert [row["captions"] for row in rows_of(tmp_path / "out")] == [["a", "b", "c"], ["one string"]]
    assert rows_of(tmp_path / "out", "validation")[0]["captions"] == ["one", "two"]
    assert skipped(manifest) == {
        "image without captions or metadata row": 1,
        "row of metadata.jsonl whose image is not there": 1,
        "path in metadata.jsonl that leaves the source folder": 1,
        "row of metadata.jsonl without a file_name": 1,
        "metadata that is not valid JSON": 1,
        "empty caption": 1,
    }


def test_tar_files_are_read_in_place_and_a_cut_one_as_far_as_it_goes(tmp_path):
    source = tmp_path / "tars"
    members = {
        "a.jpg": encoded_image(1),
        "a.txt": b"first\nsecond",
        "b.jpg": encoded_image(2),
        "b.json": b'{"caption": "third"}',
    }
    make_tar(source / "train-0.tar", {**members, "c.txt": b"no image"})
    make_tar(source / "val-0.tar", members)
    cut = source / "train-1.tar"
    cut.write_bytes(make_tar(cut, members).read_bytes()[:1500])
    manifest = prepare("webdataset", source, tmp_path / "out")
    assert [row["captions"] for row in rows_of(tmp_path / "out")] == [["first", "second"], ["third"]]
    assert rows_of(tmp_path / "out", "validation")[0]["image"]["bytes"] == encoded_image(1)
    assert skipped(manifest)["captions without an image"] == 1


def test_synthetic_birds_need_no_source(tmp_path, capsys):
    arguments = ["--num_images", "20", "--output_dir", str(tmp_path / "out"), "--workers", "1"]
    assert main(["data", "prepare", "synthetic-birds", *arguments]) == 0
    assert "2 test, 20 train" in capsys.readouterr().out
    image = decode(rows_of(tmp_path / "out")[0]["image"]["bytes"])
    assert image.size == (64, 64)


# Real data, where it is there


@pytest.mark.skipif(not (REAL / "birds_subset").is_dir(), reason="the real subset is not next to the checkout")
def test_real_birds_are_prepared_and_what_is_missing_is_counted(tmp_path):
    manifest = prepare("birds", REAL / "birds_subset", tmp_path / "out")
    assert {name: split["rows"] for name, split in manifest["splits"].items()} == {"train": 162, "test": 120}
    assert skipped(manifest)["image listed in images.txt that is not there"] == 11_506
    assert any("195 of 200 classes" in note for note in manifest["notes"])
    assert len(manifest["label_names"]) == 200


@pytest.mark.skipif(not (REAL / "flowers_subset").is_dir(), reason="the real subset is not next to the checkout")
def test_real_flowers_get_their_names(tmp_path):
    manifest = prepare("flowers", REAL / "flowers_subset", tmp_path / "out")
    assert manifest["splits"]["train"]["rows"] == 60
    rows = rows_of(tmp_path / "out")
    assert rows[-1]["image_id"].startswith("77/") and manifest["label_names"][rows[-1]["label"]] == "passion flower"
