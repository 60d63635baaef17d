"""Runs that cannot or should not start: each bad situation is one clear line, before CLIP or data cost any time.
And writes that fail in the middle of a run, which leave what was there before."""

import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._pytree import tree_leaves

from ratlip_hf import RATLIPDiscriminator, RATLIPPipeline
from ratlip_hf.data.prepare.shards import Storage, prepare
from ratlip_hf.data.read.rows import Columns, MapRows, MixedRows, ShardRows, find_shards
from ratlip_hf.training import loop, preflight, run
from ratlip_hf.training.__main__ import main
from ratlip_hf.training.checkpoints import Checkpoints
from ratlip_hf.training.config import TrainingConfig
from ratlip_hf.training.footprint import DiskUse, disk_use, weight_bytes
from ratlip_hf.training.preflight import check_data, check_disk, check_surroundings
from ratlip_hf.training.samples import CaptionedImages
from ratlip_hf.utils.display import as_size
from ratlip_hf.utils.errors import UserError
from ratlip_hf.utils.files import atomic_directory, atomic_write, staged_files
from raw_datasets import make_folder

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def warnings_only(caplog) -> None:
    caplog.set_level(logging.WARNING)


@pytest.fixture
def refused(tmp_path, capsys) -> Callable[[TrainingConfig], str]:
    """What `main` says about a configuration that it refuses: one line."""

    def run(config: TrainingConfig) -> str:
        (tmp_path / "refused.json").write_text(config.to_json())
        assert main(["--config", str(tmp_path / "refused.json")]) == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line and "examples/s" not in line)
        return line

    return run


# Surroundings


@pytest.fixture
def no_clip(monkeypatch) -> None:
    monkeypatch.setattr(run, "load_clip", lambda *_, **__: pytest.fail("the CLIP was loaded"))


def test_an_output_dir_below_a_file_is_refused_before_the_clip_is_loaded(config, tmp_path, no_clip, refused):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/run"):
        config.output_dir = str(tmp_path / name)
        assert "file is a file" in refused(config)


def test_an_output_dir_that_cannot_be_written_is_refused(config, monkeypatch):
    def forbid(dir):
        raise PermissionError(13, "Permission denied", dir)

    monkeypatch.setattr(preflight.tempfile, "TemporaryFile", forbid)
    with pytest.raises(UserError, match="run cannot be written: Permission denied"):
        check_surroundings(config, 1, CPU)


def test_checking_surroundings_leaves_nothing(config, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    check_surroundings(config, 1, CPU)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_data_folder_is_named_before_the_clip_is_loaded(config, no_clip, refused):
    config.dataset_name, config.train_data_dir, config.max_train_samples = None, "no/such/folder", None
    assert "train_data_dir no/such/folder is not a folder" in refused(config)


def test_processes_that_do_not_know_of_each_other_are_refused(config, no_clip, monkeypatch, refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "set ACCELERATE_USE_CPU=true" in refused(config)
    check_surroundings(config, 2, CPU)
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_surroundings(config, 1, CPU)


def test_gpus_that_are_asked_for_must_be_there(config, no_clip, monkeypatch, refused):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert "asks for GPU 0,1, but torch" in refused(config)
    check_surroundings(config, 1, torch.device("cuda"))
    for name, value in (("ACCELERATE_USE_CPU", "true"), ("CUDA_VISIBLE_DEVICES", "-1"), ("CUDA_VISIBLE_DEVICES", "")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            check_surroundings(config, 1, CPU)


def test_a_step_of_one_image_is_refused(config, no_clip, refused):
    config.train_batch_size = 1
    assert "at least two images" in refused(config)
    check_surroundings(config, 2, CPU)
    config.gradient_accumulation_steps = 2
    check_surroundings(config, 1, CPU)


def test_images_of_a_step_are_counted_over_processes_and_micro_batches(config):
    config.gradient_accumulation_steps = 3
    assert config.images_per_step(2) == 24


@pytest.mark.parametrize(("wanted", "said"), [(16, ""), (18, "max_train_images 18 is no multiple of a step's 8: 24")])
def test_a_length_that_is_no_multiple_of_a_step_is_told(config, wanted, said, caplog):
    config.max_train_images = wanted
    check_surroundings(config, 2, CPU)
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


def test_fp16_on_a_cpu_is_warned_of(config, caplog):
    config.mixed_precision = "fp16"
    check_surroundings(config, 1, torch.device("cuda"))
    assert not caplog.text
    check_surroundings(config, 1, CPU)
    assert "fp16 on a CPU is slow" in caplog.text


# Disk


@pytest.mark.parametrize("pixel_loss_weight", [0.0, 1.0])
def test_files_are_as_large_as_they_were_said_to_be(config, small_clip, pixel_loss_weight):
    config.max_train_images, config.pixel_loss_weight = 8, pixel_loss_weight
    folder = loop.train(config)
    generator = RATLIPPipeline.from_pretrained(folder / "pipeline").generator
    discriminator = RATLIPDiscriminator.from_pretrained(folder / "discriminator")
    use = disk_use(config, 4, generator, discriminator, small_clip)
    state = torch.load(folder / "checkpoints" / "step-00000002" / "state.pt")
    written = sum(x.nbytes for x in tree_leaves(state) if isinstance(x, torch.Tensor))
    assert use.checkpoint == pytest.approx(written, rel=0.02)
    written = sum(file.stat().st_size for file in folder.glob("*/**/*.safetensors"))
    assert use.models == pytest.approx(written, rel=0.1)


@pytest.mark.parametrize(
    ("limit", "images", "checkpoints"), [(2, 1000, 3), (None, 1000, 125), (2, 16, 2), (1, 1, 1), (5, 33, 5)]
)
def test_room_is_needed_for_one_checkpoint_more_than_are_kept(config, nets, small_clip, limit, images, checkpoints):
    config.checkpoints_total_limit, config.max_train_images = limit, images  # steps of 4 images, a checkpoint every 2
    use = disk_use(config, 4, nets.generator, nets.discriminator, small_clip)
    assert use.peak == checkpoints * use.checkpoint + 2 * use.models
    config.evaluate_every = 100  # then the best pipeline lies there, too
    best = use.models - weight_bytes(nets.discriminator)
    assert disk_use(config, 4, nets.generator, nets.discriminator, small_clip).peak == use.peak + 2 * best


def test_a_disk_without_room_is_refused_before_data_are_read(config, monkeypatch, refused):
    monkeypatch.setattr(run, "load_training_data", lambda *_: pytest.fail("data were read"))
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: preflight.shutil._ntuple_diskusage(10**9, 0, 1000))
    assert "1 kB are free: lower checkpoints_total_limit (now 2)" in refused(config)


def test_what_a_resumed_run_will_replace_counts_as_room(config, monkeypatch):
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: preflight.shutil._ntuple_diskusage(10**9, 0, 1000))
    with pytest.raises(UserError, match="needs 2 kB more"):
        check_disk(config, DiskUse(500, 100, 1700))
    atomic_write(Path(config.output_dir) / "checkpoints" / "step-1" / "state.pt", b"0" * 800)
    check_disk(config, DiskUse(500, 100, 1700))


def test_sizes_are_readable():
    assert [as_size(count) for count in (999, 1500, 2_500_000, 3.21e9, 4e12)] == [
        "999 bytes",
        "2 kB",
        "2 MB",
        "3.2 GB",
        "4000.0 GB",
    ]


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """Writing beyond 20,000 bytes of a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Weights:
    """Something with a state of `count` numbers."""

    def __init__(self, count: int):
        self.count = count

    def state_dict(self) -> dict:
        return {"weight": torch.zeros(self.count)}


def test_a_checkpoint_that_cannot_be_written_leaves_the_older_one_whole(tmp_path, small_files_only):
    saved = Checkpoints(tmp_path / "checkpoints", keep=1)
    saved.register(weights=Weights(10))
    saved.save(1, {"step": 1})
    saved.register(weights=Weights(100_000))
    with pytest.raises(OSError, match=r"cannot write .*step-00000002: File too large; what was there before is whole"):
        saved.save(2, {"step": 2})
    assert saved.find("latest")[1]["step"] == 1
    assert [path.name for path in saved.folder.iterdir()] == ["step-00000001"]


def test_a_pipeline_that_cannot_be_written_is_one_line(tmp_path, pipe, small_files_only):
    """safetensors raises something of its own."""
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "old").write_text("old")
    with (
        pytest.raises(OSError, match=r"cannot write .*pipeline: File too large"),
        atomic_directory(tmp_path / "pipeline") as folder,
    ):
        pipe.save_pretrained(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["pipeline", "old"]


def test_other_files_that_cannot_be_written_are_one_line(tmp_path, small_files_only):
    with pytest.raises(OSError, match=r"cannot write .*log: File too large"):
        atomic_write(tmp_path / "log", b"0" * 30_000)
    with pytest.raises(OSError, match=r"cannot write .*out: File too large"), staged_files(tmp_path / "out") as folder:
        (folder / "image").write_bytes(b"0" * 30_000)
    assert not list(tmp_path.iterdir())


def test_other_errors_keep_their_kind(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "out") as folder:
        (folder / "none").read_text()


# Data


def toy_rows(config, captions: list, size: tuple[int, int] = (64, 64), box: list[float] | None = None) -> MapRows:
    image = Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8))
    rows = {"image": [image] * len(captions), "captions": captions}
    if box:
        rows["bbox"] = [box] * len(captions)
    return MapRows(datasets.Dataset.from_dict(rows), Columns(), config.seed)


def samples(config, rows) -> CaptionedImages:
    return CaptionedImages(rows, config, 32, noise_dim=3)


def test_a_sound_dataset_passes_without_a_word(config, caplog):
    check_data(config, samples(config, toy_rows(config, ["a", "b", "c", "d"])), 4)
    assert not caplog.text


@pytest.mark.parametrize("caption", ["", " \n"])
def test_an_empty_caption_is_refused_with_its_row(config, caption):
    rows = toy_rows(config, [["a", "b"], ["c", "d"], ["e", caption]])
    with pytest.raises(UserError, match="row 2 has an empty caption"):
        check_data(config, samples(config, rows), 2)
    with pytest.raises(UserError, match="row 2 has an empty caption"):
        check_data(config, samples(config, MixedRows([toy_rows(config, ["a"]), rows], [1, 1], 0)), 2)


def test_captions_are_read_piece_by_piece_and_counted_over_all(config, monkeypatch):
    """Those of tens of millions of rows do not fit into memory."""
    monkeypatch.setattr("ratlip_hf.data.read.rows._PIECE", 2)
    rows = toy_rows(config, [["a"], ["b", "c"], ["d"], ["e"], [""]])
    assert list(rows.captions(3)) == [["a"], ["b", "c"], ["d"]]
    captions = rows.captions(9)
    assert [next(captions) for _ in range(4)] == [["a"], ["b", "c"], ["d"], ["e"]]
    with pytest.raises(UserError, match="row 4 has an empty caption"):
        next(captions)


def test_an_empty_caption_of_a_stream_is_refused_when_it_is_met(config, tmp_path):
    rows = {"image": [Image.new("RGB", (8, 8))] * 3, "captions": ["a", "b", " "]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train-0.parquet")
    streamed = ShardRows([str(tmp_path / "train-0.parquet")], Columns(), 0)
    with pytest.raises(UserError, match="row 2 has an empty caption"):
        [streamed.row(visit) for visit in range(3)]


def test_one_caption_for_everything_is_refused(config):
    with pytest.raises(UserError, match="all captions are 'a bird'"):
        check_data(config, samples(config, toy_rows(config, ["a bird"] * 5)), 4)
    two = MixedRows([toy_rows(config, ["a bird"] * 5), toy_rows(config, ["a flower"] * 5)], [1, 1], 0)
    check_data(config, samples(config, two), 4)


def test_the_start_of_a_stream_does_not_condemn_it(config, tmp_path, monkeypatch):
    rows = {"image": [Image.new("RGB", (32, 32))] * 3, "captions": ["a", "a", "b"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train-0.parquet")
    monkeypatch.setattr(preflight, "_CAPTIONS", 2)
    check_data(config, samples(config, ShardRows([str(tmp_path / "train-0.parquet")], Columns(), 0)), 2)


def test_a_dataset_smaller_than_a_step_is_warned_of(config, caplog):
    check_data(config, samples(config, toy_rows(config, ["a", "b", "c"])), 4)
    assert "a step of 4 images is larger than the dataset of 3" in caplog.text


@pytest.mark.parametrize(
    ("size", "box", "warned"), [((31, 100), None, True), ((32, 32), None, False), ((100, 100), [10, 10, 12, 12], True)]
)
def test_images_that_must_be_enlarged_are_warned_of(config, size, box, warned, caplog):
    check_data(config, samples(config, toy_rows(config, ["a", "b"], size, box)), 2)
    assert ("2 of 2 images looked at are smaller than the 32 pixels" in caplog.text) == warned


def test_a_few_small_images_are_nothing_to_speak_of(config, caplog):
    small, large = toy_rows(config, ["a"] * 30, (8, 8)), toy_rows(config, ["b"] * 30)
    check_data(config, samples(config, MixedRows([small, large], [1, 3], 0)), 2)
    assert "smaller" not in caplog.text


def test_a_damaged_image_is_named(config):
    rows = toy_rows(config, ["a", "b"])
    rows.dataset = rows.dataset.map(lambda row: {"image": {"bytes": b"\x89PNG" + bytes(20), "path": None}})
    with pytest.raises(UserError, match=r"row . of the data: "):
        check_data(config, samples(config, rows), 2)


def test_bad_data_end_a_run_in_one_line(config, tmp_path, refused):
    folder = make_folder(tmp_path / "raw", 4, captions=1)
    for file in folder.glob("*.txt"):
        file.write_text("always the same")
    prepare("folder", folder, tmp_path / "prepared")
    config.dataset_name, config.train_data_dir, config.max_train_samples = None, str(tmp_path / "prepared"), None
    assert "all captions are 'always the same'" in refused(config)


# More processes than shards


def test_more_processes_than_shards_see_all_images_once(config, tmp_path):
    """Lanes are parts of shards where there are few."""
    prepare("folder", make_folder(tmp_path / "raw", 12), tmp_path / "out", storage=Storage(images_per_shard=12))
    shards = find_shards(str(tmp_path / "out"))
    assert len(shards) == 1
    ranks = [samples(config, ShardRows(shards, Columns(), 0, lanes=6)).batches(0, rank, 3) for rank in range(3)]
    seen = [caption.split()[1] for batches in ranks for caption in next(batches).captions]
    assert sorted(seen, key=int) == [str(index) for index in range(12)]


@pytest.mark.slow
def test_two_processes_share_one_shard_and_its_embeddings(config, tmp_path):
    prepare("folder", make_folder(tmp_path / "raw", 8), tmp_path / "out", storage=Storage(images_per_shard=8))
    config.dataset_name, config.train_data_dir, config.max_train_samples = None, str(tmp_path / "out"), None
    config.text_embeddings = True
    for streaming, code in ((False, 0), (True, 2)):
        config.streaming, config.output_dir = streaming, str(tmp_path / f"run-{streaming}")
        (tmp_path / "config.json").write_text(config.to_json())
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command += ["-m", "ratlip_hf.training", "--config", str(tmp_path / "config.json")]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert (done.returncode == 0) == (code == 0), done.stderr
        if streaming:
            assert "run ratlip data embed" in done.stderr
        else:
            lines = [json.loads(line) for line in (tmp_path / "run-False" / "log.jsonl").read_text().splitlines()]
            assert [line["images"] for line in lines] == [8, 16]
