"""Noise for the generator: one random generator per picture, so that one seed is one picture at every batch size.
Owns how z is drawn, truncated and checked; nothing here knows of prompts or networks."""

import torch

MIN_TRUNCATION = 0.01


def draw_latents(
    count: int,
    noise_dim: int,
    generator: torch.Generator | list[torch.Generator] | None = None,
    truncation: float | None = None,
) -> torch.Tensor:
    """Draw z, picture by picture, as float32 [count, noise_dim].

    `torch.randn(8, 100)` and `torch.randn(1, 100)` differ in their first row, so every row has its own draw.

    Args:
        count: number of pictures.
        noise_dim: width of the noise.
        generator: one for all pictures (they take their turns), a list with one per picture, or None for torch's
            global one. Noise is drawn on the generator's device, normally the CPU.
        truncation: entries with |z| above it are drawn again.

    Raises:
        TypeError, ValueError: for a wrong type, a list of the wrong length, or a truncation that is too small.
    """
    if truncation is not None and not truncation >= MIN_TRUNCATION:
        raise ValueError(f"truncation must be at least {MIN_TRUNCATION}, not {truncation}")
    generators = generator if isinstance(generator, list | tuple) else [generator] * count
    for item in generators:
        if item is not None and not isinstance(item, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator or a list of them, not {type(item).__name__}")
    if len(generators) != count:
        raise ValueError(f"{len(generators)} generators were given for {count} pictures; pass one per picture")
    rows = [_draw_row(noise_dim, item, truncation) for item in generators]
    return torch.stack([row.cpu() for row in rows])


def check_latents(latents: torch.Tensor, count: int, noise_dim: int) -> None:
    """Raise TypeError or ValueError unless `latents` is a finite tensor [count, noise_dim]."""
    if not isinstance(latents, torch.Tensor):
        raise TypeError(f"latents must be a torch.Tensor, not {type(latents).__name__}")
    if list(latents.shape) != [count, noise_dim]:
        raise ValueError(
            f"latents must be [{count}, {noise_dim}] (prompts x num_images_per_prompt, noise_dim), "
            f"not {list(latents.shape)}"
        )
    if not latents.isfinite().all():
        raise ValueError("latents contain NaN or infinite values")


def _draw_row(noise_dim: int, generator: torch.Generator | None, truncation: float | None) -> torch.Tensor:
    device = "cpu" if generator is None else generator.device
    row = torch.randn(noise_dim, generator=generator, device=device)
    while truncation is not None and (outside := row.abs() > truncation).any():
        row[outside] = torch.randn(int(outside.sum()), generator=generator, device=device)
    return row
