"""`ratlip data prepare` on downloads as they come: archives in place, parent and doubled folders, the official files
of each dataset and the layouts in which others pass them on. Small stand-ins are made on the spot."""

import errno
import gzip
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

import raw_datasets
from ratlip_hf.cli.main import main
from ratlip_hf.data.prepare import shards, source_files
from ratlip_hf.data.prepare.importers.flowers import NAMES, read_mat
from ratlip_hf.data.prepare.shards import PreparationFailed, Storage, prepare
from ratlip_hf.data.prepare.source_dataset import SourceOptions
from ratlip_hf.data.prepare.source_files import open_source
from ratlip_hf.utils.errors import UserError
from raw_datasets import encoded_image, make_birds, make_coco, make_faces, mat_file, pack, repaired, rows_of, skipped
from raw_datasets import write as write_file


def rows(manifest: dict) -> dict[str, int]:
    return {name: split["rows"] for name, split in manifest["splits"].items()}


def checksums(manifest: dict) -> list[str]:
    return [file["sha256"] for split in manifest["splits"].values() for file in split["files"]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict:
    """What the unpacked "birds" folder gives."""
    folder = tmp_path_factory.mktemp("plain")
    return prepare("birds", make_birds(folder / "birds"), folder / "out")


# Archives in place


@pytest.mark.parametrize("suffix", [".tgz", ".tar", ".zip"])
def test_archives_give_what_their_unpacked_files_give(suffix, plain, tmp_path):
    birds = make_birds(tmp_path / "birds")
    pack(birds / "CUB_200_2011", tmp_path / f"downloads/CUB_200_2011{suffix}", "CUB_200_2011")
    pack(birds / "text", birds / "text.zip", "text")  # an archive in an archive
    pack(birds, tmp_path / "downloads/birds.zip", "birds")
    manifest = prepare("birds", tmp_path / "downloads", tmp_path / "out")
    assert checksums(manifest) == checksums(plain) and not manifest["skipped"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["downloads", "out"]


@pytest.mark.parametrize("suffix", [".tgz", ".tar", ".zip"])
def test_images_in_archives_travel_to_other_processes(suffix, tmp_path):
    archive = pack(raw_datasets.make_folder(tmp_path / "folder"), tmp_path / f"a{suffix}")
    source = open_source(archive, scratch=tmp_path / "scratch")
    assert pickle.loads(pickle.dumps(source.image("3.jpg"))).read() == encoded_image(3)


def test_one_archive_is_a_source_and_so_are_its_captions(plain, tmp_path):
    birds = make_birds(tmp_path / "birds")
    captions = pack(birds / "text", tmp_path / "cvpr2016_cub.tgz", "cvpr2016_cub/text_c10")
    cub = pack(birds / "CUB_200_2011", tmp_path / "CUB_200_2011.tgz", "CUB_200_2011")
    manifest = prepare("birds", cub, tmp_path / "out", SourceOptions(captions=captions))
    assert checksums(manifest) == checksums(plain) and "built-in" in manifest["splits_from"]
    assert manifest["source_files"]["read"]["--captions: cvpr2016_cub.tgz: cvpr2016_cub/text_c10/*.txt"] == 12


def test_an_archive_that_was_unpacked_beside_itself_counts_once(plain, tmp_path):
    birds = make_birds(tmp_path / "birds")
    copy = shutil.copytree(birds / "CUB_200_2011", tmp_path / "copy")
    write_file(copy / "images/001.Red_bird/Red_bird_0000.jpg", encoded_image(99))
    pack(copy, birds / "CUB_200_2011.tgz", "CUB_200_2011")
    manifest = prepare("birds", birds, tmp_path / "out")
    assert checksums(manifest) == checksums(plain)
    assert manifest["notes"] == ["17 files of CUB_200_2011.tgz are there already, and not read from it"]


@pytest.mark.parametrize("above", ["dataset", "CUB_200_2011", "my/own/copy"])
def test_files_are_found_below_a_parent_or_a_doubled_folder(above, plain, tmp_path):
    make_birds(tmp_path / "birds" / above)
    assert checksums(prepare("birds", tmp_path / "birds", tmp_path / "out")) == checksums(plain)


def test_the_screen_says_which_files_were_read_and_which_were_not(tmp_path, capsys):
    birds = make_birds(tmp_path / "birds")
    for part in range(3):
        write_file(birds / f"CUB_200_2011/parts/part_{part}.txt", "1 beak")
    pack(birds / "CUB_200_2011", birds / "CUB_200_2011.tgz", "CUB_200_2011")
    arguments = ["--source", str(birds), "--output_dir", str(tmp_path / "out"), "--workers", "1"]
    assert main(["data", "prepare", "birds", *arguments]) == 0
    read, unread = capsys.readouterr().out.splitlines()[-3:-1]
    assert "  read: " in read and "CUB_200_2011.tgz: CUB_200_2011/images/*.jpg (12 files)" in read
    assert "train/filenames.pickle" in read
    assert unread == "  left unread: CUB_200_2011.tgz: CUB_200_2011/parts/*.txt (3 files)"


def test_members_that_lead_out_links_and_what_is_hidden_are_no_files(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("../out.jpg", "/etc/out.jpg", "a/../../out.jpg", ".hidden/a.jpg", "./sound.jpg", "._sound.jpg"):
            tar.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for name in ("..\\out.jpg", "C:\\out.jpg", "__MACOSX/a.jpg", "in\\side.jpg"):
            archive.writestr(name, "")
        linked = zipfile.ZipInfo("link.png")
        linked.external_attr = 0o120777 << 16
        archive.writestr(linked, "/etc/passwd")
    source = open_source(tmp_path)
    assert source.files == ["in/side.jpg", "sound.jpg"]
    assert source.report.skipped["file in an archive whose name leads out of it"]["count"] == 5


def test_archives_that_are_damaged_or_no_archives_are_counted_and_the_rest_is_read(tmp_path, monkeypatch):
    folder = raw_datasets.make_folder(tmp_path / "folder", count=3)
    whole = pack(shutil.copytree(folder, tmp_path / "copy"), tmp_path / "whole.tgz").read_bytes()
    zipped = pack(shutil.copytree(folder, tmp_path / "copy"), tmp_path / "whole.zip").read_bytes()
    write_file(folder / "page.tgz", "<html>quota exceeded</html>")
    write_file(folder / "cut.tgz", whole[: len(whole) // 2])
    write_file(folder / "cut.zip", zipped[: len(zipped) // 2])
    bomb = write_file(folder / "bomb.tgz", gzip.compress(bytes(2**24)))
    monkeypatch.setattr(source_files, "_MOST_EXPANSION", 20)
    open_source(bomb, scratch=tmp_path / "scratch")
    assert (tmp_path / "scratch/0.archive").stat().st_size < 2**22
    manifest = prepare("folder", folder, tmp_path / "out")
    assert rows(manifest) == {"train": 3}
    assert sum(count for reason, count in skipped(manifest).items() if "cannot be read" in reason) >= 3
    assert skipped(manifest)["rest of an archive that grows more than 20-fold"] == 1


def test_a_damaged_member_of_a_zip_is_one_image_less(tmp_path):
    folder = raw_datasets.make_folder(tmp_path / "folder", count=3)
    image = (folder / "1.jpg").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_STORED) as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    content = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(content.replace(image[-40:], bytes(40), 1))
    assert rows(manifest := prepare("folder", tmp_path / "a.zip", tmp_path / "out")) == {"train": 2}
    assert sum(skipped(manifest).values()) == 1


def test_a_full_disk_stops_instead_of_leaving_files_out(tmp_path, monkeypatch):
    archive = pack(raw_datasets.make_folder(tmp_path / "folder"), tmp_path / "a.tgz")

    def full(path, mode="r"):
        if "w" in mode:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open(path, mode)

    monkeypatch.setattr(source_files, "open", full, raising=False)
    with pytest.raises(UserError, match=r"cannot write what a\.tgz holds to .*No space left"):
        prepare("folder", archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


def test_what_a_killed_run_has_decompressed_is_removed_and_what_is_not_ours_is_kept(tmp_path):
    archive = pack(raw_datasets.make_folder(tmp_path / "folder"), tmp_path / "a.tgz")
    write_file(tmp_path / ".out.unpacked/1.archive", "half")
    prepare("folder", archive, tmp_path / "out")
    assert not (tmp_path / ".out.unpacked").exists()
    mine = write_file(tmp_path / ".two.unpacked/thesis.tex", "mine")
    with pytest.raises(UserError, match="in the way"):
        prepare("folder", archive, tmp_path / "two")
    assert mine.read_text() == "mine"


def test_a_killed_run_on_archives_goes_on_where_it_was(tmp_path, monkeypatch):
    archive = pack(raw_datasets.make_folder(tmp_path / "folder", count=9), tmp_path / "a.tgz")
    written, real, storage = [], shards.write_shard, Storage(images_per_shard=3)

    def write_one(task):
        if written:
            raise KeyboardInterrupt
        written.append(task.path.name)
        return real(task)

    monkeypatch.setattr(shards, "write_shard", write_one)
    with pytest.raises(KeyboardInterrupt):
        prepare("folder", archive, tmp_path / "out", storage=storage)
    monkeypatch.setattr(shards, "write_shard", lambda task: written.append(task.path.name) or real(task))
    prepare("folder", archive, tmp_path / "out", storage=storage)
    assert sorted(written) == [f"train-{index:05d}.parquet" for index in range(3)]


# Birds


@pytest.mark.parametrize("how", ["names", "protocol 0"])
def test_pickled_names_with_the_line_ends_of_windows_still_split(how, plain, tmp_path):
    birds = make_birds(tmp_path / "birds", newline="\r\n")
    for split in ("train", "test"):
        path = birds / split / "filenames.pickle"
        names = pickle.loads(path.read_bytes())
        ended = pickle.dumps([f"{name}\r" for name in names], protocol=2)
        path.write_bytes(ended if how == "names" else path.read_bytes().replace(b"\n", b"\r\n"))
    manifest = prepare("birds", birds, tmp_path / "out")
    assert rows(manifest) == rows(plain) and "filenames.pickle of the source" in manifest["splits_from"]


def test_a_pickle_of_other_images_decides_nothing(tmp_path):
    birds = make_birds(tmp_path / "birds")
    for split in ("train", "test"):
        (birds / split / "filenames.pickle").write_bytes(pickle.dumps(["another/name"]))
    manifest = prepare("birds", birds, tmp_path / "out")
    assert rows(manifest) == {"test": 4, "train": 8} and any("names no image" in note for note in manifest["notes"])


@pytest.mark.parametrize(
    ("box", "words", "count"),
    [
        ("50 30 20 20", "reaches beyond its image", 1),
        ("-1 0 9 9", "reaches beyond", 1),
        ("60 0 9 9", "lies outside", 1),
        ("0 0 60 40", "box", 0),
    ],
)
def test_boxes_that_leave_their_image_are_counted(box, words, count, tmp_path):
    birds = make_birds(tmp_path / "birds")
    table = birds / "CUB_200_2011/bounding_boxes.txt"
    table.write_text(table.read_text().replace("5 10.0 5.0 20.0 30.0", f"5 {box}", 1))
    manifest = prepare("birds", birds, tmp_path / "out")
    assert sum(n for reason, n in repaired(manifest).items() if words in reason) == count


@pytest.mark.parametrize(("size", "count"), [(41, 3), (40, 0)])
def test_images_that_are_enlarged_are_counted(size, count, tmp_path):
    source = raw_datasets.make_folder(tmp_path / "folder", count=3)  # 60 x 40 pixels
    manifest = prepare("folder", source, tmp_path / "out", storage=Storage(size=size))
    assert repaired(manifest).get(f"image smaller than --store_size {size}, enlarged", 0) == count


@pytest.mark.parametrize("why", ["no captions", "no image"])
def test_a_failed_preparation_says_what_it_found(why, tmp_path, capsys):
    birds = make_birds(tmp_path / "birds")
    (birds / "CUB_200_2011/bounding_boxes.txt").unlink()
    if why == "no captions":
        shutil.rmtree(birds / "text")
    else:
        for path in (birds / "CUB_200_2011/images").rglob("*.jpg"):
            path.write_text("<html>")
    arguments = ["--source", str(birds), "--output_dir", str(tmp_path / "out"), "--workers", "1"]
    assert main(["data", "prepare", "birds", *arguments]) == 2
    out, error = capsys.readouterr()
    assert error.count("\n") == 1 and ("no captions below" in error or "12 x web page" in error)
    assert "note: no bounding_boxes.txt" in out and "  read: " in out
    assert [path.name for path in tmp_path.iterdir()] == ["birds"]


# Oxford-102


def make_official_flowers(root: Path, compressed: bool = True) -> Path:
    """Six flowers of classes 1, 77 and 102, as the download page has them."""
    for number in range(1, 7):
        write_file(root / f"new/jpg/image_{number:05d}.jpg", encoded_image(number))
    pack(root / "new", root / "102flowers.tgz")
    write_file(root / "imagelabels.mat", mat_file({"labels": [1, 1, 77, 77, 102, 102]}, compressed))
    sets = {"trnid": [1, 3], "valid": [5], "tstid": [2, 4, 6]}
    write_file(root / "setid.mat", mat_file(sets, compressed, ">"))
    return root


@pytest.mark.parametrize("compressed", [True, False])
def test_the_official_files_of_the_flowers_are_enough(compressed, tmp_path):
    manifest = prepare("flowers", make_official_flowers(tmp_path / "flowers", compressed), tmp_path / "out")
    assert rows(manifest) == {"train": 2, "validation": 1, "test": 3} and "setid.mat" in manifest["splits_from"]
    assert manifest["label_names"] == list(NAMES) and len(set(NAMES)) == 102
    (validation,) = rows_of(tmp_path / "out", "validation")
    assert validation["captions"] == ["a photo of a blackberry lily"] and validation["label"] == 101


def test_captions_and_class_lists_of_the_flowers_come_from_reeds_archive(tmp_path):
    source = make_official_flowers(tmp_path / "flowers")
    for number in range(1, 7):
        name = f"text_c10/class_{(1, 77, 102)[(number - 1) // 2]:05d}/image_{number:05d}.txt"
        write_file(source / "new" / name, f"flower {number}\n")
    write_file(source / "new/trainvalclasses.txt", "class_00001\r\nclass_00077\r\n")
    write_file(source / "new/testclasses.txt", "class_00102\r\n")
    pack(source / "new", source / "cvpr2016_flowers.tar", "cvpr2016_flowers")
    manifest = prepare("flowers", source, tmp_path / "out")
    assert rows(manifest) == {"test": 2, "train": 4} and not manifest["repaired"]
    assert [row["captions"] for row in rows_of(tmp_path / "out", "test")] == [["flower 5"], ["flower 6"]]
    official = prepare("flowers", source, tmp_path / "official", SourceOptions(split="official"))
    assert rows(official) == {"train": 2, "validation": 1, "test": 3}


@pytest.mark.parametrize("above", ["", "flower_data/flower_data/"])
def test_train_valid_and_test_folders_of_flowers_are_honoured(above, tmp_path):
    for index, place in enumerate(("train/1", "train/77", "valid/1", "test/77")):
        write_file(tmp_path / "flowers" / above / place / f"image_{index:05d}.jpg", encoded_image(index))
    manifest = prepare("flowers", tmp_path / "flowers", tmp_path / "out")
    assert rows(manifest) == {"test": 1, "train": 2, "validation": 1}
    assert rows_of(tmp_path / "out", "test")[0]["captions"] == ["a photo of a passion flower"]


def test_a_number_is_never_a_caption(tmp_path):
    write_file(tmp_path / "flowers/103/image_00001.jpg", encoded_image())
    write_file(tmp_path / "flowers/rose/image_00002.jpg", encoded_image())
    manifest = prepare("flowers", tmp_path / "flowers", tmp_path / "out")
    assert [row["captions"] for row in rows_of(tmp_path / "out")] == [["a photo of a rose"]]
    assert skipped(manifest) == {"image without captions or class": 1}


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 200, mat_file({"labels": [1]})[:150], b"x" * 126 + b"IM\x0f" + b"\0" * 9]
)
def test_what_is_no_mat_file_is_refused_or_empty(content):
    try:
        assert not read_mat(content)
    except ValueError as error:
        assert "MAT-file" in str(error)


# Faces


def test_faces_with_celeba_caption_its_split_and_masks(tmp_path):
    source = make_faces(tmp_path / "faces", count=8)
    (source / "text/celeba-caption").rename(source / "celeba_caption")
    images = source / "CelebA-HQ-img"
    for name in ("00003_hair.png", "00003_l_brow.png", "3.png"):
        write_file(images / name, encoded_image(kind="PNG"))
    write_file(source / "CelebAMask-HQ-mask-anno/0/00000_skin.png", encoded_image(kind="PNG"))
    pack(images, source / "CelebAMask-HQ.zip", "CelebAMask-HQ/CelebA-HQ-img")
    for split, numbers in (("train", range(5)), ("test", range(5, 8))):
        write_file(source / split / "filenames.pickle", pickle.dumps([str(number) for number in numbers]))
    options = SourceOptions(num_images=6, num_test_images=2)
    manifest = prepare("faces", source, tmp_path / "out", options)
    assert rows(manifest) == {"test": 2, "train": 4} and skipped(manifest) == {"mask beside faces": 3}
    assert all(int(row["image_id"]) >= 5 for row in rows_of(tmp_path / "out", "test"))
    assert all(int(row["image_id"]) < 5 for row in rows_of(tmp_path / "out"))
    assert "filenames.pickle" in manifest["splits_from"]


def test_faces_with_attributes_alone_name_the_script_that_makes_captions(tmp_path):
    source = make_faces(tmp_path / "faces")
    shutil.rmtree(source / "text")
    write_file(source / "CelebAMask-HQ-attribute-anno.txt", "10\nSmiling\n0.jpg 1\n")
    with pytest.raises(PreparationFailed, match=r"create_caption\.py .* makes them from CelebAMask-HQ-attribute-anno"):
        prepare("faces", source, tmp_path / "out")


# COCO


def add_coco_2014(source: Path, with_images: bool) -> None:
    for short, number in (("train", 7), ("val", 8)):
        name = f"COCO_{short}2014_{number:012d}.jpg"
        content = {"images": [{"id": number, "file_name": name}]}
        content["annotations"] = [{"image_id": number, "caption": f"scene {number}"}]
        write_file(source / f"annotations/captions_{short}2014.json", json.dumps(content))
        if with_images:
            write_file(source / f"{short}2014" / name, encoded_image(number))


@pytest.mark.parametrize("there", ["2017", "2014"])
def test_coco_uses_the_year_whose_images_are_there(there, tmp_path):
    source = make_coco(tmp_path / "coco")
    add_coco_2014(source, with_images=there == "2014")
    if there == "2014":
        shutil.rmtree(source / "train2017")
        shutil.rmtree(source / "val2017")
    for folder in [path for path in source.iterdir() if path.name != "annotations"]:
        pack(folder, source / f"{folder.name}.zip", folder.name)
    pack(source / "annotations", source / "annotations_trainval.zip", "annotations")
    manifest = prepare("coco", source, tmp_path / "out")
    assert rows(manifest) == {"train": 2 if there == "2017" else 1, "validation": 1} and not manifest["skipped"]
    assert manifest["choices"]["annotations"] == [f"captions_{short}{there}.json" for short in ("train", "val")]
    assert any(f"{there} is used" in note for note in manifest["notes"])


@pytest.mark.parametrize("split", ["pickled", "by name"])
def test_coco_as_attngan_has_it(split, tmp_path):
    names = [f"COCO_{part}2014_{number:012d}" for number, part in enumerate(("train", "train", "val"))]
    for index, name in enumerate(names):
        write_file(tmp_path / "coco/images" / f"{name}.jpg", encoded_image(index))
        write_file(tmp_path / "coco/text" / f"{name}.txt", f"scene {index}\nagain {index}\n")
    if split == "pickled":
        write_file(tmp_path / "coco/train/filenames.pickle", pickle.dumps(names[:1]))
        write_file(tmp_path / "coco/test/filenames.pickle", pickle.dumps(names[2:]))
    manifest = prepare("coco", tmp_path / "coco", tmp_path / "out")
    assert rows(manifest) == ({"test": 1, "train": 1} if split == "pickled" else {"train": 2, "validation": 1})
    assert rows_of(tmp_path / "out")[0]["captions"] == ["scene 0", "again 0"]


# One table of captions

TABLES = {
    "Flickr8k.token.txt": "a.jpg#0\tone, two\r\na.jpg#1\tthree\r\nb.jpg#0\tfour\r\ngone.jpg#0\tfive\r\n",
    "results_20130124.token": 'a.jpg#0\tone, two\na.jpg#1\tthree\nb.jpg#0\tfour\ngone.jpg#0\t"five\n',
    "captions.txt": 'image,caption\na.jpg,"one, two"\na.jpg,three\nb.jpg,four\ngone.jpg,five\n',
    "results.csv": "image_name| nr| comment\na.jpg| 0| one, two\na.jpg| 1| three\nb.jpg| 0| four\ngone.jpg| |0|x\n",
    "metadata.csv": '\ufefffile_name,wide,text\na.jpg,60,"one,\n two"\na.jpg,60,three\nb.jpg,60,four\ngone.jpg,60,x\n',
    "captions.tsv": "filename\tcaption\na.jpg\tone, two\na.jpg\tthree\nb.jpg\tfour\ngone.jpg\tfive\n",
}


@pytest.mark.parametrize("place", ["folder", "folder/Images", "elsewhere"])
@pytest.mark.parametrize("name", TABLES)
def test_a_folder_may_have_one_table_of_captions(name, place, tmp_path):
    for index, image in enumerate("ab"):
        write_file(tmp_path / place / f"{image}.jpg", encoded_image(index))
    write_file(tmp_path / "folder" / name, TABLES[name])
    options = SourceOptions(captions=None if place.startswith("folder") else tmp_path / "folder")
    manifest = prepare("folder", tmp_path / place.split("/")[0], tmp_path / "out", options)
    assert [row["captions"] for row in rows_of(tmp_path / "out")] == [["one, two", "three"], ["four"]]
    assert skipped(manifest) == {f"row of {name} whose image is not there": 1}


def test_a_table_whose_columns_have_no_names_is_not_guessed(tmp_path):
    source = raw_datasets.make_folder(tmp_path / "folder", count=2)
    write_file(source / "captions.csv", "0.jpg,a caption\n")
    manifest = prepare("folder", source, tmp_path / "out")
    assert any("captions.csv names no columns" in note for note in manifest["notes"])
    assert rows(manifest) == {"train": 2}


def test_captions_of_an_image_that_is_called_like_a_table_are_no_table(tmp_path):
    write_file(tmp_path / "folder/captions.jpg", encoded_image())
    write_file(tmp_path / "folder/captions.txt", "a wall of words\n")
    manifest = prepare("folder", tmp_path / "folder", tmp_path / "out")
    assert rows_of(tmp_path / "out")[0]["captions"] == ["a wall of words"] and not manifest["notes"]


def test_split_folders_are_found_below_a_parent(tmp_path):
    raw_datasets.make_folder(tmp_path / "folder/data/train", count=2)
    raw_datasets.make_folder(tmp_path / "folder/data/valid", count=1)
    assert rows(prepare("folder", tmp_path / "folder", tmp_path / "out")) == {"train": 2, "validation": 1}


def test_webdataset_reads_compressed_and_zipped_shards(tmp_path):
    for index, suffix in enumerate((".tgz", ".tar", ".zip")):
        folder = raw_datasets.make_folder(tmp_path / "folder", count=2)
        pack(folder, tmp_path / f"shards/train-{index}{suffix}")
    manifest = prepare("webdataset", tmp_path / "shards", tmp_path / "out")
    assert rows(manifest) == {"train": 6}
    assert {row["image_id"] for row in rows_of(tmp_path / "out")} >= {"train-0/0", "train-2/1"}
