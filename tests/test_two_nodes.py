"""Two machines, as far as one can play both: `accelerate launch` with the shipped file, once per machine rank.
What the processes compute together is compared with one process in `test_whole_runs`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from several_processes import free_port

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "examples/two_nodes.yaml")]


def command(rank: int, port: int, output_dir: Path) -> list[str]:
    """The launch of one machine, with one process on it."""
    where = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port), "--machine_rank", str(rank)]
    program = [str(ROOT / "train_ratlip.py"), "--config", "smoke", "--output_dir", str(output_dir)]
    return [*LAUNCH, *where, "--num_processes", "2", *program]


@pytest.mark.slow
def test_two_nodes_make_one_run(tmp_path):
    """Eight images on each per step: both are counted, and one of them writes."""
    port, output_dir = free_port(), tmp_path / "run"
    nodes = [
        subprocess.Popen(
            command(rank, port, output_dir), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENVIRONMENT
        )
        for rank in (0, 1)
    ]
    try:
        for node in nodes:
            output = node.communicate(timeout=300)[0].decode()
            assert node.returncode == 0, output
    finally:
        for node in nodes:
            node.kill()
    lines = [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["images"]) for line in lines] == [(1, 16), (2, 32)]
    assert [folder.name for folder in (output_dir / "checkpoints").iterdir()] == ["step-00000002"]
