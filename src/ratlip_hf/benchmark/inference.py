"""How fast noise and sentence embeddings become images: the plain path, `pipe.optimize()`, compiled, and a floor.
Drawing beside a one-step diffusion model of like resolution: SD-Turbo's shapes with random weights."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPVisionModelWithProjection

from .. import bundled
from ..fast.session import FastSession
from ..models import RATLIPGenerator
from .measuring import DTYPES, in_fresh_process, interleaved, matrix_product_rate, peak_bytes, ratio, summary

PLAIN = "plain fp32"
_SHOWN_OPERATIONS = 8

Tower = CLIPVisionModelWithProjection


@dataclass(frozen=True)
class Drawing:
    """What is measured: a preset, batch sizes, repetitions, and the device."""

    preset: str
    batch_sizes: tuple[int, ...]
    repetitions: int
    device: torch.device

    @property
    def paths(self) -> tuple[str, ...]:
        """What a device has: `optimize()` is for CPUs, plain halves and compiled ones for GPUs."""
        if self.device.type == "cpu":
            return (PLAIN, "optimized fp32", "optimized bf16")
        return (PLAIN, "plain bf16", "compiled fp32", "compiled bf16")


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
    """The same noise [B, Z] and sentence embeddings [B, D] at every call."""
    sizes, rng = generator.config, torch.Generator().manual_seed(0)
    drawn = (torch.randn(batch, width, generator=rng) for width in (sizes.noise_dim, sizes.text_dim))
    return tuple(x.to(generator.device) for x in drawn)


def parameters_of(*networks: nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def drawer(path: str, generator: RATLIPGenerator, tower: Tower) -> Callable[..., torch.Tensor]:
    """(noise, embeddings) -> unclamped float32 images, without the postprocessing that all paths share."""
    kind, dtype = path.split()[0], DTYPES[path.split()[1]]
    if kind == "optimized":
        session = FastSession(dtype)
        draw = session.prepare(generator, tower)
    else:
        # Autocast rather than `.to(dtype)`, so that all paths share one set of weights.
        run = torch.compile(generator) if kind == "compiled" else generator

        def draw(noise: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
            with torch.autocast(noise.device.type, dtype, enabled=dtype != torch.float32):
                return run(noise, embeds, tower, return_dict=False)[0]

    return torch.no_grad()(lambda noise, embeds: draw(noise, embeds).float())


def peaks(what: Drawing) -> dict[tuple[str, int], int | None]:
    """Bytes at the peak of a process that builds, prepares and draws twice, for every path and batch size."""
    facts = (what.preset, str(what.device))
    cases = [(path, batch) for batch in what.batch_sizes for path in what.paths]
    return {case: in_fresh_process(_draw_twice, *case, *facts) for case in cases}


def _draw_twice(path: str, batch: int, preset: str, device: str) -> int:
    networks = build_networks(preset, torch.device(device))
    draw, given = drawer(path, *networks), inputs_of(networks[0], batch)
    draw(*given), draw(*given)
    return peak_bytes(device)


def measure(what: Drawing) -> dict:
    """All figures of drawing, for the record."""
    memory = peaks(what)
    generator, tower = build_networks(what.preset, what.device)
    draws = {path: drawer(path, generator, tower) for path in what.paths}
    rates = {name: matrix_product_rate(dtype, what.device) for name, dtype in DTYPES.items()}
    work = {path: multiply_adds(path, generator, tower) for path in what.paths}
    rows = []
    for batch in what.batch_sizes:
        given = inputs_of(generator, batch)
        plain = draws[PLAIN](*given)
        seconds = interleaved(
            {path: _call(draw, given) for path, draw in draws.items()}, what.repetitions, what.device
        )
        base = summary(seconds[PLAIN])["median_s"]
        for path, draw in draws.items():
            times = summary(seconds[path])
            floor = batch * work[path] / rates[path.split()[1]]
            row = {"path": path, "batch": batch, **times, "faster": base / times["median_s"]}
            row |= {"floor_s": floor, "of_floor": times["median_s"] / floor}
            peak, plain_peak = memory[path, batch], memory[PLAIN, batch]
            row |= {"peak_bytes": peak, "of_plain_peak": ratio(peak, plain_peak)}
            rows.append(row | errors(draw(*given), plain))
    return {
        "preset": what.preset,
        "repetitions": what.repetitions,
        "matrix_product_rate": rates,
        "multiply_adds_per_image": work,
        "rows": rows,
        "operations": {path: operations(_call(draws[path], inputs_of(generator, 1))) for path in what.paths},
    }


def errors(images: torch.Tensor, plain: torch.Tensor) -> dict[str, float]:
    """Largest difference as a share of the plain images' range, and PSNR in dB, where there is a difference."""
    difference, spread = images - plain, plain.max() - plain.min()
    if not difference.any():
        return {"max_error": 0.0}
    psnr = -20 * torch.log10(difference.square().mean().sqrt() / spread)
    return {"max_error": (difference.abs().max() / spread).item(), "psnr_db": psnr.item()}


def multiply_adds(path: str, generator: RATLIPGenerator, tower: Tower) -> int:
    """Multiply-adds of convolutions and matrix products for one image, as this path arranges them."""
    # Packed operators are not counted: the same arrangement without them.
    with warnings.catch_warnings(), FlopCounterMode(display=False) as counter:
        warnings.filterwarnings("ignore", message="TF32 acceleration")  # which the switch below has no part in
        with torch.backends.mkldnn.flags(enabled=False):
            drawer(path.replace("compiled", "plain"), generator, tower)(*inputs_of(generator, 1))
    return counter.get_total_flops() // 2


def operations(call: Callable[[], object]) -> dict[str, float]:
    """Shares of the time of one call by operator, the largest first; the rest together."""
    call()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with _silent_stderr(), profile(activities=activities, acc_events=True) as trace:
        call()
    on_gpu = torch.cuda.is_available()
    events = trace.key_averages()
    times = {event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in events}
    total, ordered = sum(times.values()), sorted(times, key=times.get, reverse=True)
    shares = {name: times[name] / total for name in ordered[:_SHOWN_OPERATIONS]}
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


def _call(draw: Callable, given: tuple) -> Callable[[], torch.Tensor]:
    return lambda: draw(*given)


DIFFUSION_SIZE = 256  # pixels; the denoiser halves its 32 x 32 latents three times
_TOKENS = 77


def measure_diffusion(preset: str, repetitions: int, device: torch.device) -> dict:
    """Seconds for one image of both, in each precision, in turns."""
    networks = build_networks(preset, device)
    given, kind = inputs_of(networks[0], 1), "optimized" if device.type == "cpu" else "compiled"
    calls, facts = {}, {}
    for precision, dtype in DTYPES.items():
        ours, other = f"{preset}, {kind} {precision}", f"one-step diffusion {precision}"
        draw, parts = drawer(f"{kind} {precision}", *networks), build_diffusion(device, dtype)
        calls |= {ours: lambda draw=draw: draw(*given), other: diffusion_sampler(*parts)}
        size = networks[0].config.sample_size
        facts[ours] = {"size": size, "parameters": parameters_of(*networks), "beside": other}
        # The encoder half of the autoencoder takes no part.
        facts[other] = {
            "size": DIFFUSION_SIZE,
            "parameters": parameters_of(parts[0], parts[1].decoder),
            "beside": other,
        }
    seconds = {name: summary(times) for name, times in interleaved(calls, repetitions, device).items()}
    rows = []
    for name, facts_of_it in facts.items():
        base = seconds[facts_of_it.pop("beside")]["median_s"]
        rows.append({"model": name, **facts_of_it, **seconds[name], "faster": base / seconds[name]["median_s"]})
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
    sentence = torch.randn(1, _TOKENS, denoiser.config.cross_attention_dim, **like)
    time = torch.tensor(999, device=denoiser.device)

    @torch.no_grad()
    def draw() -> torch.Tensor:
        noise = denoiser(latents, time, encoder_hidden_states=sentence, return_dict=False)[0]
        # With the noise of SD's schedule at its last step, 1 - 0.0047 of the variance.
        return decoder.decode((latents - 0.9976 * noise) / 0.0683, return_dict=False)[0]

    return draw
