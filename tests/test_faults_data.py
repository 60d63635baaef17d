"""Faults of datasets: what lies in the way of preparing, archives and captions that claim any size, shards that differ
from the manifest, rows of other kinds, publishing, evaluating folders. Names are those of docs/reliability.md."""

import errno
import io
import json
import os
import pickle
import tarfile
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from ratlip_hf.cli.data import checked_screen
from ratlip_hf.cli.main import main
from ratlip_hf.data.prepare import raw_files, shards, source_files
from ratlip_hf.data.prepare.check import check
from ratlip_hf.data.prepare.importers import load_importer
from ratlip_hf.data.prepare.publish import _problems, push
from ratlip_hf.data.prepare.shards import Storage, prepare
from ratlip_hf.data.prepare.source_dataset import Report, SourceOptions
from ratlip_hf.data.read.embeddings import StoredEmbeddings, embed_captions
from ratlip_hf.data.read.rows import load_captioned
from ratlip_hf.evaluation.inputs import Folder
from ratlip_hf.evaluation.records import ScoreRecord, append_record, read_records
from ratlip_hf.utils.errors import UserError
from raw_datasets import encoded_image, make_folder, skipped, write


@pytest.fixture
def prepared(tmp_path) -> Path:
    prepare("folder", make_folder(tmp_path / "raw", 6), tmp_path / "out", storage=Storage(images_per_shard=3))
    return tmp_path / "out"


def shard_of(folder: Path) -> Path:
    return sorted((folder / "data").iterdir())[0]


def rewrite(shard: Path, change) -> None:
    table = pyarrow.parquet.read_table(shard)
    pyarrow.parquet.write_table(change(table), shard)


def with_column(name: str, values) -> object:
    def change(table: pyarrow.Table) -> pyarrow.Table:
        return table.set_column(table.column_names.index(name), name, pyarrow.array(values))

    return change


def encode(captions):
    import torch

    return torch.zeros(len(captions), 2)


class TestPreparing:
    def test_what_no_preparation_has_left_is_not_deleted(self, tmp_path):  # C5
        mine = make_folder(tmp_path / ".out.partial", 2)
        with pytest.raises(UserError, match="lies in"):
            prepare("folder", mine, tmp_path / "out")
        with pytest.raises(UserError, match="in the way"):
            prepare("folder", make_folder(tmp_path / "raw", 2), tmp_path / "out")
        (mine / "plan.json").write_text('"mine"')
        with pytest.raises(UserError, match="in the way"):
            prepare("folder", tmp_path / "raw", tmp_path / "out")
        assert sum(path.suffix == ".jpg" for path in mine.iterdir()) == 2

    def test_a_damaged_plan_or_note_of_a_killed_run_is_made_anew(self, tmp_path, monkeypatch):
        source = make_folder(tmp_path / "raw", 6)
        working, storage = tmp_path / ".out.partial", Storage(images_per_shard=2)
        for damaged in ("plan.json", "train-00000.json"):
            monkeypatch.setattr(shards, "_name_shards", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                prepare("folder", source, tmp_path / "out", storage=storage)
            monkeypatch.undo()
            (working / damaged).write_text('{"rows": "x"')
        assert prepare("folder", source, tmp_path / "out", storage=storage)["splits"]["train"]["rows"] == 6

    def test_shards_and_groups_end_with_their_bytes(self, tmp_path, monkeypatch):  # H1
        size = len(encoded_image(0))
        monkeypatch.setattr(shards, "_SHARD_BYTES", 4 * size + 50)
        monkeypatch.setattr(shards, "_GROUP_BYTES", 2 * size + 50)
        manifest = prepare("folder", make_folder(tmp_path / "raw", 10), tmp_path / "out")
        assert [file["rows"] for file in manifest["splits"]["train"]["files"]] == [4, 4, 2]
        with pyarrow.parquet.ParquetFile(shard_of(tmp_path / "out")) as file:
            assert file.num_row_groups == 2
        assert not check(tmp_path / "out")["problems"]

    def test_an_image_of_gigabytes_is_left_out_unread(self, tmp_path):
        source = make_folder(tmp_path / "raw", 1)
        with open(source / "huge.jpg", "wb") as file:
            file.truncate(2**33)
        write(source / "huge.txt", "a caption")
        assert "larger than" in next(iter(skipped(prepare("folder", source, tmp_path / "out"))))

    def test_a_file_that_cannot_be_read_is_counted_by_name(self, tmp_path, monkeypatch):
        source, read = make_folder(tmp_path / "raw", 3), source_files.read_bytes

        def failing(path):
            if Path(path).name == "image_1.txt" or sorted(source.glob("*.txt"))[1] == Path(path):
                raise OSError(errno.EIO, "Input/output error")
            return read(path)

        monkeypatch.setattr(source_files, "read_bytes", failing)
        found = skipped(prepare("folder", source, tmp_path / "out"))
        assert "captions that cannot be read (Input/output error)" in found

    def test_captions_of_one_image_take_no_square_of_their_number(self):  # H5
        start = time.monotonic()
        assert len(raw_files.clean_captions([f"caption {n}" for n in range(80_000)], "x", Report())) == 80_000
        assert len(raw_files.distinct_names(["same"] * 5_000, Report())) == 5_000
        assert time.monotonic() - start < 10

    def test_captions_in_utf_32(self):
        for encoding in ("utf-32", "utf-16", "utf-8-sig"):
            assert raw_files.decode_text("a réd bird".encode(encoding), "x", Report()) == "a réd bird"

    @pytest.mark.parametrize("kind", ["folder", "webdataset"])
    def test_pipes_and_devices_are_no_files(self, kind, tmp_path):  # H11
        source = make_folder(tmp_path / "raw", 1)
        for name in ("a.jpg", "a.tar", "metadata.jsonl"):
            os.mkfifo(source / name)
        (source / "b.tar").symlink_to("/dev/zero")
        if kind == "webdataset":
            with pytest.raises(UserError, match=r"no \.tar"):
                prepare(kind, source, tmp_path / "out")
        else:
            (source / "metadata.jsonl").unlink()
            assert prepare(kind, source, tmp_path / "out")["splits"]["train"]["rows"] == 1

    def test_a_pipe_is_no_file_of_a_source(self, tmp_path):  # H11
        os.mkfifo(tmp_path / "pipe")
        source = source_files.open_source(tmp_path)
        assert not source.files and sum(entry["count"] for entry in source.report.skipped.values()) == 1


class TestArchives:
    def index(self, tmp_path):
        return source_files.open_source(tmp_path, apart=True)

    def test_a_header_that_claims_gigabytes_is_not_read(self, tmp_path):  # H4
        header = tarfile.TarInfo("x")
        header.type, header.size = tarfile.XHDTYPE, 10 * 2**30
        write(tmp_path / "a.tar", header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        assert "claims" in next(iter(self.index(tmp_path).report.skipped))

    def test_a_member_with_holes_is_not_read(self, tmp_path):
        # GNU's old form: type S, one piece at 0, and a real size of 50 GB.
        header = bytearray(tarfile.TarInfo("a.txt").tobuf(tarfile.GNU_FORMAT))
        header[156:157] = b"S"
        header[386:410] = b"%011o\0%011o\0" % (0, 0)
        header[483:495] = tarfile.itn(50 * 10**9, 12, tarfile.GNU_FORMAT)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        write(tmp_path / "a.tar", bytes(header) + bytes(1024))
        assert any("holes" in reason or "cannot be read" in reason for reason in self.index(tmp_path).report.skipped)

    def test_whole_archives_are_read_as_before(self, tmp_path):
        with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for name, content in (("é" * 120 + ".jpg", encoded_image(1)), ("é" * 120 + ".txt", b"a caption")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        (record,) = load_importer("webdataset")[0](self.index(tmp_path), SourceOptions()).records
        assert record.captions == ("a caption",) and record.image.read() == encoded_image(1)


class TestChecksums:  # C10
    def test_captions_changed_under_the_manifest_are_not_served(self, prepared):
        embed_captions(prepared, encode, "a" * 64)
        assert load_captioned(str(prepared), "train") and StoredEmbeddings(prepared, "train", "a" * 64)
        rewrite(shard_of(prepared), with_column("captions", [["another"]] * 3))
        for use in (
            lambda: StoredEmbeddings(prepared, "train", "a" * 64),
            lambda: load_captioned(str(prepared), "train"),
            lambda: embed_captions(prepared, encode, "a" * 64),
            lambda: push(prepared, "ada/birds"),
        ):
            with pytest.raises(UserError, match="differs from its checksum"):
                use()

    def test_a_table_reopens_its_file_in_another_process(self, prepared):
        embed_captions(prepared, encode, "a" * 64)
        table = StoredEmbeddings(prepared, "train", "a" * 64)
        packed = pickle.dumps(table)
        assert len(packed) < 1000
        assert pickle.loads(packed).of(0, 0).equal(table.of(0, 0))

    def test_arrays_that_do_not_belong_together(self, prepared):
        (place,) = embed_captions(prepared, encode, "a" * 64)
        np.save(place / "starts.npy", np.array([0, 1]))
        with pytest.raises(UserError, match="run ratlip data embed"):
            StoredEmbeddings(prepared, "train", "a" * 64)


class TestRowsOfOtherKinds:
    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda table: table.drop(["image_id"]), "row without an image_id"),
            (with_column("captions", [[1], [2], [3]]), "captions of another kind"),
            (with_column("captions", ["a", "b", "c"]), "captions of another kind"),
            (with_column("image", ["a", "b", "c"]), "image of another kind"),
            (with_column("image_id", [1, 2, 3]), "row without an image_id"),
        ],
    )
    def test_check_counts_them(self, change, problem, prepared):
        rewrite(shard_of(prepared), change)
        result = check(prepared)
        assert any(problem in found for found in result["problems"])
        assert result["splits"]["train"]["images"] == 6

    def test_embed_names_a_row_without_captions(self, prepared, capsys):
        shard = shard_of(prepared)
        rewrite(shard, with_column("captions", [["a"], None, ["b"]]))
        manifest = json.loads((prepared / "manifest.json").read_text())
        manifest["splits"]["train"]["files"][0]["sha256"] = shards.file_sha256(shard)
        (prepared / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match="row 1 of the shard"):
            embed_captions(prepared, encode, "a" * 64)

    @pytest.mark.parametrize("path", ["../secret", "/etc/passwd", 5, None])
    def test_a_manifest_that_points_elsewhere(self, path, prepared):
        manifest = json.loads((prepared / "manifest.json").read_text())
        manifest["splits"]["train"]["files"][0]["path"] = path
        (prepared / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match="damaged"):
            check(prepared)

    def test_names_reach_terminal_and_card_escaped(self, prepared):
        problems = {"x\x1b[2J": {"count": 1, "examples": ["y\x1b[1A\nwritten"]}}
        screen = checked_screen({"folder": "f", "kind": "k\x1b", "splits": {}, "problems": problems})
        assert "\x1b" not in screen and screen.count("\n") == 1
        notes = ["a *b* <script>\x1b", "plain words, 12"]
        lines = _problems({"skipped": {}, "repaired": {}, "notes": notes}).splitlines()
        assert lines == ["* a \\*b\\* &lt;script&gt;\\\\x1b", "* plain words, 12"]


class TestPublishing:  # H9
    @pytest.fixture
    def sent(self, monkeypatch):
        calls = []
        monkeypatch.setattr("ratlip_hf.data.prepare.publish.HfApi.create_repo", lambda *_, **__: None)
        monkeypatch.setattr(
            "ratlip_hf.data.prepare.publish.HfApi.upload_folder", lambda *_, **given: calls.append(given)
        )
        return calls

    def test_only_what_the_manifest_names_is_sent(self, prepared, sent):
        from huggingface_hub.utils import filter_repo_objects

        (prepared / ".env").write_text("TOKEN=secret")
        (prepared / "data" / "extra.parquet").write_text("x")
        push(prepared, "ada/birds")
        there = [path.relative_to(prepared).as_posix() for path in prepared.rglob("*") if path.is_file()]
        found = set(filter_repo_objects(there, allow_patterns=sent[0]["allow_patterns"]))
        assert found == {"README.md", "manifest.json"} | {
            f"data/{path.name}" for path in (prepared / "data").glob("train*")
        }

    @pytest.mark.parametrize("name", ["README.md", "data"])
    def test_what_a_link_points_to_is_not_sent(self, name, prepared, sent):
        (prepared / name).rename(prepared.parent / "elsewhere")
        (prepared / name).symlink_to(prepared.parent / "elsewhere")
        with pytest.raises(UserError, match="is a link"):
            push(prepared, "ada/birds")
        assert not sent


class TestEvaluating:
    @pytest.fixture
    def images(self, tmp_path) -> Path:
        for index in range(5):
            write(tmp_path / "i" / f"{index}.png", encoded_image(index, (8, 8), kind="PNG"))
        return tmp_path / "i"

    @pytest.mark.parametrize(
        "line",
        [
            '{"file": 5, "prompt": "a"}',
            '{"file": "0.png", "prompt": 3}',
            "[" * 100_000,
            '"x"',
            '{"file": "../i/0.png", "prompt": "a"}',
        ],
    )
    def test_half_formed_manifests(self, line, images):
        (images / "manifest.jsonl").write_text(line + "\n")
        with pytest.raises(UserError):
            Folder(images)

    def test_large_images_are_read_few_at_a_time(self, images, tmp_path):  # H6
        assert Folder(images).most_at_once() > 10_000
        Image.new("RGB", (4000, 3000)).save(tmp_path / "i" / "0.png")
        assert Folder(images).most_at_once() == 1

    @pytest.mark.parametrize(
        "changes",
        [
            {"protocol": 3},
            {"protocol": {"name": "p", "num_real": "x", "num_fake": 1}},
            {"scores": {"a": 3}},
            {"scores": {"a": {"value": "x"}}},
            {"scores": 5},
            {"candidate": 5},
            {"more": 1},
        ],
    )
    def test_half_formed_records(self, changes, tmp_path, capsys):
        protocol = {"name": "p", "num_real": 1, "num_fake": 1}
        record = {"protocol": protocol, "candidate": {}, "scores": {"a": {"value": 1.0}}}
        (tmp_path / "r.jsonl").write_text(json.dumps({**record, **changes}) + "\n")
        with pytest.raises(ValueError, match="line 1"):
            read_records(tmp_path / "r.jsonl")
        assert main(["evaluate", "--compare", *2 * [str(tmp_path / "r.jsonl")]]) == 2
        assert capsys.readouterr().err.count("\n") == 1

    @pytest.mark.parametrize("line", ["[]", "3", "[" * 100_000, "{"])
    def test_lines_that_are_no_records(self, line, tmp_path):
        (tmp_path / "r.jsonl").write_text(line)
        with pytest.raises(ValueError, match="line 1"):
            read_records(tmp_path / "r.jsonl")

    def test_whole_records_are_read(self, tmp_path):
        record = ScoreRecord({"name": "p", "num_real": 1, "num_fake": 1}, {}, {"a": {"value": 1.0}})
        append_record(tmp_path / "r.jsonl", record)
        assert read_records(tmp_path / "r.jsonl") == [record]
        (tmp_path / "empty").touch()
        assert read_records(tmp_path / "empty") == []


def test_a_study_looks_at_its_records_before_it_trains(tmp_path, monkeypatch, capsys):
    from ratlip_hf.study import runs

    folder = tmp_path / "synthetic-birds"
    write(folder / "records.jsonl", "garbage")
    monkeypatch.setattr(runs.Scoring, "check", lambda *_: None)
    monkeypatch.setattr(runs, "train_all", lambda *_: pytest.fail("trained"))
    assert main(["study", "table1", "--seeds", "0", "--output_dir", str(tmp_path)]) == 2
    assert "is no record" in capsys.readouterr().err


def test_a_dataset_in_memory_is_known_by_its_captions_and_images():  # C9
    from ratlip_hf.data.read.rows import Columns, MapRows, rows_sha256

    def rows(caption="a", colour=0):
        images = [Image.new("RGB", (4, 4), (colour if index == 2 else 9, 0, 0)) for index in range(5)]
        data = {"image": images, "captions": [[caption if index == 3 else "b"] for index in range(5)]}
        return MapRows(datasets.Dataset.from_dict(data), Columns(), 0)

    assert rows_sha256(rows()) == rows_sha256(rows())
    assert len({rows_sha256(each) for each in (rows(), rows("c"), rows(colour=1))}) == 3
