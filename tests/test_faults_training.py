"""Faults of a training run: whose folder it is, what it resumes from, values that no run can have, and how it ends on
signals and with other processes. Names are those of docs/reliability.md."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ratlip_hf.training import ending, loop, run
from ratlip_hf.training.__main__ import main
from ratlip_hf.training.checkpoints import Checkpoints
from ratlip_hf.training.config import TrainingConfig, load_config
from ratlip_hf.training.ending import Ending, Peers
from ratlip_hf.training.monitor import Health, Log
from ratlip_hf.utils.errors import Stopped, UserError
from ratlip_hf.utils.files import file_sha256
from ratlip_hf.utils.locks import locked
from several_processes import free_port

NEWEST = "checkpoints/step-00000004"
STARTS = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', *sys.argv[1:3]])"
WAITS = """
import sys, time
from ratlip_hf.training.ending import watched_launcher
from ratlip_hf.utils.errors import command_line

@command_line
def main():
    with watched_launcher():
        print("up", flush=True)
        time.sleep(60)

open(sys.argv[1], "w").write(str(main()))
"""


@pytest.fixture
def trained(config) -> Path:
    return loop.train(config)


@pytest.fixture
def resuming(config) -> TrainingConfig:
    """Goes on for two steps from where `trained` ends."""
    return dataclasses.replace(config, resume_from_checkpoint="latest", max_train_images=24)


def newest_state(folder: Path) -> dict:
    return torch.load(max((folder / "checkpoints").iterdir()) / "state.pt", weights_only=True)


def equal(first, second) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[name], second[name]) for name in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


class TestWhoseFolder:
    @pytest.mark.parametrize("name", ["pipeline", "best", "discriminator"])
    @pytest.mark.parametrize("resume", [None, "latest"])
    def test_a_model_without_checkpoints_is_not_replaced(self, name, resume, config):  # C7
        mine = Path(config.output_dir) / name / "mine"
        mine.parent.mkdir(parents=True)
        mine.write_text("mine")
        config.resume_from_checkpoint = resume
        with pytest.raises(UserError, match="no checkpoint to go on from"):
            loop.train(config)
        assert mine.read_text() == "mine"

    def test_but_a_run_killed_before_its_first_checkpoint_goes_on(self, config, monkeypatch):  # C7
        monkeypatch.setattr(Checkpoints, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loop.train(config)
        monkeypatch.undo()
        monkeypatch.setattr(loop, "_IMAGES_PER_CAPTION", 1)
        assert (Path(config.output_dir) / "pipeline").is_dir()
        config.resume_from_checkpoint = "latest"
        assert (loop.train(config) / NEWEST).is_dir()

    def test_two_trainers_never_write_one_folder(self, config):  # C8
        script = "import sys\nfrom ratlip_hf.utils.locks import locked\nwith locked(sys.argv[1], inside=True):\n"
        script += "    print('held', flush=True)\n    sys.stdin.read()"
        command = [sys.executable, "-c", script, config.output_dir]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(OSError, match=f"being written by process {other.pid}"):
                loop.train(config)
            other.kill()
        assert loop.train(config)
        with locked(config.output_dir, inside=True):
            pass


class TestResuming:
    def test_other_data_or_another_clip_are_refused(self, trained, resuming):  # C9
        with pytest.raises(UserError, match=r"the data .* --allow_changes"):
            loop.train(dataclasses.replace(resuming, max_train_samples=11))
        path = Path(resuming.clip) / "model.safetensors"
        weights = load_file(path)
        weights["visual_projection.weight"] += 0.01
        save_file(weights, path, {"format": "pt"})
        with pytest.raises(UserError, match=r"the CLIP .* --allow_changes"):
            loop.train(resuming)
        assert max((trained / "checkpoints").iterdir()).name == "step-00000004"

    def test_unless_they_are_allowed_or_an_earlier_version_has_noted_none(self, config, caplog):  # C9
        now = {"data_sha256": "a", "clip_sha256": "b"}
        run._compare_identity({}, now, config)
        run._compare_identity({"identity": now}, now, config)
        assert not caplog.text
        config.allow_changes = True
        run._compare_identity({"identity": {**now, "clip_sha256": "c"}}, now, config)
        assert "the CLIP is not the same" in caplog.text

    def test_weights_that_are_not_finite_are_not_resumed(self, trained, resuming):  # C2
        folder = trained / NEWEST
        state = torch.load(folder / "state.pt", weights_only=True)
        next(iter(state["ema"]["module"].values())).view(-1)[0] = float("nan")
        torch.save(state, folder / "state.pt")
        facts = json.loads((folder / "facts.json").read_text())
        facts["sha256"] = file_sha256(folder / "state.pt")
        (folder / "facts.json").write_text(json.dumps(facts))
        with pytest.raises(UserError, match="NaN or infinite"):
            loop.train(resuming)

    def test_an_average_that_is_not_finite_is_never_saved(self, config, monkeypatch):  # C2
        def spoil(self, module):
            next(iter(self.module.parameters())).data.fill_(float("nan"))

        monkeypatch.setattr("ratlip_hf.training.optimization.EMA.update", spoil)
        with pytest.raises(UserError, match="ema_norm nan"):
            loop.train(config)
        assert not (Path(config.output_dir) / "pipeline").exists()

    @pytest.mark.parametrize("change", [[], 3, {"sha256": 5}, {"step": "4"}, {"config": []}, {"architecture": None}])
    def test_facts_of_other_kinds_are_one_line(self, change, tmp_path, config):
        checkpoints = Checkpoints(tmp_path, None)
        checkpoints.save(4, {"step": 4, "images": 16, "architecture": {}, "config": {}})
        path = tmp_path / "step-00000004" / "facts.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change} if isinstance(change, dict) else change))
        config.resume_from_checkpoint = str(path.parent)
        with pytest.raises(UserError, match="checkpoint"):
            run._find_checkpoint(config, checkpoints)

    def test_states_of_other_kinds_are_one_line(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, None)
        checkpoints.register(module=torch.nn.Linear(1, 1))
        (tmp_path / "step-1").mkdir()
        for state in ([], {"module": 3}, {"module": {"weight": "x"}}, {}):
            torch.save(state, tmp_path / "step-1" / "state.pt")
            with pytest.raises(UserError, match="does not fit"):
                checkpoints.restore(tmp_path / "step-1")
        (tmp_path / "step-1" / "state.pt").write_text("text")
        with pytest.raises(UserError, match="cannot be read"):
            checkpoints.restore(tmp_path / "step-1")

    def test_a_file_with_the_name_of_a_checkpoint_is_in_nobodys_way(self, tmp_path):
        (tmp_path / "step-99").write_text("mine")
        checkpoints = Checkpoints(tmp_path, 1)
        checkpoints.save(4, {})
        assert checkpoints.find("latest")[0].name == "step-00000004"
        assert (tmp_path / "step-99").read_text() == "mine"

    def test_a_log_of_other_kinds_is_left_out(self, tmp_path):
        path = tmp_path / "log.jsonl"
        good = {"step": 1, "images": 4, "d_loss": "high", "d_real": None}
        path.write_bytes(b'[]\n3\n"x"\n{"step": "1"}\n' + b"[" * 100_000 + b"\n\xff\xfe\n" + json.dumps(good).encode())
        assert Log(path, 5).read() == [good]
        assert not Health(TrainingConfig()).update(4, good)


class TestValues:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("train_batch_size", 10**9),
            ("gradient_accumulation_steps", 10**9),
            ("dataloader_num_workers", 10**6),
            ("evaluation_samples", 10**9),
            ("max_train_samples", 10**12),
            ("penalty_weight", -1),
            ("clip_loss_weight", -0.5),
            ("range_weight", -1),
        ],
    )
    def test_what_no_run_can_have_is_refused_at_once(self, name, value):
        with pytest.raises(UserError, match=name):
            load_config(["--dataset_name", "synthetic-birds", f"--{name}", str(value)])

    @pytest.mark.parametrize(("name", "value"), [("base_channels", 2**20), ("bridge_blocks", 10**6)])
    def test_networks_that_no_machine_holds(self, name, value, config, capsys):  # H3
        config.generator = {**config.generator, name: value}
        start = time.monotonic()
        with pytest.raises(ValueError, match=f"{name} must be at most"):
            loop.train(config)
        assert time.monotonic() - start < 20


class TestSignals:  # H8
    def test_signals_ask_and_a_second_ctrl_c_interrupts(self):
        with Ending() as asked:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked.asked and asked.stopped().number == signal.SIGINT
            with pytest.raises(Stopped):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
    )
    def test_the_step_ends_a_checkpoint_is_written_and_the_run_goes_on_bit_for_bit(
        self, number, code, config, monkeypatch, tmp_path, capsys
    ):
        whole = loop.train(dataclasses.replace(config, output_dir=str(tmp_path / "whole")))
        step = loop.training_step

        def killed(nets, *arguments, **options):
            if killed.calls == 0:
                os.kill(os.getpid(), number)
            killed.calls += 1
            return step(nets, *arguments, **options)

        killed.calls = 0
        monkeypatch.setattr(loop, "training_step", killed)
        file = tmp_path / "config.json"
        file.write_text(
            dataclasses.replace(config, checkpointing_steps=100, resume_from_checkpoint="latest").to_json()
        )
        assert main(["--config", str(file)]) == code
        folder = Path(config.output_dir)
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000001"]
        assert (folder / "pipeline").is_dir()
        assert main(["--config", str(file)]) == 0
        assert equal(newest_state(folder), newest_state(whole))

    @pytest.mark.slow
    def test_a_launcher_that_is_gone_ends_the_run(self, tmp_path):
        """A process named like a launcher starts one that waits, and is killed."""
        command = [sys.executable, "-c", STARTS, WAITS, str(tmp_path / "code"), "accelerate"]
        launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert launcher.stdout.readline() == "up\n"
        launcher.kill()
        launcher.wait()
        for _ in range(300):
            if (tmp_path / "code").exists() and (tmp_path / "code").read_text():
                break
            time.sleep(0.1)
        assert (tmp_path / "code").read_text() == "143"

    def test_another_process_that_has_died_is_named(self):
        peers = Peers.__new__(Peers)
        child = subprocess.Popen([sys.executable, "-c", "pass"])
        time.sleep(0.3)
        while ending._is_alive(child.pid):  # not waited for: a zombie counts as dead
            time.sleep(0.05)
        peers.rank, peers.count, peers.pids = 0, 2, {1: child.pid}
        assert peers.explain() == f"process 1 of 2 (pid {child.pid}) has died"
        with pytest.raises(UserError, match="process 1 of 2"), loop._naming_the_dead(peers):
            raise RuntimeError("Connection closed by peer")
        child.wait()
        peers.pids = {1: os.getpid()}
        assert peers.dead() is None

    @pytest.mark.slow
    def test_a_killed_worker_is_one_line(self, config, monkeypatch):
        config.dataloader_num_workers = 1
        config.max_train_images = 4_000

        def kill_one():
            time.sleep(1)
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)

        step = loop.training_step

        def started(*arguments, **options):
            if not threads:
                threads.append(threading.Thread(target=kill_one))
                threads[0].start()
            return step(*arguments, **options)

        threads: list[threading.Thread] = []
        monkeypatch.setattr(loop, "training_step", started)
        with pytest.raises(UserError, match="a process that loads images was killed"):
            loop.train(config)


def launched(config, folder: Path, processes: int) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a run of so many processes: one by `accelerate launch`, more by torch's launcher."""
    file = folder / "config.json"
    file.write_text(config.to_json())
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    if processes == 1:
        command = [sys.executable, "-m", "accelerate.commands.launch", "-m", "ratlip_hf.training"]
    else:
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        command += ["--master_port", str(free_port()), "-m", "ratlip_hf.training"]
    return [*command, "--config", str(file)], environment


def wait_for(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def trainers(config) -> list[int]:
    """Processes that run this configuration, the launcher among them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(Path(config.output_dir).parent / "config.json").encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def endless(config) -> TrainingConfig:
    config.max_train_images, config.checkpointing_steps, config.sample_every = 10**6, 10**6, 10**6
    config.resume_from_checkpoint = "latest"
    return config


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("to", ["launcher", "trainer"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_everything_stops_with_a_checkpoint_within_seconds(number, to, processes, endless, tmp_path):  # H8
    command, environment = launched(endless, tmp_path, processes)
    launcher = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    log = Path(endless.output_dir) / "log.jsonl"
    try:
        assert wait_for(lambda: log.exists() and log.read_text().count("\n") > 2, 300)
        own = [pid for pid in trainers(endless) if pid != launcher.pid]
        os.kill(launcher.pid if to == "launcher" else min(own), number)
        assert wait_for(lambda: launcher.poll() is not None and not trainers(endless), 30)
        assert launcher.returncode != 0
        ((step),) = [int(path.name[5:]) for path in (Path(endless.output_dir) / "checkpoints").iterdir()]
        assert step == json.loads(log.read_text().splitlines()[-1])["step"]
    finally:
        for pid in {launcher.pid, *trainers(endless)}:
            if launcher.poll() is None or pid != launcher.pid:
                os.kill(pid, signal.SIGKILL)
        launcher.wait()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_other_with_a_line_that_names_it(rank, endless, tmp_path):
    """Without a launcher that would see it: both are started here."""
    command, environment = launched(endless, tmp_path, 2)
    command = [sys.executable, "-m", "ratlip_hf.training", *command[-2:]]
    environment |= {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    both = []
    for number in ("0", "1"):
        given = {**environment, "RANK": number, "LOCAL_RANK": number}
        both.append(subprocess.Popen(command, env=given, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True))
    log = Path(endless.output_dir) / "log.jsonl"
    assert wait_for(lambda: log.exists() and log.read_text().count("\n") > 2, 300)
    both[rank].kill()
    _, said = both[1 - rank].communicate(timeout=60)
    both[rank].communicate()
    assert both[1 - rank].returncode != 0
    assert f"process {rank} of 2 (pid {both[rank].pid}) has died" in said
