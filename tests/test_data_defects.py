"""One odd item in a raw dataset is skipped or repaired and counted; it never stops the rest.
Defects of images as such are in `test_data_prepare`, those of a whole kind of source in `test_data_sources`."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from ratlip_hf.cli.main import main
from ratlip_hf.data.images import decode, object_region, to_rgb
from ratlip_hf.data.manifest import read_manifest
from ratlip_hf.data.prepare.shards import Storage, prepare
from ratlip_hf.data.prepare.source_files import natural_key
from ratlip_hf.utils.errors import UserError
from raw_datasets import (
    encoded_image,
    make_birds,
    make_coco,
    make_faces,
    make_folder,
    make_tar,
    repaired,
    rows_of,
    skipped,
    write,
)


@pytest.mark.parametrize("box", ["nan 1 10 10", "0 0 inf 10", "1 1 0 10", "1 2 3", "a b c d"])
def test_boxes_that_are_none_are_left_empty(box, tmp_path):
    source = make_birds(tmp_path / "birds")
    table = source / "CUB_200_2011" / "bounding_boxes.txt"
    table.write_text(table.read_text().replace("5 10.0 5.0 20.0 30.0", f"5 {box}", 1))
    manifest = prepare("birds", source, tmp_path / "out")
    assert sum(repaired(manifest).values()) == 1
    boxes = [row["bbox"] for row in rows_of(tmp_path / "out") + rows_of(tmp_path / "out", "test")]
    assert boxes.count(None) == 1
    assert object_region((40, 30), [math.nan, 1, 10, 10], truncate=False) == (0, 0, 40, 30)


def test_links_do_not_lead_names_in_metadata_out_of_the_source(tmp_path):
    write(tmp_path / "elsewhere/s.jpg", encoded_image())
    source = make_birds(tmp_path / "birds")
    (source / "CUB_200_2011/images/link").symlink_to(tmp_path / "elsewhere")
    with (source / "CUB_200_2011/images.txt").open("a") as table:
        table.write("99 link/s.jpg\n")
    assert skipped(prepare("birds", source, tmp_path / "out"))["path in images.txt that leaves the source folder"] == 1


def test_text_that_cannot_be_written_is_repaired(tmp_path):
    source = make_folder(tmp_path / "source", count=2)
    write(source / "half.jpg", encoded_image(5))
    write(source / "half.json", '{"text": "half \\ud83d a\\u0000bird"}')
    (source / os.fsdecode(b"caf\xe9.jpg")).write_bytes(encoded_image(6))
    write(source / "wide.jpg", encoded_image(7))
    (source / "wide.txt").write_bytes("a wide bird".encode("utf-16"))
    manifest = prepare("folder", source, tmp_path / "out")
    captions = {row["image_id"]: row["captions"] for row in rows_of(tmp_path / "out")}
    assert captions["half"] == ["half a bird"] and captions["wide"] == ["a wide bird"]
    assert len(captions) == 4 and skipped(manifest) == {"image without captions or metadata row": 1}


@pytest.mark.parametrize("text", ["[" * 200_000, '{"text": ' + "9" * 5000 + "}", "{"])
def test_json_that_cannot_be_read_is_skipped(text, tmp_path):
    source = make_folder(tmp_path / "source", count=2)
    write(source / "a.jpg", encoded_image())
    write(source / "a.json", text)
    assert skipped(prepare("folder", source, tmp_path / "out"))["metadata that is not valid JSON"] == 1
    make_tar(
        tmp_path / "tars/a.tar",
        {"1.jpg": encoded_image(), "1.txt": b"fine", "2.jpg": encoded_image(), "2.json": text.encode()},
    )
    assert skipped(prepare("webdataset", tmp_path / "tars", tmp_path / "out2"))["metadata that is not valid JSON"] == 1


def test_odd_coco_entries_are_skipped(tmp_path):
    source = make_coco(tmp_path / "coco")
    path = source / "annotations/captions_train2017.json"
    content = json.loads(path.read_text())
    content["images"] += [{"id": 8, "file_name": None}, {"id": "x", "file_name": "n" * 300 + ".jpg"}, 3]
    content["annotations"] += [
        {"image_id": 1, "caption": None},
        {"image_id": 2},
        {"image_id": "77", "caption": "lost"},
    ]
    path.write_text(json.dumps(content))
    manifest = prepare("coco", source, tmp_path / "out")
    assert manifest["splits"]["train"]["rows"] == 2
    assert skipped(manifest) == {
        "entry of captions_train2017.json without id or file_name": 2,
        "entry of captions_train2017.json without image_id or caption": 2,
        "image listed in captions_train2017.json that is not there": 1,
        "captions in captions_train2017.json of an image that it does not list": 1,
    }


def test_an_image_too_narrow_to_be_scaled_is_skipped_before_memory_is_asked_for(tmp_path):
    source = make_folder(tmp_path / "source", count=2)
    write(source / "thin.png", encoded_image(size=(1, 60_000), kind="PNG"))
    write(source / "thin.txt", "a line")
    manifest = prepare("folder", source, tmp_path / "out", storage=Storage(size=304))
    assert skipped(manifest) == {"image too narrow for its shorter side to be stored at that size": 1}


def test_classes_of_the_same_name_are_numbered(tmp_path):
    source = tmp_path / "flowers"
    for number in (1, 2):
        write(source / f"{number}/image.jpg", encoded_image(number))
    write(source / "cat_to_name.json", '{"1": "rose", "2": "rose"}')
    manifest = prepare("flowers", source, tmp_path / "out")
    assert manifest["label_names"] == ["rose", "rose (2)"]
    rows = rows_of(tmp_path / "out")
    assert [(row["image_id"], row["label"], row["captions"]) for row in rows] == [
        ("1/image", 0, ["a photo of a rose"]),
        ("2/image", 1, ["a photo of a rose"]),
    ]


def test_flower_captions_in_a_flat_folder_are_no_class_and_pointers_no_labels(tmp_path):
    source = tmp_path / "flowers"
    write(source / "jpg/image_00001.jpg", encoded_image(1))
    write(source / "text/image_00001.txt", "a yellow flower")
    write(source / "imagelabels.npy", "version https://git-lfs.github.com/spec/v1\n")
    manifest = prepare("flowers", source, tmp_path / "out")
    assert manifest["label_names"] is None
    assert any("imagelabels.npy" in note for note in manifest["notes"])


def test_faces_of_the_same_number_are_sampled_once(tmp_path):
    source = make_faces(tmp_path / "faces", count=4)
    write(source / "CelebA-HQ-img/sub/1.jpg", encoded_image(9))
    prepare("faces", source, tmp_path / "out")
    rows = rows_of(tmp_path / "out") + rows_of(tmp_path / "out", "test")
    assert sorted(row["image_id"] for row in rows) == ["0", "1", "2", "3", "sub/1"]


def test_birds_listed_twice_are_kept_once(tmp_path):
    source = make_birds(tmp_path / "birds")
    table = source / "CUB_200_2011" / "images.txt"
    table.write_text(table.read_text() + table.read_text().splitlines()[4].replace("5 ", "95 ", 1) + "\n")
    assert (
        skipped(prepare("birds", source, tmp_path / "out"))["image with the name of another (but for the suffix)"] == 1
    )


def test_separators_of_unicode_do_not_cut_rows(tmp_path):
    source = tmp_path / "source"
    write(source / "a.jpg", encoded_image())
    write(
        source / "metadata.jsonl", '{"file_name": "a.jpg", "text": "a bird\N{LINE SEPARATOR}with\N{NEXT LINE}wings"}\n'
    )
    manifest = prepare("folder", source, tmp_path / "out")
    assert rows_of(tmp_path / "out")[0]["captions"] == ["a bird with wings"] and not skipped(manifest)


def test_natural_order_takes_digits_of_any_script_and_leaves_no_ties():
    assert sorted(["b10", "b2", "1²2", "B2", "b02"], key=natural_key) == ["1²2", "B2", "b02", "b2", "b10"]


@pytest.mark.slow
def test_the_manifest_does_not_depend_on_the_order_of_sets(tmp_path):
    source = make_birds(tmp_path / "birds")
    with (source / "CUB_200_2011/bounding_boxes.txt").open("a") as table:
        table.write("".join(f"{number} 1 1 5 5\n" for number in range(100, 120)))
    script = "import sys; from ratlip_hf.cli.main import main; sys.exit(main(sys.argv[1:]))"
    manifests = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", script, "data", "prepare", "birds", "--workers", "1"]
        command += ["--source", str(source), "--output_dir", str(tmp_path / seed)]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed})
        manifests.append((tmp_path / seed / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize("make", ["link", "dot"])
def test_a_result_that_could_not_be_renamed_into_place_is_refused_first(make, tmp_path, monkeypatch):
    source = make_folder(tmp_path / "source")
    (tmp_path / "real").mkdir()
    if make == "link":
        (tmp_path / "out").symlink_to(tmp_path / "real")
        with pytest.raises(UserError, match="link"):
            prepare("folder", source, tmp_path / "out")
    else:
        monkeypatch.chdir(tmp_path / "real")
        prepare("folder", source, type(source)("."))
        assert (tmp_path / "real" / "manifest.json").is_file()
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


@pytest.mark.parametrize(
    "content",
    [
        '{"kind": "folder", "splits": []}',
        '{"kind": "a", "splits": {"train": {"files": [{"path": "x"}]}}}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_manifest_is_one_line(content, tmp_path):
    write(tmp_path / "manifest.json", content)
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        read_manifest(tmp_path)


def test_images_that_xmp_says_to_turn_are_turned():
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    assert to_rgb(decode(encoded_image(size=(40, 30), xmp=packet.encode()))).size == (30, 40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--captions", "nowhere"], "--captions nowhere is not a folder or an archive"),
        (["--store_size", "²"], "--store_size"),
        (["--store_size", "9" * 50], "--store_size"),
    ],
)
def test_mistaken_options_are_one_line(arguments, message, tmp_path, capsys):
    source = make_folder(tmp_path / "source")
    command = ["data", "prepare", "folder", "--source", str(source), "--output_dir", str(tmp_path / "out"), *arguments]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_a_hub_out_of_reach_is_one_line(tmp_path, run_python):
    """In a process of its own, because the libraries read the address when they are imported."""
    prepare("folder", make_folder(tmp_path / "source"), tmp_path / "out")
    script = (
        "import contextlib, io, sys\nfrom ratlip_hf.cli.main import main\nerror = io.StringIO()\n"
        "with contextlib.redirect_stderr(error):\n    code = main(['data', 'push', sys.argv[1], 'a/b'])\n"
        "assert code == 2 and error.getvalue().count('\\n') == 1, error.getvalue()\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "x", "HF_HOME": str(tmp_path)}
    run_python(script, tmp_path / "out", env=environment)


def test_numbers_of_images_need_not_be_plain(tmp_path):
    source = make_birds(tmp_path / "birds")
    with (source / "CUB_200_2011/classes.txt").open("a") as table:
        table.write("² 004.Odd_bird\n")
    manifest = prepare("birds", source, tmp_path / "out")
    assert skipped(manifest)["line of classes.txt that is no number and value"] == 1
    assert np.isclose(sum(split["rows"] for split in manifest["splits"].values()), 12)
