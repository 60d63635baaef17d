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


def run_together(count: int, *arguments: object) -> str:
    """What `count` Python processes print, all with the same arguments and the environment that a launcher gives."""
    everywhere = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    everywhere |= {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
    everywhere["MASTER_PORT"] = free_port()
    started = []
    for rank in range(count):
        given = {**everywhere, "RANK": rank, "LOCAL_RANK": rank}
        environment = {**os.environ, **{name: str(value) for name, value in given.items()}}
        command, pipes = (
            [sys.executable, *map(str, arguments)],
            {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT},
        )
        started.append(subprocess.Popen(command, env=environment, text=True, **pipes))
    try:
        outputs = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert not any(process.returncode for process in started), outputs
    return "".join(outputs)


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
