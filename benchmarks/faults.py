"""What is lost when commands are killed, disks are full, files are damaged and two write at once: `make faults`.
Every try runs a command of the package in a process of its own, does the harm, and looks at what is left; a command
that writes is then run again. Writes docs/records/faults.jsonl and the table of docs/reliability.md."""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ratlip_hf import RATLIPGenerator, RATLIPPipeline, bundled
from ratlip_hf.cli.main import main as ratlip
from ratlip_hf.convert.folder import original_networks
from ratlip_hf.data.manifest import require_recorded_shards
from ratlip_hf.evaluation.records import read_records
from ratlip_hf.training.__main__ import main as train
from ratlip_hf.utils.display import as_markdown
from ratlip_hf.utils.files import check_recorded_hashes, file_sha256

ROOT = Path(__file__).parents[1]
RECORDS, PAGE = ROOT / "docs" / "records" / "faults.jsonl", ROOT / "docs" / "reliability.md"
PROMPT = "a small red bird"
_NO_FAULT = {("two at once", "evaluate"), ("read-only disk", "data embed")}  # both add; the copy of data comes first


@dataclass(frozen=True)
class Command:
    """A command that writes `out`: how it is called, and what must hold of `out` at any time.

    `check` raises AssertionError or an error of the package for what is neither whole nor absent, and returns what
    must be the same after every complete call.
    """

    name: str
    run: Callable[[Path], int]
    check: Callable[[Path], object]
    tries: int
    again: bool = True  # whether the same call completes what a kill has left
    before: Callable[[Path], object] = lambda out: None  # what lies there when the command begins


def in_child(call: Callable[[], object], limit: int | None = None) -> int:
    """The process that runs `call`; its exit code is what that returns. `limit` is the largest file it may write."""
    if pid := os.fork():
        return pid
    code = 70  # of an unexpected exception
    try:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        code = call()
    finally:
        os._exit(code or 0)


def ended(pid: int) -> int:
    """Exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# The commands, and what must hold of their output


def images_are_listed(out: Path) -> object:
    if not (out / "manifest.jsonl").exists():
        # A kill between the files' moves: images may be there that no line names; each is whole.
        assert all(_opens(path) for path in out.glob("*.png"))
        return None
    entries = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert all(_opens(out / entry["file"]) for entry in entries)
    return sorted((entry["file"], file_sha256(out / entry["file"])) for entry in entries)


def _opens(path: Path) -> bool:
    with Image.open(path) as image:
        image.load()
    return True


def shards_are_whole(out: Path) -> object:
    if not out.exists():
        return None
    require_recorded_shards(out)
    return (out / "manifest.json").read_text()


def embeddings_are_whole(out: Path) -> object:
    require_recorded_shards(out)
    places = sorted((out / "text_embeddings").glob("[!.]*"))
    return [[file_sha256(path) for path in sorted(place.iterdir())] for place in places]


def pipeline_loads(out: Path) -> object:
    if not out.exists():
        return None
    check_recorded_hashes(out, "hub_export.json")
    pipe = RATLIPPipeline.from_pretrained(out)
    return file_sha256(next((out / "generator").glob("*.safetensors"))), type(pipe).__name__


def records_are_whole(out: Path) -> object:
    return len(read_records(out)) > 0 if out.exists() and out.stat().st_size else None


def run_is_whole(out: Path) -> object:
    state = out / "checkpoints" / "step-00000006" / "state.pt"
    if not state.exists():
        return None
    values = torch.load(state, weights_only=True)
    return {name: float(sum(v.double().sum() for v in values[name]["module"].values())) for name in ("ema",)}


def commands(place: Path) -> list[Command]:
    """Those that write, with sources in `place`."""
    model, source, data = str(bundled.model_dir()), place / "original.pth", place / "data"
    torch.manual_seed(0)
    plain = {
        "text_center": False,
        "text_norm": None,
        "upsampling": "nearest",
        "recurrence": "per_layer",
    }  # what the original programs can do
    torch.save(original_networks(RATLIPGenerator.from_preset("tiny", **plain).eval()), source)
    prepare = [
        "data",
        "prepare",
        "synthetic-birds",
        "--num_images",
        "60",
        "--images_per_shard",
        "10",
        "--workers",
        "1",
    ]
    assert ratlip([*prepare, "--output_dir", str(data)]) == 0
    clip = ["--protocol", "clip", "--data", str(data), "--eval_clip", model, "--max_images", "8"]

    def copy(out: Path) -> None:
        if not out.exists():
            shutil.copytree(data, out)

    def embed(out: Path) -> int:
        copy(out)
        return ratlip(["data", "embed", str(out), "--clip", model])

    training = ["--config", "synthetic_birds", "--clip", model, "--max_train_samples", "12", "--train_batch_size", "4"]
    training += [
        "--max_train_images",
        "24",
        "--checkpointing_steps",
        "1",
        "--evaluate_every",
        "none",
        "--sample_every",
    ]
    training += ["1000", "--final_learning_rate_factor", "1", "--resume_from_checkpoint", "latest", "--output_dir"]
    family = ["--family", "ratlip", "--prompt_layers", "0", "1", "2", "3"]
    return [
        Command("generate", lambda out: ratlip(["generate", PROMPT, "--num_images", "6", "--output_dir", str(out)]),
                images_are_listed, 120),
        Command("data prepare", lambda out: ratlip([*prepare, "--output_dir", str(out)]), shards_are_whole, 100),
        Command("data embed", embed, embeddings_are_whole, 60, before=copy),
        Command("convert", lambda out: ratlip(["convert", str(source), str(out), "--clip", model, *family]),
                pipeline_loads, 60, again=False),
        Command("export hub", lambda out: ratlip(["export", "hub", str(out), "--with_code"]), pipeline_loads, 60),
        Command("evaluate", lambda out: ratlip(["evaluate", *clip, "--output_file", str(out)]), records_are_whole, 40),
        Command("train", lambda out: train([*training, str(out)]), run_is_whole, 30),
    ]  # fmt: skip


# The faults


def killed(command: Command, folder: Path, whole: object, seconds: float, rng: random.Random) -> str:
    """kill -9 at a random moment, then the same call again."""
    out = folder / "out"
    pid = in_child(lambda: command.run(out))
    time.sleep(rng.uniform(0, 1.1 * seconds))
    os.kill(pid, signal.SIGKILL)
    if ended(pid) != -signal.SIGKILL:
        return "too late"
    command.check(out)
    if command.again or not out.exists():
        assert ended(in_child(lambda: command.run(out))) == 0
    assert command.check(out) == whole
    left = [path.name for path in folder.iterdir() if path.name != "out"]
    return "whole" if not left else "whole, with a hidden folder left"


def full(command: Command, folder: Path, whole: object, seconds: float, rng: random.Random) -> str:
    """No file may grow beyond a random size, as on a disk that is full; then the same call with room."""
    out = folder / "out"
    command.before(out)
    code = ended(in_child(lambda: command.run(out), rng.choice([0, 100, 10_000, 100_000, 1_000_000])))
    assert code in (0, 2), f"exit code {code}"
    command.check(out)
    if code == 0:
        return "had room"
    if command.again or not out.exists():
        assert ended(in_child(lambda: command.run(out))) == 0
    assert command.check(out) == whole
    return "whole"


def two_at_once(command: Command, folder: Path, whole: object, seconds: float, rng: random.Random) -> str:
    """The same call twice at the same time."""
    out = folder / "out"
    first = in_child(lambda: command.run(out))
    time.sleep(rng.uniform(0, 0.5 * seconds))
    codes = sorted([ended(in_child(lambda: command.run(out))), ended(first)])
    assert codes in ([0, 0], [0, 2]), codes
    assert command.check(out) == whole
    return "one after the other" if codes == [0, 0] else "one refused"


def read_only(command: Command, folder: Path, whole: object, seconds: float, rng: random.Random) -> str:
    """A file system that cannot be written."""
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], stderr=subprocess.DEVNULL
    ).returncode:
        return "not tried: mounting is not allowed here"
    try:
        assert ended(in_child(lambda: command.run(folder / "out"))) == 2
        return "refused"
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def interrupted(command: Command, folder: Path, whole: object, seconds: float, rng: random.Random) -> str:
    """SIGTERM at a random moment, then the same call again."""
    out = folder / "out"
    pid = in_child(lambda: command.run(out))
    time.sleep(rng.uniform(0, 1.1 * seconds))
    os.kill(pid, signal.SIGTERM)
    code = ended(pid)
    assert code in (0, 143, -signal.SIGTERM), code  # the last before the command has begun
    command.check(out)
    if code == 0:
        assert command.check(out) == whole
        return "too late"
    if command.again or not out.exists():
        assert ended(in_child(lambda: command.run(out))) == 0
    assert command.check(out) == whole or command.name == "generate"  # which keeps what was finished
    return "whole"


FAULTS = {
    "kill -9": (killed, 1.0),
    "SIGTERM": (interrupted, 0.3),
    "disk full": (full, 0.3),
    "two at once": (two_at_once, 0.15),
    "read-only disk": (read_only, 0.02),
}


def damaged_files(place: Path, tries: int, rng: random.Random) -> Counter:
    """A flipped bit, or a cut, somewhere in a file that is read: refused in one line, or without any effect."""
    exported, shards, source = place / "exported", place / "data", place / "original.pth"
    assert ratlip(["export", "hub", str(exported)]) == 0
    known = torch.load(source, weights_only=True)["netG"]
    readers = {
        source: lambda: _converts(source, known),
        exported / "generator" / "diffusion_pytorch_model.safetensors": lambda: _same_images(exported),
        exported / "image_encoder" / "model.safetensors": lambda: _same_images(exported),
        exported / "generator" / "config.json": lambda: _same_images(exported),
        exported / "tokenizer" / "tokenizer_config.json": lambda: _same_images(exported),
        exported / "model_index.json": lambda: _same_images(exported),
        next(shards.glob("data/train*")): lambda: _loads(shards),
        shards / "manifest.json": lambda: _loads(shards),
    }
    results: Counter = Counter()
    for number in range(tries):
        path, read = list(readers.items())[number % len(readers)]
        content = path.read_bytes()
        spoilt = bytearray(content)
        if rng.random() < 0.3:
            del spoilt[rng.randrange(len(spoilt)) :]
        else:
            spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
        path.write_bytes(spoilt)
        code = ended(in_child(read))
        path.write_bytes(content)
        named = {0: "no effect", 2: "refused", 3: "other result, no word"}
        results[named.get(code, f"exit code {code} ({path.name})")] += 1
        if code not in (0, 2):
            results["lost"] += 1
    return results


def _converts(source: Path, known: dict) -> int:
    from ratlip_hf.convert.original import read_original
    from ratlip_hf.utils.errors import command_line

    def read() -> int:
        found = read_original(source).networks["netG"]
        return 0 if found.keys() == known.keys() and all(found[name].equal(known[name]) for name in known) else 3

    return command_line(read)()


def _same_images(folder: Path) -> int:
    from ratlip_hf.cli.options import load_pipeline
    from ratlip_hf.utils.errors import command_line

    def draw(source) -> bytes:
        return load_pipeline(str(source))(PROMPT, generator=torch.Generator().manual_seed(0)).images[0].tobytes()

    return command_line(lambda: 0 if draw(folder) == draw(bundled.model_dir()) else 3)()


def _loads(folder: Path) -> int:
    from ratlip_hf.data.prepare.check import check
    from ratlip_hf.data.read.rows import load_captioned
    from ratlip_hf.utils.errors import command_line

    def load() -> int:
        found = load_captioned(str(folder), "train")
        return (
            0
            if len(found) == 60 and not check(folder)["problems"].keys() - {"caption that several images share"}
            else 3
        )

    return command_line(load)()


# Counting and writing down


def trials(command: Command, fault: str, tries: int, place: Path, whole: object, seconds: float, rng) -> Counter:
    """Outcomes of so many tries, and under "lost" how many did not hold."""
    results: Counter = Counter()
    for number in range(tries):
        with tempfile.TemporaryDirectory(dir=place) as folder:
            try:
                results[FAULTS[fault][0](command, Path(folder), whole, seconds, rng)] += 1
            except Exception as error:
                results["lost"] += 1
                print(f"LOST: {fault}, {command.name}, try {number}: {type(error).__name__}: {error}", flush=True)
    return results


def measure(share: float, seed: int) -> list[dict]:
    """One record for each fault and command."""
    rng, found = random.Random(seed), []
    with tempfile.TemporaryDirectory(prefix="ratlip-faults-") as temporary:
        place = Path(temporary)
        for command in commands(place):
            start = time.monotonic()
            assert ended(in_child(lambda command=command: command.run(place / "whole"))) == 0, command.name
            seconds = time.monotonic() - start
            whole = command.check(place / "whole")
            shutil.rmtree(place / "whole") if (place / "whole").is_dir() else (place / "whole").unlink()
            for fault, (_, part) in FAULTS.items():
                if (fault, command.name) in _NO_FAULT:
                    continue
                tries = max(1, round(command.tries * part * share))
                results = trials(command, fault, tries, place, whole, seconds, rng)
                found.append({"fault": fault, "command": command.name, "tries": tries, "results": dict(results)})
                print(found[-1], flush=True)
        tries = max(1, round(120 * share))
        results = damaged_files(place, tries, rng)
        found.append({"fault": "damaged file", "command": "readers", "tries": tries, "results": dict(results)})
        print(found[-1], flush=True)
    return found


def as_table(records: list[dict]) -> str:
    """Fault, command, tries, what was lost, what else happened."""
    rows = []
    for record in records:
        others = {name: count for name, count in record["results"].items() if name != "lost"}
        told = ", ".join(f"{count} {name}" for name, count in sorted(others.items()))
        lost = str(record["results"].get("lost", 0))
        rows.append((record["fault"], f"`{record['command']}`", str(record["tries"]), lost, told))
    total, lost = (str(sum(int(row[column]) for row in rows)) for column in (2, 3))
    return as_markdown(("fault", "command", "tries", "lost", "what happened"), [*rows, ("all", "", total, lost, "")])


def write_block(page: Path, name: str, text: str) -> None:
    """Put text between the marks of that name on a page."""
    before, mark, rest = page.read_text().partition(f"<!-- {name} -->\n")
    assert mark, f"{page} has no place for {name}"
    page.write_text(f"{before}{mark}{text}\n<!-- end -->{rest.partition('<!-- end -->')[2]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the tries (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = measure(options.share, options.seed)
    RECORDS.write_text("".join(json.dumps(record) + "\n" for record in records))
    write_block(PAGE, "faults", as_table(records))
    return int(any(record["results"].get("lost") for record in records))


if __name__ == "__main__":
    sys.exit(main())
