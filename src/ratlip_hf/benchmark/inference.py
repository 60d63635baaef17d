"""How fast images come: the plain path, `pipe.optimize()`, compiled; the roofline; one-step diffusion; start-up.

Each measurement returns a part of the record of `ratlip benchmark`; the functions that end in `_table` show it.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPVisionModelWithProjection

from .. import bundled
from ..fast.session import FastSession
from ..models import RATLIPGenerator
from ..pipeline import RATLIPPipeline
from . import measuring
from .measuring import DTYPES
from .runtimes import RUNTIMES, runtime_function

PLAIN = "plain fp32"
DIFFUSION_SIZE = 256  # pixels; the denoiser halves its 32 x 32 latents three times
_DIFFUSION_TOKENS = 77
_SHOWN_OPERATIONS = 8
_IMPORTS = {"torch and diffusers": "import torch, diffusers", "with ratlip_hf": "import torch, diffusers, ratlip_hf"}
_START_UP_IMAGES = 20
_PROMPT = "a small red bird with black wings"

Tower = CLIPVisionModelWithProjection


@dataclass(frozen=True)
class Inference:
    """What is measured: a preset, batch sizes, repetitions, the device, and on CPUs further runtimes."""

    preset: str
    batch_sizes: tuple[int, ...]
    repetitions: int
    device: torch.device
    runtimes: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """What a device has: `optimize()` and other runtimes are for CPUs, plain halves and compiled ones for GPUs."""
        if self.device.type == "cpu":
            others = (f"{name} {precision}" for name in self.runtimes for precision in RUNTIMES[name])
            return (PLAIN, "optimized fp32", "optimized bf16", *others)
        return (PLAIN, "plain bf16", "compiled fp32", "compiled bf16")


def measure(what: Inference) -> dict:
    """All values of inference, for the record."""
    cases = [(path, batch) for batch in what.batch_sizes for path in what.paths]
    memory = {case: measuring.in_fresh_process(_peak, *case, what.preset, str(what.device)) for case in cases}
    networks = build_networks(what.preset, what.device)
    calls = {path: image_function(path, *networks) for path in what.paths}
    rates = {name: measuring.matrix_product_rate(dtype, what.device) for name, dtype in DTYPES.items()}
    work = {path: multiply_adds(path, *networks) for path in what.paths}
    rows = []
    for batch in what.batch_sizes:
        inputs = inputs_of(networks[0], batch)
        plain = calls[PLAIN](*inputs)
        bound = {path: partial(call, *inputs) for path, call in calls.items()}
        seconds = measuring.interleaved(bound, what.repetitions, what.device)
        times = {path: measuring.summary(taken) for path, taken in seconds.items()}
        for path, row in times.items():
            row = {"path": path, "batch": batch, **row, "faster": times[PLAIN]["median_s"] / row["median_s"]}
            roofline = batch * work[path] / rates[path.split()[1]]
            row |= {"roofline_s": roofline, "of_roofline": row["median_s"] / roofline}
            peak, plain_peak = memory[path, batch], memory[PLAIN, batch]
            row |= {"peak_bytes": peak, "of_plain_peak": measuring.ratio(peak, plain_peak)}
            rows.append(row | errors(bound[path](), plain))
    one = inputs_of(networks[0], 1)
    return {
        "preset": what.preset,
        "repetitions": what.repetitions,
        "matrix_product_rate": rates,
        "multiply_adds_per_image": work,
        "rows": rows,
        "operations": {
            path: operations(partial(call, *one)) for path, call in calls.items() if path.split()[0] not in RUNTIMES
        },
    }


def inference_table(inference: Mapping) -> str:
    """A line for each path and batch size."""
    columns = {"batch": "{batch}", "path": "{path}", **measuring.TIMES, "images/s": "{images_per_s:.3g}"}
    columns |= {"faster": "{faster:.2f}x", "x roofline": "{of_roofline:.2f}", "max error / range": "{max_error:.1e}"}
    columns |= {"PSNR dB": "{psnr_db:.1f}", "peak memory": "{peak}", "of plain": "{of_plain_peak:.2f}"}
    rows = []
    for row in inference["rows"]:
        unknown = {} if "psnr_db" in row else {"max_error": None, "psnr_db": None}  # compared with itself
        rows.append({**row, **unknown, "images_per_s": row["batch"] / row["median_s"]})
    return measuring.table(columns, rows)


def roofline_table(inference: Mapping) -> str:
    """Work of each path, and the rate of a large matrix product, which together are the roofline."""
    columns = {"path": "{path}", "GFLOP per image": "{gflop:.1f}", "GFLOP/s of a matrix product": "{gflop_per_s:.0f}"}
    rows = []
    for path, work in inference["multiply_adds_per_image"].items():
        rate = inference["matrix_product_rate"][path.split()[1]]
        rows.append({"path": path, "gflop": 2 * work / 1e9, "gflop_per_s": 2 * rate / 1e9, "seconds": work / rate})
    return measuring.table(columns | {"roofline, s per image": "{seconds:.4f}"}, rows)


def operations_table(inference: Mapping) -> str:
    """Where the time of each path goes, at batch 1."""
    rows = [
        {"path": path, "shares": ", ".join(f"{name} {share:.0%}" for name, share in shares.items())}
        for path, shares in inference["operations"].items()
    ]
    return measuring.table({"path": "{path}", "share of the time by operator": "{shares}"}, rows)


def build_networks(preset: str, device: torch.device) -> tuple[RATLIPGenerator, Tower]:
    """Generator and image tower with random weights, every parameter off its start."""
    torch.manual_seed(0)
    generator = RATLIPGenerator.from_preset(preset).eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            scale = 0.5 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.add_(scale * torch.randn_like(parameter))
        for name, statistic in generator.named_buffers():
            if name.endswith("running_var"):
                statistic.uniform_(0.5, 1.5)
    return generator.to(device), image_tower(preset).to(device)


def image_tower(preset: str) -> Tower:
    """The bundled CLIP's for `tiny`; for the others a ViT-B/32 with random weights. Frozen."""
    if preset == "tiny":
        tower = Tower.from_pretrained(bundled.model_dir() / "image_encoder")
    else:
        tower = Tower(CLIPConfig().vision_config)
    return tower.requires_grad_(False).eval()


def inputs_of(generator: RATLIPGenerator, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same noise [B, Z] and text embeddings [B, D] at every call."""
    sizes, rng = generator.config, torch.Generator().manual_seed(0)
    random = (torch.randn(batch, width, generator=rng) for width in (sizes.noise_dim, sizes.text_dim))
    return tuple(x.to(generator.device) for x in random)


def parameters_of(*networks: nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def image_function(path: str, generator: RATLIPGenerator, tower: Tower) -> Callable[..., torch.Tensor]:
    """(noise, embeddings) -> unclamped float32 images, without the postprocessing that all paths share."""
    kind, dtype = path.split()[0], DTYPES[path.split()[1]]
    if kind == "optimized":
        session = FastSession(dtype)
        run = session.prepare(generator, tower)
    elif kind in RUNTIMES:
        run = runtime_function(*path.split(), generator, tower)
    else:
        # Autocast rather than `.to(dtype)`, so that all paths share one set of weights.
        network = torch.compile(generator) if kind == "compiled" else generator

        def run(noise: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
            with torch.autocast(noise.device.type, dtype, enabled=dtype != torch.float32):
                return network(noise, embeds, tower, return_dict=False)[0]

    return torch.no_grad()(lambda noise, embeds: run(noise, embeds).float())


def _peak(path: str, batch: int, preset: str, device: str) -> int:
    """Bytes at the peak of a process that builds, prepares and generates twice."""
    networks = build_networks(preset, torch.device(device))
    call, inputs = image_function(path, *networks), inputs_of(networks[0], batch)
    call(*inputs), call(*inputs)
    return measuring.peak_bytes(device)


def errors(images: torch.Tensor, plain: torch.Tensor) -> dict[str, float]:
    """Largest difference as a share of the plain images' range, and PSNR in dB, where there is a difference."""
    difference, spread = images - plain, plain.max() - plain.min()
    if not difference.any():
        return {"max_error": 0.0}
    psnr = -20 * torch.log10(difference.square().mean().sqrt() / spread)
    return {"max_error": (difference.abs().max() / spread).item(), "psnr_db": psnr.item()}


def multiply_adds(path: str, generator: RATLIPGenerator, tower: Tower) -> int:
    """Multiply-adds of convolutions and matrix products for one image, as this path arranges them."""
    if path.split()[0] in RUNTIMES:  # the arrangement is that of the plain networks
        path = PLAIN
    # Packed operators are not counted: the same arrangement without them.
    with warnings.catch_warnings(), FlopCounterMode(display=False) as counter:
        warnings.filterwarnings("ignore", message="TF32 acceleration")  # which the switch below has no part in
        with torch.backends.mkldnn.flags(enabled=False):
            image_function(path.replace("compiled", "plain"), generator, tower)(*inputs_of(generator, 1))
    return counter.get_total_flops() // 2


def operations(call: Callable[[], object]) -> dict[str, float]:
    """Shares of the time of one call by operator, the largest first; the rest together."""
    call()
    with _silent_stderr(), profile(acc_events=True) as trace:
        call()
    events = trace.key_averages()
    on_gpu = any(event.self_device_time_total for event in events)
    times = Counter({each.key: each.self_device_time_total if on_gpu else each.self_cpu_time_total for each in events})
    shares = {name: spent / times.total() for name, spent in times.most_common(_SHOWN_OPERATIONS)}
    return shares | {"others": 1 - sum(shares.values())}


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """The profiler reports on itself there, from outside of Python."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


# One-step diffusion of like resolution: SD-Turbo's shapes with random weights


def measure_diffusion(preset: str, repetitions: int, device: torch.device) -> dict:
    """Seconds for one image of both, in each precision, in turns."""
    networks = build_networks(preset, device)
    inputs, kind = inputs_of(networks[0], 1), "optimized" if device.type == "cpu" else "compiled"
    calls, facts, baselines = {}, {}, {}
    for precision, dtype in DTYPES.items():
        ours, other = f"{preset}, {kind} {precision}", f"one-step diffusion {precision}"
        denoiser, decoder = build_diffusion(device, dtype)
        calls[ours] = partial(image_function(f"{kind} {precision}", *networks), *inputs)
        calls[other] = diffusion_sampler(denoiser, decoder)
        facts[ours] = {"size": networks[0].config.sample_size, "parameters": parameters_of(*networks)}
        # The encoder half of the autoencoder takes no part.
        facts[other] = {"size": DIFFUSION_SIZE, "parameters": parameters_of(denoiser, decoder.decoder)}
        baselines[ours] = baselines[other] = other
    seconds = measuring.interleaved(calls, repetitions, device)
    times = {name: measuring.summary(taken) for name, taken in seconds.items()}
    rows = [
        {"model": name, **facts[name], **row, "faster": times[baselines[name]]["median_s"] / row["median_s"]}
        for name, row in times.items()
    ]
    return {"repetitions": repetitions, "rows": rows}


def build_diffusion(device: torch.device, dtype: torch.dtype) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """The denoiser of Stable Diffusion 2.1, which SD-Turbo distils into one step, and its decoder."""
    torch.manual_seed(0)
    with torch.device(device):
        denoiser = UNet2DConditionModel(
            sample_size=DIFFUSION_SIZE // 8,
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
            use_linear_projection=True,
        )
        decoder = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
    return denoiser.to(dtype).eval(), decoder.to(dtype).eval()


def diffusion_sampler(denoiser: UNet2DConditionModel, decoder: AutoencoderKL) -> Callable[[], torch.Tensor]:
    """One step at the last time, then the decoder: an image [1, 3, 256, 256] at every call."""
    like = {"device": denoiser.device, "dtype": denoiser.dtype}
    latents = torch.randn(1, 4, DIFFUSION_SIZE // 8, DIFFUSION_SIZE // 8, **like)
    embeds = torch.randn(1, _DIFFUSION_TOKENS, denoiser.config.cross_attention_dim, **like)
    step = torch.tensor(999, device=denoiser.device)

    @torch.no_grad()
    def sample() -> torch.Tensor:
        noise = denoiser(latents, step, encoder_hidden_states=embeds, return_dict=False)[0]
        # With the noise of SD's schedule at its last step, 1 - 0.0047 of the variance.
        return decoder.decode((latents - 0.9976 * noise) / 0.0683, return_dict=False)[0]

    return sample


def diffusion_table(diffusion: Mapping) -> str:
    """This model compared with one-step diffusion, one image at a time."""
    columns = {"model": "{model}", "pixels": "{size}", "parameters": "{millions:.0f} M", **measuring.TIMES}
    rows = [{**row, "millions": row["parameters"] / 1e6} for row in diffusion["rows"]]
    return measuring.table(columns | {"faster than diffusion": "{faster:.1f}x"}, rows)


# Start-up


def measure_start_up(repetitions: int) -> dict[str, float]:
    """Medians in seconds: of both imports, their difference, of the command that generates one image with the bundled
    model, and of that model's call alone, from prompt to image, as it comes and optimized."""
    seconds: dict[str, list[float]] = {name: [] for name in (*_IMPORTS, "generate")}
    with tempfile.TemporaryDirectory() as folder:
        generate = ["-m", "ratlip_hf.cli.main", "generate", _PROMPT, "--output_dir", str(Path(folder) / "images")]
        for number in range(repetitions + 1):
            for name, code in _IMPORTS.items():
                seconds[name].append(_run_command(["-c", code]))
            seconds["generate"].append(_run_command(generate))
            if not number:  # from a cold disk
                seconds = {name: [] for name in seconds}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    medians["import"] = medians["with ratlip_hf"] - medians["torch and diffusers"]
    return medians | {name: statistics.median(times) for name, times in _image_seconds().items()}


def _image_seconds() -> dict[str, list[float]]:
    plain, optimized = (RATLIPPipeline.from_pretrained(bundled.model_dir()) for _ in range(2))
    optimized.optimize()
    calls = {"image": lambda: plain(_PROMPT), "optimized image": lambda: optimized(_PROMPT)}
    return measuring.interleaved(calls, _START_UP_IMAGES, torch.device("cpu"))


def _run_command(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def start_up_table(start_up: Mapping) -> str:
    """Seconds until something works."""
    names = {
        "import": "`import ratlip_hf` beyond torch and diffusers",
        "generate": "`ratlip generate` on the bundled model, one image, all in all",
        "image": "`pipe(prompt)` with the bundled model, 64 px",
        "optimized image": "the same after `pipe.optimize()`, a prompt seen before",
    }
    rows = [{"what": text, "seconds": start_up[name]} for name, text in names.items()]
    return measuring.table({"what": "{what}", "median s": "{seconds:.3f}"}, rows)
