"""Drawing beside a one-step diffusion model of like resolution: SD-Turbo's shapes with random weights.
Only its speed means something. Sentences are given as embeddings to both; denoiser and decoder count."""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from . import drawing
from .measuring import DTYPES, interleaved, summary

SIZE = 256  # pixels; the denoiser halves its 32 x 32 latents three times
_TOKENS = 77


def measure(preset: str, repetitions: int, device: torch.device) -> dict:
    """Seconds for one picture of both, in each precision, in turns."""
    networks = drawing.build_networks(preset, device)
    given, kind = drawing.inputs_of(networks[0], 1), "optimized" if device.type == "cpu" else "compiled"
    calls, facts = {}, {}
    for precision, dtype in DTYPES.items():
        ours, other = f"{preset}, {kind} {precision}", f"one-step diffusion {precision}"
        draw, parts = drawing.drawer(f"{kind} {precision}", *networks), build(device, dtype)
        calls |= {ours: lambda draw=draw: draw(*given), other: drawer(*parts)}
        size = networks[0].config.sample_size
        facts[ours] = {"size": size, "parameters": drawing.parameters_of(*networks), "beside": other}
        # The encoder half of the autoencoder takes no part.
        facts[other] = {"size": SIZE, "parameters": drawing.parameters_of(parts[0], parts[1].decoder), "beside": other}
    seconds = {name: summary(times) for name, times in interleaved(calls, repetitions, device).items()}
    rows = []
    for name, facts_of_it in facts.items():
        base = seconds[facts_of_it.pop("beside")]["median_s"]
        rows.append({"model": name, **facts_of_it, **seconds[name], "faster": base / seconds[name]["median_s"]})
    return {"repetitions": repetitions, "rows": rows}


def build(device: torch.device, dtype: torch.dtype) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """The denoiser of Stable Diffusion 2.1, which SD-Turbo distils into one step, and its decoder."""
    torch.manual_seed(0)
    with torch.device(device):
        denoiser = UNet2DConditionModel(
            sample_size=SIZE // 8,
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


def drawer(denoiser: UNet2DConditionModel, decoder: AutoencoderKL) -> Callable[[], torch.Tensor]:
    """One step at the last time, then the decoder: a picture [1, 3, 256, 256] at every call."""
    like = {"device": denoiser.device, "dtype": denoiser.dtype}
    latents = torch.randn(1, 4, SIZE // 8, SIZE // 8, **like)
    sentence = torch.randn(1, _TOKENS, denoiser.config.cross_attention_dim, **like)
    time = torch.tensor(999, device=denoiser.device)

    @torch.no_grad()
    def draw() -> torch.Tensor:
        noise = denoiser(latents, time, encoder_hidden_states=sentence, return_dict=False)[0]
        # With the noise of SD's schedule at its last step, 1 - 0.0047 of the variance.
        return decoder.decode((latents - 0.9976 * noise) / 0.0683, return_dict=False)[0]

    return draw
