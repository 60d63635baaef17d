"""Programs as processes that know of each other, and one of them: a training run in float64, where rounding cannot be
mistaken for an error. Its arguments are those of the trainer; tests compare the weights after each checkpoint."""

import os
import socket
import subprocess
import sys

import torch

from ratlip_hf.training import loop, run
from ratlip_hf.training.config import load_config


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# The processes fork from one that has imported the libraries, which takes the time. One that fails ends all.
_TOGETHER = """
import os, runpy, signal, sys
import accelerate, ratlip_hf.pipeline

count, kind, *sys.argv = int(sys.argv[1]), *sys.argv[2:]
for rank in map(str, range(count)):
    if os.fork() == 0:
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
        run = runpy.run_module if kind == "module" else runpy.run_path
        run(sys.argv[0], run_name="__main__")
        sys.exit()
for _ in range(count):
    if os.wait()[1]:
        os.killpg(0, signal.SIGTERM)
"""


def run_together(count: int, kind: str, program: str, *arguments: object) -> str:
    """What `count` processes print that run the same "module" or "file" with the environment that launchers give."""
    given = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    given |= {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = [sys.executable, "-c", _TOGETHER, str(count), kind, program, *map(str, arguments)]
    done = subprocess.run(
        command,
        env={**os.environ, **{name: str(value) for name, value in given.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def double_clip(*arguments, load=run.load_frozen_clip):
    clip = load(*arguments)
    clip.text_encoder.double(), clip.image_encoder.double()
    return clip


def double_inputs(*arguments, to_device=loop.to_device):
    return to_device(*arguments).map(torch.Tensor.double)


def in_double(set_attribute=setattr) -> None:
    """Let training compute in float64 from here on."""
    torch.set_default_dtype(torch.float64)
    set_attribute(run, "load_frozen_clip", double_clip)
    set_attribute(loop, "to_device", double_inputs)


if __name__ == "__main__":
    in_double()
    loop.train(load_config(sys.argv[1:]))
