"""`ratlip data prepare`, whatever the source: defects of images and captions, storage, resuming, the command.
Datasets are made on the spot."""

import hashlib
import io
import json
import multiprocessing
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub import DatasetCard
from PIL import ExifTags, Image

from ratlip_hf.cli.main import main
from ratlip_hf.data.images import BadImage, decode, open_image, store, to_rgb, turn_box
from ratlip_hf.data.prepare import shards
from ratlip_hf.data.prepare.importers import KINDS, load_importer
from ratlip_hf.data.prepare.shards import Storage, prepare
from ratlip_hf.data.read.transforms import frame
from ratlip_hf.utils.errors import UserError
from raw_datasets import encoded_image, make_birds, make_folder, repaired, rows_of, skipped, turned, write

# Defects of images and captions

DEFECTS = {
    "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "web page instead of an image"),
    "text.jpg": (b"Sorry, this photo is no longer available.\n", "text instead of an image"),
    "lfs.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
    "annex.jpg": (b"/annex/objects/SHA256E-s1--00.jpg\n", "git-annex pointer"),
    "empty.jpg": (b"", "empty file"),
    "cut.jpg": (encoded_image(size=(300, 300))[:-600], "damaged or cut image"),
    "unknown.jpg": (bytes(range(256)) * 4, "no known image format"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_files_that_are_no_images_are_skipped_with_their_reason(name, tmp_path):
    content, reason = DEFECTS[name]
    source = make_folder(tmp_path / "folder", count=2)
    write(source / name, content)
    write((source / name).with_suffix(".txt"), "a caption")
    manifest = prepare("folder", source, tmp_path / "out")
    ((found, count),) = skipped(manifest).items()
    assert reason in found and count == 1
    assert manifest["splits"]["train"]["rows"] == 2


def test_an_image_that_claims_to_be_enormous_is_refused_before_it_is_decoded():
    header = bytearray(encoded_image(kind="PNG"))
    header[16:24] = (60_000).to_bytes(4) + (60_000).to_bytes(4)
    with pytest.raises(BadImage, match=r"megapixels|no known|damaged"):
        decode(bytes(header))
    with pytest.raises(BadImage, match="more than 64 megapixels"):
        decode(encoded_image(size=(9000, 8000), mode="1", kind="PNG"))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_every_mode_is_kept_counted_and_seen_as_rgb(mode, tmp_path):
    source = make_folder(tmp_path / "folder", count=1)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    name = "odd.jpg" if mode == "CMYK" else "odd.png"
    write(source / name, encoded_image(mode=mode, kind=kind))
    write(source / "odd.txt", "an odd image")
    for size in (None, 32):
        manifest = prepare("folder", source, tmp_path / f"out{size}", storage=Storage(size))
        assert manifest["splits"]["train"]["rows"] == 2
        assert list(repaired(manifest)) == [f"image in mode {mode}, seen as RGB"]
        assert to_rgb(decode(rows_of(tmp_path / f"out{size}")[1]["image"]["bytes"])).mode == "RGB"


def test_transparent_parts_are_white_and_16_bit_grey_is_scaled():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0])
    palette.info["transparency"] = 0
    assert to_rgb(clear).getpixel((0, 0)) == to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)
    grey = Image.fromarray(np.full((4, 4), 32768, np.uint16))
    assert to_rgb(grey).getpixel((0, 0))[0] in (127, 128)


def test_exif_rotation_is_applied_to_the_image_and_to_its_box(tmp_path):
    source = make_birds(tmp_path / "birds", per_class=1)
    write(source / "CUB_200_2011/images/002.Green_bird/Green_bird_0000.jpg", turned(6))  # stored 60 x 40, seen 40 x 60
    manifest = prepare("birds", source, tmp_path / "out", storage=Storage(size=20))
    row = rows_of(tmp_path / "out")[0]
    assert decode(row["image"]["bytes"]).size == (20, 30)
    assert row["bbox"] == pytest.approx([(40 - 5 - 30) / 2, 10 / 2, 30 / 2, 20 / 2])
    assert repaired(manifest) == {"image that EXIF says to turn or mirror": 1}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_as_pillow_turns_images(orientation):
    image = Image.new("RGB", (60, 40))
    image.paste((255, 255, 255), (10, 5, 30, 35))
    image.getexif()[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=image.getexif())
    seen = to_rgb(decode(buffer.getvalue()))
    left, top, width, height = turn_box((10, 5, 20, 30), (60, 40), orientation)
    assert seen.getbbox() == (left, top, left + width, top + height)


def test_captions_are_cleaned_and_every_change_is_counted(tmp_path):
    source = make_folder(tmp_path / "folder", count=1)
    write(source / "a.jpg", encoded_image(1))
    write(source / "a.txt", "\ufeffa  red\tbird \r\na red bird\r\n\r\na bird\ufffds wing\r\n")
    write(source / "b.jpg", encoded_image(2))
    write(source / "b.txt", "caf\xe9 bird".encode("cp1252"))
    write(source / "c.jpg", encoded_image(3))
    write(source / "c.txt", "\n \n")
    manifest = prepare("folder", source, tmp_path / "out")
    captions = {row["image_id"]: row["captions"] for row in rows_of(tmp_path / "out")}
    assert captions["a"] == ["a red bird", "a bird s wing"]
    assert captions["b"] == ["caf\xe9 bird"]
    assert "c" not in captions
    assert skipped(manifest)["caption that repeats another one of its image"] == 1
    assert skipped(manifest)["image without captions or metadata row"] == 1
    assert repaired(manifest) == {
        "caption with U+FFFD, which became a space": 1,
        "text that is not UTF-8, read as Windows-1252": 1,
    }


@pytest.mark.parametrize("count", [1, 3, 10])
def test_any_number_of_captions_is_kept(count, tmp_path):
    prepare("folder", make_folder(tmp_path / "folder", captions=count), tmp_path / "out")
    assert {len(row["captions"]) for row in rows_of(tmp_path / "out")} == {count}


# Storage, shards, resuming


def test_store_size_scales_the_shorter_side_uncropped_and_the_box_with_it(tmp_path):
    prepare("birds", make_birds(tmp_path / "birds"), tmp_path / "out", storage=Storage(size=80, quality=95))
    row = rows_of(tmp_path / "out")[0]
    image = decode(row["image"]["bytes"])
    assert (image.format, image.size) == ("JPEG", (120, 80))
    assert row["bbox"] == [20, 10, 40, 60]
    assert "shorter side 80 px, JPEG of quality 95" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("turn", [1, 6])
def test_store_crop_keeps_what_training_would_crop_to_and_training_sees_the_same(turn, tmp_path):
    box = (40, 20, 40, 30)  # a part of 60 x 60 pixels around (60, 35), cut at no edge
    y, x = np.mgrid[:90, :140]
    photo = Image.fromarray(np.stack([x, y * 2, (x + y) // 2], axis=-1).astype(np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    buffer = io.BytesIO()
    photo.save(buffer, "PNG", exif=exif)
    image = decode(buffer.getvalue())
    upright = turn_box(box, image.size, turn)
    stored = store(buffer.getvalue(), image, 38, 95, upright)
    part = open_image(stored.content)
    assert part.size == (38, 38) and stored.scale == 38 / 60
    now, before = frame(part, 32), frame(open_image(buffer.getvalue()), 32, list(upright))
    assert np.abs(now.astype(int) - before).max() <= 6
    random = frame(part, 32, rng=np.random.default_rng(0))
    assert any(
        np.array_equal(random, np.asarray(part)[top : top + 32, left : left + 32])
        for top in range(7)
        for left in range(7)
    )


def test_store_crop_leaves_no_box_and_says_so(tmp_path):
    storage = Storage(size=38, crop=True)
    manifest = prepare("birds", make_birds(tmp_path / "birds"), tmp_path / "out", storage=storage)
    assert all(row["bbox"] is None for row in rows_of(tmp_path / "out"))
    assert min(decode(rows_of(tmp_path / "out")[0]["image"]["bytes"]).size) == 38
    assert "only what training crops to around a box" in (tmp_path / "out/README.md").read_text()
    assert manifest["storage"]["crop"] is True
    with pytest.raises(UserError, match="--store_crop needs a --store_size"):
        Storage(crop=True)


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("method", [None, "fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_the_same_input_gives_the_same_bytes_whoever_writes_them(method, tmp_path, monkeypatch):
    if method:  # instead of the fork server
        monkeypatch.setattr(shards, "_clean_context", lambda: multiprocessing.get_context(method))
    source = make_folder(tmp_path / "folder", count=9)
    storage = Storage(images_per_shard=4)
    prepare("folder", source, tmp_path / "one", storage=storage, workers=1)
    prepare("folder", source, tmp_path / "two", storage=storage, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(list((tmp_path / "one/data").iterdir())) == 3


def test_a_killed_run_leaves_no_result_and_goes_on_where_it_was(tmp_path, monkeypatch):
    source, storage = make_folder(tmp_path / "folder", count=9), Storage(images_per_shard=3)
    prepare("folder", source, tmp_path / "whole", storage=storage)
    written, real = [], shards.write_shard

    def write_two(task):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(task.path.name)
        return real(task)

    monkeypatch.setattr(shards, "write_shard", write_two)
    with pytest.raises(KeyboardInterrupt):
        prepare("folder", source, tmp_path / "out", storage=storage)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(shards, "write_shard", lambda task: written.append(task.path.name) or real(task))
    prepare("folder", source, tmp_path / "out", storage=storage)
    assert sorted(written) == [f"train-{index:05d}.parquet" for index in range(3)]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "out", "whole"]


def test_shards_of_another_plan_are_not_taken_over(tmp_path, monkeypatch):
    source = make_folder(tmp_path / "folder", count=4)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_name_shards", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare("folder", source, tmp_path / "out", storage=Storage(images_per_shard=2))
    write(source / "0.jpg", encoded_image(99, size=(80, 80)))
    prepare("folder", source, tmp_path / "out", storage=Storage(images_per_shard=2))
    assert decode(rows_of(tmp_path / "out")[0]["image"]["bytes"]).size == (80, 80)


def test_manifest_and_card_say_what_is_there(tmp_path):
    source = make_folder(tmp_path / "folder", count=5)
    write(source / "page.jpg", "<html>")
    write(source / "page.txt", "a page")
    prepare("folder", source, tmp_path / "out", storage=Storage(images_per_shard=2))
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    for file in manifest["splits"]["train"]["files"]:
        content = (tmp_path / "out" / file["path"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        assert file["sha256"] in (tmp_path / "out/README.md").read_text()
    card = DatasetCard.load(tmp_path / "out/README.md")
    assert card.data.license == "unknown" and card.data.task_categories == ["text-to-image"]
    assert "web page instead of an image" in card.text


def test_a_dataset_is_not_mistaken_for_another_at_the_same_place(tmp_path):
    """`datasets` caches by name and card: datasets of equal shape must differ in the card."""
    seen = []
    for name in ("red", "tan"):
        write(tmp_path / name / "a.jpg", encoded_image())
        write(tmp_path / name / "a.txt", f"a {name} bird")
        prepare("folder", tmp_path / name, tmp_path / "out")
        seen += datasets.load_dataset(str(tmp_path / "out"), split="train")["captions"]
        shutil.rmtree(tmp_path / "out")
    assert seen == [["a red bird"], ["a tan bird"]]


def test_a_shard_without_any_usable_image_leaves_no_gap(tmp_path):
    source = make_folder(tmp_path / "folder", count=3)
    write(source / "1.jpg", "<html>")
    manifest = prepare("folder", source, tmp_path / "out", storage=Storage(images_per_shard=1))
    assert [file["path"][-23:] for file in manifest["splits"]["train"]["files"]] == [
        "in-00000-of-00002.parquet"[-23:],
        "in-00001-of-00002.parquet"[-23:],
    ]
    assert len(datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=True).take(5).to_list()) == 2


# What processes import

PRELOAD = """
import sys
from ratlip_hf.data.prepare import shards
shards._clean_context()
import multiprocessing.forkserver as server
for name in server._forkserver._preload_modules + ["ratlip_hf.data.prepare.source_files"]:
    __import__(name)
heavy = {"torch", "transformers", "diffusers", "datasets"} & set(sys.modules)
assert not heavy, heavy
"""


def test_a_process_that_writes_shards_imports_no_heavy_library(run_python):
    """What the fork server loads for it, and what unpacking a record of an archive loads."""
    run_python(PRELOAD)


def test_listing_the_kinds_imports_no_importer(run_python):
    run_python(
        "import argparse, sys\nfrom ratlip_hf.cli import data\ndata.add_arguments(argparse.ArgumentParser())\n"
        "assert not {'numpy', 'datasets', 'ratlip_hf.data.prepare.importers.birds'} & set(sys.modules)\n"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_an_importer(kind):
    read, origin = load_importer(kind)
    assert callable(read) and origin.license


# Mistakes


def test_nothing_useful_is_exit_code_2_with_the_reasons_and_nothing_written(tmp_path, capsys):
    write(tmp_path / "folder/a.jpg", "<html>")
    write(tmp_path / "folder/a.txt", "a page")
    arguments = [
        "data",
        "prepare",
        "folder",
        "--source",
        str(tmp_path / "folder"),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert main([*arguments, "--workers", "1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "1 x web page instead of an image" in error
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["birds", "--source", "no/where"], "--source no/where is not a folder or an archive"),
        (["birds"], "--source is needed"),
        (["fish", "--source", "."], "kind must be one of birds"),
        (["folder", "--source", ".", "--store_size", "big"], "--store_size"),
        (["folder", "--source", ".", "--store_size", "4"], "--store_size"),
        (["folder", "--source", ".", "--quality", "0"], "--quality"),
        (["folder", "--source", ".", "--workers", "0"], "--workers"),
        (["folder", "--source", ".", "--images_per_shard", "0"], "--images_per_shard"),
        (["faces", "--source", ".", "--num_test_images", "10000"], "--num_test_images must lie in [0, 10000)"),
        (["synthetic-birds", "--num_images", "0"], "--num_images"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "prepare", *arguments, "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["birds", "flowers", "faces", "coco", "folder", "webdataset"])
def test_an_empty_source_says_where_it_was_searched(kind, tmp_path):
    (tmp_path / "source").mkdir()
    with pytest.raises(UserError, match=r"^(no |.* not found)"):
        prepare(kind, tmp_path / "source", tmp_path / "out")


def test_an_existing_result_is_not_touched(tmp_path):
    write(tmp_path / "out/mine.txt", "keep")
    with pytest.raises(UserError, match="exists already"):
        prepare("folder", make_folder(tmp_path / "folder"), tmp_path / "out")
    assert contents(tmp_path / "out") == {"mine.txt": b"keep"}
