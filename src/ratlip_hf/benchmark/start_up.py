"""How long the package takes to be ready: its import beyond torch and diffusers, `ratlip generate`, one picture of it.
The first two in fresh interpreters, in turns."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from .. import bundled
from ..pipeline import RATLIPPipeline
from .measuring import interleaved

_IMPORTS = {"torch and diffusers": "import torch, diffusers", "with ratlip_hf": "import torch, diffusers, ratlip_hf"}
_PICTURES = 20
_SENTENCE = "a small red bird with black wings"


def measure(repetitions: int) -> dict[str, float]:
    """Medians in seconds: of both imports, their difference, of the command that draws one picture with the bundled
    model, and of that model's drawing alone, from sentence to picture, as it comes and optimized."""
    seconds: dict[str, list[float]] = {name: [] for name in (*_IMPORTS, "generate")}
    with tempfile.TemporaryDirectory() as folder:
        generate = ["-m", "ratlip_hf.cli.main", "generate", _SENTENCE, "--out", str(Path(folder) / "pictures")]
        for number in range(repetitions + 1):
            for name, code in _IMPORTS.items():
                seconds[name].append(_run(["-c", code]))
            seconds["generate"].append(_run(generate))
            if not number:  # from a cold disk
                seconds = {name: [] for name in seconds}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    medians["import"] = medians["with ratlip_hf"] - medians["torch and diffusers"]
    return medians | {name: statistics.median(times) for name, times in _pictures().items()}


def _pictures() -> dict[str, list[float]]:
    plain, optimized = (RATLIPPipeline.from_pretrained(bundled.model_dir()) for _ in range(2))
    optimized.optimize()
    calls = {"picture": lambda: plain(_SENTENCE), "optimized picture": lambda: optimized(_SENTENCE)}
    return interleaved(calls, _PICTURES, torch.device("cpu"))


def _run(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started
