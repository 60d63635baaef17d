"""Tools of all measurements: the machine, times taken in turns, the peak memory of a process of its own."""

import datetime
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import torch

from ..evaluation.records import environment
from ..utils.display import as_markdown, as_size

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TIMES = {"median s": "{median_s:.3g}", "range s": "{least_s:.3g}-{greatest_s:.3g}"}  # of a `summary`, for a `table`
_SIDE = 2048  # of the matrices whose product gives the roofline


def machine(device: torch.device) -> dict:
    """What speed depends on: the date, processor or GPU, threads, versions."""
    return {
        "date": str(datetime.date.today()),
        "device": device_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **environment(),
    }


def describe_machine(machine: Mapping) -> str:
    """One line of what [`machine`] returns: date, device, threads, versions."""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "diffusers"))
    processors = f"{machine['device']}, {machine['threads']} threads of {machine['cores']} cores"
    return f"{machine['date']}, {processors}, {versions}"


def device_name(device: torch.device | str) -> str:
    """What the machine calls its GPU or its processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def interleaved(paths: Mapping[str, Callable], repetitions: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call, all paths in turns (A B A B), so that what else the machine does meets all of them.

    Every path is called once before, unmeasured. The device is waited for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(repetitions + 1):
        for name, call in paths.items():
            wait_for(device)
            started = time.perf_counter()
            call()
            wait_for(device)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, least and greatest of some times, in seconds."""
    return {"median_s": statistics.median(seconds), "least_s": min(seconds), "greatest_s": max(seconds)}


def table(columns: Mapping[str, str], rows: Iterable[Mapping]) -> str:
    """Rows of a record in Markdown: for each column its head and a format of a row's values, "-" where one is None.

    "{peak}" is the size of `peak_bytes`, of which None means that memory did not suffice.
    """

    def cell(form: str, row: Mapping) -> str:
        try:
            return form.format(**row, peak=as_size(row["peak_bytes"]) if row.get("peak_bytes") else "does not fit")
        except TypeError:  # None has no decimals
            return "-"

    return as_markdown(list(columns), [[cell(form, row) for form in columns.values()] for row in rows])


def ratio(one: int | None, other: int | None) -> float | None:
    """Of two peaks, where both are known."""
    return one / other if one and other else None


def wait_for(device: torch.device) -> None:
    """Return when a GPU has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Multiply-adds per second of one large matrix product: no layer can be expected to do better."""
    one, other = (torch.randn(_SIDE, _SIDE, device=device).to(dtype) for _ in range(2))
    return _SIDE**3 / min(interleaved({"product": lambda: one @ other}, 7, device)["product"])


def peak_bytes(device: torch.device | str) -> int:
    """The most memory this process has had: allocated on a GPU, else resident."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Where there is one, the file that starts anew with a program: what getrusage says includes its parent's peak.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_fresh_process(work: Callable, *arguments):
    """What `work(*arguments)` returns in a process of its own, such as its peak; None if memory did not suffice."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        try:
            return fresh.submit(work, *arguments).result()
        except (torch.OutOfMemoryError, BrokenProcessPool):
            return None
