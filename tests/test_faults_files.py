"""Faults of files and processes that every command shares: one writer at a time, regular files only, lines that are
added together, signals, what reaches a terminal; and `ratlip generate`. Names are those of docs/reliability.md."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from ratlip_hf import RATLIPPipeline
from ratlip_hf.cli.main import main
from ratlip_hf.utils import files
from ratlip_hf.utils.errors import CommandParser, Stopped, UserError, command_line, one_line, printable
from ratlip_hf.utils.files import append_line, atomic_directory, read_bytes, read_json, staged_files
from ratlip_hf.utils.locks import locked

RED = "a small red bird with black wings"
HOLDER = """
import sys, time
from ratlip_hf.utils.locks import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held(tmp_path):
    """A folder that another process has locked, and that process."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield tmp_path / "out", process
    process.kill()
    process.wait()


class TestLocks:  # C6, C8
    def test_another_process_is_named_and_a_dead_one_leaves_nothing_in_the_way(self, held, tmp_path):
        folder, process = held
        with pytest.raises(OSError, match=f"process {process.pid} on "), locked(folder):
            pass
        with pytest.raises(OSError, match="being written"), atomic_directory(folder):
            pass
        process.kill()
        process.wait()
        with locked(folder), atomic_directory(folder):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_a_thread_may_take_its_own_lock_again_and_a_fork_does_not_keep_it(self, tmp_path):
        with locked(tmp_path / "out"), locked(tmp_path / "out"):
            pid = os.fork()
            if pid == 0:
                time.sleep(30)
                os._exit(0)
        with locked(tmp_path / "out"):
            pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def test_every_command_that_writes_a_folder_respects_it(self, held, tmp_path, capsys):
        folder, _ = held
        (tmp_path / "a.pth").write_text("")
        for command in (
            ["data", "prepare", "synthetic-birds", "--num_images", "2", "--output_dir", str(folder)],
            ["export", "hub", str(folder)],
            ["convert", str(tmp_path / "a.pth"), str(folder)],
        ):
            assert main(command) == 2
            assert "is being written by process" in capsys.readouterr().err

    def test_one_call_of_generate_at_a_time_in_a_folder(self, tmp_path, capsys):
        with locked(tmp_path, inside=True):
            done = subprocess.run(
                [sys.executable, "-c", "import sys\nfrom ratlip_hf.utils.files import staged_files\n"
                 "with staged_files(sys.argv[1]): pass", str(tmp_path)],
                capture_output=True, text=True,
            )  # fmt: skip
        assert "is being written by process" in done.stderr

    def test_what_a_killed_writer_left_goes_with_the_next(self, tmp_path):  # H7
        (tmp_path / ".staged.x").mkdir()
        with staged_files(tmp_path) as folder:
            (folder / "a").write_text("1")
        assert [path.name for path in tmp_path.iterdir()] == ["a"]


def _append(path, worker):
    for number in range(50):
        append_line(path, f"{worker} {number} {'x' * 5000}")


class TestLines:  # C11
    def test_lines_of_several_processes_are_all_there_and_whole(self, tmp_path):
        context = multiprocessing.get_context("fork")
        workers = [context.Process(target=_append, args=(tmp_path / "lines", worker)) for worker in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        lines = (tmp_path / "lines").read_text().splitlines()
        assert len(lines) == len(set(lines)) == 200
        assert {len(line.split()[2]) for line in lines} == {5000}

    def test_a_full_disk_leaves_the_file_as_it_was(self, tmp_path):
        append_line(tmp_path / "lines", "one")
        with pytest.raises(OSError):
            append_line("/dev/full", "two")
        assert (tmp_path / "lines").read_text() == "one\n"


class TestReading:  # H11
    @pytest.fixture
    def odd(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        return [tmp_path / "pipe", "/dev/zero", "/dev/full", tmp_path]

    def test_only_regular_files_are_read(self, odd):
        for path in odd:
            for read in (read_bytes, read_json, files.file_sha256):
                with pytest.raises(OSError):
                    read(path)

    def test_and_only_up_to_a_size(self, tmp_path):
        with open(tmp_path / "huge", "wb") as file:
            file.truncate(2**40)
        with pytest.raises(OSError, match="larger than"):
            read_bytes(tmp_path / "huge")

    def test_no_command_hangs_on_them(self, odd, tmp_path, capsys):
        from ratlip_hf.training.__main__ import main as train

        out = ["--output_dir", str(tmp_path / "out")]
        for path in map(str, odd[:2]):
            for command in (
                ["generate", RED, "--prompts_file", path, *out],
                ["convert", path, str(tmp_path / "out")],
                ["evaluate", "--compare", path, path],
                ["evaluate", "--inception", path, "--protocol", "ratlip-released", "--data", str(tmp_path)],
            ):
                assert main(command) == 2, command
            (tmp_path / "c.json").unlink(missing_ok=True)
            (tmp_path / "c.json").symlink_to(path)
            assert train(["--config", str(tmp_path / "c.json"), *out]) == 2
            assert all(line.startswith("error: ") for line in capsys.readouterr().err.splitlines())
        assert not (tmp_path / "out").exists()

    def test_json_that_is_nested_too_deeply_is_one_line(self, tmp_path, capsys):
        from ratlip_hf.training.__main__ import main as train

        (tmp_path / "c.json").write_text("[" * 200_000)
        assert train(["--config", str(tmp_path / "c.json"), "--output_dir", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.count("\n") == 1


class TestTerminal:
    def test_what_would_move_the_cursor_or_turn_the_writing_is_shown_as_its_code(self, capsys):
        assert printable("a\x1b[2J\nb\u202e\u2028\udcff é") == "a\\x1b[2J\\nb\\u202e\\u2028\\udcff é"
        assert "\x1b" not in one_line(ValueError("\x1b[2J"))

        @command_line
        def fails():
            raise UserError("no file x\x1b[1A\x1b[2Kwritten  y")

        assert fails() == 2
        assert "\x1b" not in capsys.readouterr().err

    def test_an_argument_that_is_no_text_is_one_line(self):
        with pytest.raises(UserError, match=r"dcff is not UTF-8"):
            CommandParser(prog="tool").parse_args(["a\udcff"])

    def test_a_lost_prompt_is_not_shown_whole(self, pipe, caplog):
        pipe("a red bird " * 2_000)
        assert "words were lost" in caplog.text and len(caplog.text) < 1000


class TestSignals:  # H7, H8
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
    def test_a_command_clears_away_and_gives_the_code_of_a_shell(self, number, code, tmp_path, capsys):
        @command_line
        def main():
            with staged_files(tmp_path / "out") as folder:
                (folder / "half").write_text("half")
                os.kill(os.getpid(), number)
                time.sleep(5)

        assert main() == code
        assert not list(tmp_path.iterdir())
        assert capsys.readouterr().err.count("\n") == 1

    def test_what_is_ignored_stays_ignored(self):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            assert command_line(lambda: os.kill(os.getpid(), signal.SIGHUP))() == 0
        finally:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)


class TestGenerate:
    @pytest.fixture
    def generate(self, tmp_path, pipe, monkeypatch):
        monkeypatch.setattr("ratlip_hf.cli.generate.load_pipeline", lambda *_: pipe)
        return lambda *words: main(["generate", *map(str, words), "--output_dir", str(tmp_path / "out")])

    def listed(self, folder) -> list[dict]:
        return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]

    def test_a_byte_order_mark_and_odd_separators_are_no_part_of_prompts(self, generate, tmp_path):  # C12
        (tmp_path / "p.txt").write_bytes("\ufeffa red\x0bbird\u2028here\x0c\r\na blue bird".encode())
        assert generate("--prompts_file", tmp_path / "p.txt") == 0
        assert [entry["prompt"] for entry in self.listed(tmp_path / "out")] == [
            "a red\x0bbird\u2028here",
            "a blue bird",
        ]

    def test_a_second_call_lists_what_the_first_has_left(self, generate, tmp_path):
        assert generate("a red bird") == 0 and generate("a blue bird") == 0 and generate("a blue bird") == 0
        names = [entry["file"] for entry in self.listed(tmp_path / "out")]
        assert names == ["0000-a-red-bird.png", "0000-a-blue-bird.png"]
        (tmp_path / "out" / "manifest.jsonl").write_text("mine")
        assert generate("a green bird") == 2
        assert (tmp_path / "out" / "manifest.jsonl").read_text() == "mine"

    def test_what_is_finished_stays_after_an_interruption(self, generate, tmp_path, pipe, monkeypatch, capsys):  # H7
        draw, calls = RATLIPPipeline.__call__, []

        def interrupted(*arguments, **options):
            calls.append(1)
            if len(calls) == 2:
                raise Stopped(signal.SIGTERM)
            return draw(*arguments, **options)

        monkeypatch.setattr(RATLIPPipeline, "__call__", interrupted)
        assert generate("a red bird", "--num_images", 40) == 143
        entries = self.listed(tmp_path / "out")
        assert len(entries) == 16
        found = {path.name for path in (tmp_path / "out").iterdir()}
        assert found == {"grid.png", "manifest.jsonl", *(entry["file"] for entry in entries)}

    def test_no_number_of_images_takes_memory(self, generate, tmp_path, capsys):  # H7
        assert generate("a red bird", "--num_images", 10**9) == 2
        assert "asks for more than" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_the_grid_has_an_end(self, generate, tmp_path, monkeypatch):  # H7
        monkeypatch.setattr("ratlip_hf.cli.generate._IN_GRID", 4)
        assert generate("a red bird", "--num_images", 10) == 0
        assert len(self.listed(tmp_path / "out")) == 10
        with Image.open(tmp_path / "out" / "grid.png") as grid:
            assert grid.size == (4 * 194 - 2, 192)


def test_a_benchmark_on_a_million_threads_does_not_begin(capsys):
    assert main(["benchmark", "--threads", "1000000"]) == 2
    assert "--threads" in capsys.readouterr().err
