"""Streamed shards in lanes: whoever reads, the samples are the same, and everything is fetched once, from disks and
from the Hub."""

import copy
import dataclasses
import json
import pickle
from collections import Counter
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
import torch
from huggingface_hub import HfFileSystem

from hub_server import HubRequestHandler
from ratlip_hf.data.prepare.shards import Storage, prepare
from ratlip_hf.data.read import lanes
from ratlip_hf.data.read.rows import Columns, MixedRows, ShardRows
from ratlip_hf.training import loop
from ratlip_hf.training.config import TrainingConfig
from ratlip_hf.training.samples import load_training_data
from ratlip_hf.utils.errors import UserError
from raw_datasets import make_folder

FOOTER = 2**16  # bytes that pyarrow fetches to find it
UNEVEN, EVEN = (7, 1, 12, 0, 4, 9), (8,) * 16


def write_shards(folder: Path, sizes: tuple[int, ...], group: int = 4, padding: int = 0) -> list[str]:
    """Shards of so many rows, whose "images" and captions are numbers; row groups of `group` rows."""
    (folder / "data").mkdir(parents=True)
    shards, number = [], 0
    for index, size in enumerate(sizes):
        captions = [[str(row)] for row in range(number, number + size)]
        images = [{"bytes": row[0].encode() + bytes(padding), "path": None} for row in captions]
        schema = pyarrow.schema(
            {
                "image": pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}),
                "captions": pyarrow.list_(pyarrow.string()),
            }
        )
        table = pyarrow.table({"image": images, "captions": captions}, schema=schema)
        shards.append(str(folder / "data" / f"train-{index:05d}.parquet"))
        pyarrow.parquet.write_table(table, shards[-1], row_group_size=group, compression="none")
        number += size
    return shards


def stream(shards: list[str], lanes: int, seed: int = 0, **options) -> ShardRows:
    return ShardRows(shards, Columns(), seed, lanes, **options)


def places(rows, visits) -> list[int]:
    return [rows.row(visit).place for visit in visits]


@pytest.fixture
def fetched(monkeypatch, tmp_path) -> Counter:
    """How often each row group of this test's has been read, by shard and the row group's number in it. Threads of
    earlier tests may still fetch ahead."""
    count, place, real = Counter(), tmp_path, pyarrow.parquet.ParquetFile

    class Counting(real):
        def __init__(self, source, **options):
            super().__init__(source, **options)
            self.shard = Path(getattr(source, "path", source.name))

        def read_row_groups(self, groups, *arguments):
            if self.shard.is_relative_to(place):
                count.update((self.shard.name, group) for group in groups)
            return super().read_row_groups(groups, *arguments)

    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", Counting)
    return count


# Order


@pytest.mark.parametrize("count", [1, 3, 8, 48])
@pytest.mark.parametrize("window", [1, 3])
def test_every_epoch_shows_every_row_once_however_uneven_or_few_the_shards_are(tmp_path, count, window):
    shards, total = write_shards(tmp_path, UNEVEN), sum(UNEVEN)
    rows = stream(shards, count, window=window)
    epochs = [places(rows, range(start, start + total)) for start in (0, total, 2 * total)]
    assert all(sorted(epoch) == list(range(total)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    jumps = [2 * total + 5, 0, total - 1, total, 3]
    assert places(stream(shards, count, window=window), jumps) == [
        epochs[visit // total][visit % total] for visit in jumps
    ]
    assert epochs[0] != places(stream(shards, count, seed=1), range(total))


def test_a_lane_keeps_to_its_own_row_groups_and_shuffles_each(tmp_path):
    rows = stream(write_shards(tmp_path, EVEN, group=8), lanes=8)
    for lane in range(8):
        mine = places(rows, range(lane, 128, 8))
        assert {place // 8 for place in mine[:8]} == {mine[0] // 8} and len(set(mine)) == 16
        assert mine[:8] != sorted(mine[:8])


# Each fetched once


@pytest.fixture
def not_ahead(monkeypatch) -> None:
    """Nothing of the next epoch is fetched before this one ends."""
    monkeypatch.setattr(lanes.Windows, "_may_fetch_ahead", lambda *_: False)


@pytest.mark.parametrize("readers", [1, 2, 4, 8])
def test_all_readers_together_fetch_each_row_group_once(tmp_path, fetched, not_ahead, readers):
    shards = write_shards(tmp_path, EVEN)
    for reader in range(readers):
        places(stream(shards, lanes=8), range(reader, 128, readers))
    assert len(fetched) == 32 and set(fetched.values()) == {1}


@pytest.mark.parametrize("count", [3, 8, 48])
def test_what_is_cut_within_a_row_group_is_all_that_two_lanes_fetch(tmp_path, fetched, not_ahead, count):
    shards, total = write_shards(tmp_path, UNEVEN), sum(UNEVEN)
    for reader in range(count):
        places(stream(shards, count), range(reader, total, count))
    groups = sum(-(-size // 4) for size in UNEVEN)
    assert len(fetched) == groups and groups <= sum(fetched.values()) <= groups + count - 1


def test_a_reader_comes_back_to_a_window_without_fetching_it_again(tmp_path, fetched):
    """As the search for a mismatched caption does."""
    rows = stream(write_shards(tmp_path, (16,) * 8, group=16), lanes=2)
    for visit in range(0, 100, 2):
        places(rows, [visit, visit + 2 * 3])
    assert set(fetched.values()) == {1}


def test_memory_holds_two_windows_of_a_lane_and_never_more_than_the_limit(tmp_path, fetched):
    shards = write_shards(tmp_path, EVEN, padding=1000)
    rows = stream(shards, lanes=8)
    for visit in range(256):
        rows.row(visit)
        assert all(len(windows) <= 2 for windows in rows._windows._held.values())
    window = next(iter(rows._windows._held[0].values())).result().table.nbytes
    fetched.clear()
    tight = stream(shards, lanes=8, memory=9 * window)
    for visit in range(128):
        tight.row(visit)
        assert tight._windows._bytes() <= 9 * window
    assert places(tight, range(128, 136)) == places(rows, range(128, 136))
    with pytest.raises(UserError, match=r"^8 lanes of the data hold .* of stream_memory: raise it, or lower"):
        places(stream(shards, lanes=8, memory=7 * window), range(8))


def test_readers_in_other_processes_start_with_nothing(tmp_path):
    rows = stream(write_shards(tmp_path, EVEN), lanes=8)
    expected = places(rows, range(20))
    copied = pickle.loads(pickle.dumps(rows))
    assert not copied._windows._held and places(copied, range(20)) == expected
    rows._windows._process = -1  # as if it had been forked
    threads = rows._windows._pool
    assert places(rows, range(20)) == expected and len(rows._windows._held) == 8
    assert rows._windows._pool is not threads  # a fork has none of them and would wait for ever


# Batches: processes, workers, mixtures


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """26 images in 7 shards."""
    folder = tmp_path_factory.mktemp("dataset")
    prepare("folder", make_folder(folder / "raw", 26), folder / "out", storage=Storage(images_per_shard=4))
    return folder / "out"


@pytest.fixture
def streamed(prepared) -> TrainingConfig:
    return TrainingConfig(train_data_dir=str(prepared), streaming=True, data_lanes=12, train_batch_size=12)


def batch_of_all(config: TrainingConfig, start: int, world: int, workers: int) -> dict:
    """The first micro-batch of `world` processes from sample `start` on, put together in the order of the samples."""
    changes = {"train_batch_size": config.train_batch_size // world, "dataloader_num_workers": workers}
    data = [load_training_data(dataclasses.replace(config, **changes), 16, 3) for _ in range(world)]
    parts = [vars(next(each.batches(start, rank, world))) for rank, each in enumerate(data)]
    rows = {
        index: [part[name][place] for name in part if part[name] is not None]
        for part in parts
        for place, index in enumerate(part["indices"])
    }
    assert sorted(rows) == list(range(start, start + config.train_batch_size))
    return rows


def assert_same(found: dict, expected: dict) -> None:
    for index, values in expected.items():
        for one, other in zip(found[index], values, strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize(
    ("world", "workers"),
    [(1, 2), (3, 0), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((2, 0), (1, 5), (3, 1), (4, 3)))],
)
@pytest.mark.parametrize("mixed", [False, True])
def test_processes_and_workers_change_nothing_in_the_middle(streamed, prepared, tmp_path, world, workers, mixed):
    if mixed:
        prepare("folder", make_folder(tmp_path / "raw", 5), tmp_path / "b", storage=Storage(images_per_shard=2))
        streamed.train_data_dir, streamed.data_mixture = None, {str(prepared): 2, str(tmp_path / "b"): 1}
    # One process and no worker until sample 36, and then others.
    for start in (36, 48):
        assert_same(batch_of_all(streamed, start, world, workers), batch_of_all(streamed, start, 1, 0))


def test_a_number_of_processes_that_does_not_divide_the_lanes_sees_the_same(streamed, caplog):
    streamed.train_batch_size = 10
    assert_same(batch_of_all(streamed, 30, 5, 0), batch_of_all(streamed, 30, 1, 0))
    assert "12 lanes of data are no multiple of 5 processes" in caplog.text


@pytest.mark.parametrize("workers", [4, 5])  # neither divides the 6 lanes of a process, 5 not even all 12
def test_workers_fetch_their_own_lanes(streamed, workers):
    data, lanes_of = load_training_data(streamed, 16, 3), []
    for worker in range(workers):  # what the loader gives to a worker of the second of two processes
        mine = copy.deepcopy(data)
        shares = mine._shares(0, 1, 2, shares=workers)
        taken = [next(shares) for _ in range(4 * workers)][worker::workers]
        lanes_of.append({index % 12 for indices in taken for index in indices})
        assert len(mine.rows._windows._held) == 0
        for indices in taken:
            mine[indices]
        assert set(mine.rows._windows._held) <= lanes_of[-1]
    assert sorted(lane for own in lanes_of for lane in own) == list(range(1, 12, 2))
    assert max(map(len, lanes_of)) <= min(map(len, lanes_of)) + 1


def test_the_mismatched_caption_is_the_next_one_of_the_lane(streamed):
    data = load_training_data(streamed, 16, 3)
    batch = data.batch(range(0, 120, 12))
    assert batch.mismatched_captions[:-1] == batch.captions[1:]


def test_a_mixture_keeps_lanes_apart_and_weights_exact_in_each(tmp_path):
    parts = [stream(write_shards(tmp_path / name, EVEN), lanes=4) for name in "ab"]
    mixture = MixedRows(parts, [1, 3], seed=0)
    for lane in range(4):
        shown = Counter(mixture._locate(visit)[0] for visit in range(lane, 4000, 4))
        assert shown == {0: 250, 1: 750}
    assert mixture.lanes == 4
    visits = [mixture._locate(visit) for visit in range(4000)]
    assert mixture.row(5).place == parts[visits[5][0]].row(visits[5][1]).place
    assert any(len({part for part, _ in visits[start : start + 4]}) == 2 for start in range(0, 40, 4))
    assert all(local % 4 == visit % 4 for visit, (_, local) in enumerate(visits))
    for part in (0, 1):
        own = sorted(local for which, local in visits if which == part)
        assert own == list(range(len(own)))


# The Hub


@pytest.fixture
def published(online, tmp_path, monkeypatch):
    """A dataset on the local Hub, and what was asked of it: paths of shards, with the bytes sent."""
    shards = write_shards(tmp_path / "out", EVEN, padding=100_000)
    files = [{"path": f"data/{Path(shard).name}", "rows": 8, "sha256": ""} for shard in shards]
    manifest = {"kind": "folder", "splits": {"train": {"files": files}}}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    online.store.publish(tmp_path / "out", "ada/lanes", "datasets")
    asked, failing, real = [], [], HubRequestHandler.send

    def send(self, status, content, **headers):
        if "/resolve/" in self.path and ".parquet" in self.path and self.command == "GET":
            if failing:
                return real(self, failing.pop(), b"")
            asked.append((Path(self.path.partition("?")[0]).name, len(content)))
        return real(self, status, content, **headers)

    monkeypatch.setattr(HubRequestHandler, "send", send)
    HfFileSystem.clear_instance_cache()
    addresses = [f"hf://datasets/ada/lanes/data/{Path(shard).name}" for shard in shards]
    yield addresses, asked, failing, sum(Path(shard).stat().st_size for shard in shards)
    HfFileSystem.clear_instance_cache()


def test_from_the_hub_each_byte_is_fetched_once_and_none_before_it_is_needed(published):
    shards, asked, _, size = published
    readers = [stream(shards, lanes=8) for _ in range(2)]
    assert sum(count for _, count in asked) < size / 20  # the first footer, twice
    asked.clear()
    seen = [places(rows, range(reader, 128, 2)) for reader, rows in enumerate(readers)]
    assert sorted(seen[0] + seen[1]) == list(range(128))
    for rows in readers:
        rows.release()
    rows_alone = sum(count for _, count in asked if count != FOOTER)
    assert 0.99 * size < rows_alone <= size + 8 * size / 32  # a window of each lane ahead, of the second epoch
    requests = Counter(name for name, _ in asked)
    assert len(requests) == 16 and max(requests.values()) <= 3 + 2  # a footer, two row groups, and those ahead


def test_a_hub_that_fails_for_a_while_is_asked_again_and_then_named(published, monkeypatch):
    shards, _, failing, _ = published
    waited = []
    monkeypatch.setattr(lanes.time, "sleep", waited.append)
    expected = places(stream(shards, lanes=8), range(16))
    failing += [500, 503, 400]
    assert places(stream(shards, lanes=8), range(16)) == expected
    assert waited
    failing += [400] * 1000
    with pytest.raises(UserError, match=r"^cannot read the shard hf://datasets/ada/lanes.*"):
        places(stream(shards, lanes=8), range(16))


def test_a_remote_shard_is_tried_for_15_seconds_and_a_local_one_once(tmp_path, monkeypatch):
    (shard,) = write_shards(tmp_path, (8,))
    fsspec.filesystem("memory").pipe_file("/lanes.parquet", Path(shard).read_bytes())
    waited = []
    monkeypatch.setattr(lanes.time, "sleep", waited.append)

    def after(failures: int):
        answers = iter([OSError("the store is busy")] * failures)
        waited.clear()

        def use(file):
            if error := next(answers, None):
                raise error
            return file.metadata.num_rows

        return use

    assert lanes.with_shard("memory://lanes.parquet", after(2)) == 8 and waited == [1, 2]
    with pytest.raises(UserError, match=r"^cannot read the shard memory://lanes.parquet: the store is busy$"):
        lanes.with_shard("memory://lanes.parquet", after(9))
    assert waited == [1, 2, 4, 8]
    with pytest.raises(UserError, match="the store is busy"):
        lanes.with_shard(shard, after(1))
    assert not waited


# Numbers of rows, and the cursor


def test_a_manifest_spares_opening_every_shard_and_is_not_believed_blindly(tmp_path, monkeypatch):
    shards = write_shards(tmp_path, EVEN)
    monkeypatch.setattr("ratlip_hf.data.read.rows.counted_rows", lambda shards: pytest.fail("shards were opened"))
    files = [{"path": f"data/{Path(shard).name}", "rows": 8} for shard in shards]
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"splits": {"train": {"files": files}}}))
    assert len(stream(shards, lanes=4)) == 128
    files[0]["rows"] = 9
    manifest.write_text(json.dumps({"splits": {"train": {"files": files}}}))
    with pytest.raises(UserError, match=r"train-00000.parquet has 8 rows, not 9 as manifest.json says"):
        places(stream(shards, lanes=4), range(129))
    for damaged in ("[]", '{"splits": {"train": {"files": [{"path": 3, "rows": -1}]}}}', "[" * 10**5):
        manifest.write_text(damaged)
        assert lanes.recorded_counts(shards) is None


def test_a_run_goes_on_in_its_lanes_only(config, prepared):
    config.dataset_name, config.max_train_samples, config.train_data_dir = None, None, str(prepared)
    config.streaming, config.data_lanes, config.max_train_images, config.sample_every = True, 4, 4, 10**6
    loop.train(config)
    config.resume_from_checkpoint, config.max_train_images, config.allow_changes = "latest", 16, True
    for changes, told in (({"data_lanes": 6}, "6"), ({"streaming": False}, "1")):
        with pytest.raises(UserError, match=rf"^the checkpoint was made with data in 4 lanes, this run has {told} "):
            loop.train(dataclasses.replace(config, **changes))
