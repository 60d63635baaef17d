"""Noise, and ways between and beyond samples: interpolation of noise and of text, blends, truncation curves.
Plain functions of tensors; what they give goes into a pipeline as `latents=` and `prompt_embeds=`. Edits of words are
`RATLIPPipeline.edit`, style mixing is `style_latents=` and `style_prompt_embeds=` of its call."""

from collections.abc import Callable, Sequence

import torch

MIN_TRUNCATION = 0.01
_PARALLEL = 1e-4  # radians; below it, and as close to opposite, a great circle is not determined


def prepare_latents(
    count: int,
    noise_dim: int,
    generator: torch.Generator | list[torch.Generator] | None = None,
    truncation: float | None = None,
    latents: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sample z, image by image, as float32 [count, noise_dim]; or check the `latents` that were given instead.

    Args:
        count: number of images.
        noise_dim: width of the noise.
        generator: one for all images (they take their turns), a list with one per image, or None for torch's
            global one. Noise is sampled on the generator's device, normally the CPU.
        truncation: entries with |z| above it are sampled again.
        latents: the noise itself; it is returned as it is.

    Raises:
        TypeError, ValueError: for a wrong type, a list of the wrong length, a truncation that is too small, or latents
            that do not fit, are not finite, or come with a truncation.
    """
    if latents is not None:
        if truncation is not None:
            raise ValueError("truncation applies to noise that is sampled here; it cannot be combined with latents=")
        if not isinstance(latents, torch.Tensor):
            raise TypeError(f"latents must be a torch.Tensor, not {type(latents).__name__}")
        if list(latents.shape) != [count, noise_dim]:
            raise ValueError(
                f"latents must be [{count}, {noise_dim}] (prompts x num_images_per_prompt, noise_dim), "
                f"not {list(latents.shape)}"
            )
        if not latents.isfinite().all():
            raise ValueError("latents contain NaN or infinite values")
        return latents
    if truncation is not None and not truncation >= MIN_TRUNCATION:
        raise ValueError(f"truncation must be at least {MIN_TRUNCATION}, not {truncation}")
    generators = generator if isinstance(generator, list | tuple) else [generator] * count
    for item in generators:
        if item is not None and not isinstance(item, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator or a list of them, not {type(item).__name__}")
    if len(generators) != count:
        raise ValueError(f"{len(generators)} generators were given for {count} images; pass one per image")
    # Row by row: the first row of `torch.randn(8, 100)` is not that of `torch.randn(1, 100)`.
    return torch.stack([_noise_row(noise_dim, item, truncation).cpu() for item in generators])


def _noise_row(noise_dim: int, generator: torch.Generator | None, truncation: float | None) -> torch.Tensor:
    device = "cpu" if generator is None else generator.device
    row = torch.randn(noise_dim, generator=generator, device=device)
    while truncation is not None and (outside := row.abs() > truncation).any():
        row[outside] = torch.randn(int(outside.sum()), generator=generator, device=device)
    return row


def slerp(start: torch.Tensor, end: torch.Tensor, share: torch.Tensor | float) -> torch.Tensor:
    """Spherical interpolation: the direction moves on the great circle, the length linearly.

    Noise needs it: the linear middle of two samples is shorter than samples are. Vectors that (nearly) point the same
    way are interpolated linearly.

    Args:
        start, end: [..., D], of length above 0.
        share: how far, 0 for `start`, 1 for `end`; a number or a tensor that broadcasts to [...].

    Returns:
        [..., D]

    Raises:
        ValueError: for vectors of zeros, and for opposite ones, between which there is no one way.
    """
    share = torch.as_tensor(share, dtype=start.dtype, device=start.device)[..., None]
    lengths = start.norm(dim=-1, keepdim=True), end.norm(dim=-1, keepdim=True)
    if not (torch.cat(lengths) > 0).all():
        raise ValueError("a vector of zeros has no direction to interpolate")
    first, last = start / lengths[0], end / lengths[1]
    angle = torch.acos((first * last).sum(dim=-1, keepdim=True).clamp(-1, 1))
    if (torch.pi - angle < _PARALLEL).any():
        raise ValueError("opposite vectors have no one way between them; go through a third one")
    straight = angle < _PARALLEL
    sine = torch.where(straight, 1.0, angle.sin())
    weights = [torch.where(straight, part, (part * angle).sin() / sine) for part in (1 - share, share)]
    return (weights[0] * first + weights[1] * last) * ((1 - share) * lengths[0] + share * lengths[1])


def lerp(start: torch.Tensor, end: torch.Tensor, share: torch.Tensor | float) -> torch.Tensor:
    """Linear interpolation, with the arguments of [`slerp`]."""
    share = torch.as_tensor(share, dtype=start.dtype, device=start.device)[..., None]
    return (1 - share) * start + share * end


def path(points: torch.Tensor, shares: torch.Tensor, way: Callable = slerp) -> torch.Tensor:
    """Points [N] on the way through `points` [P, D]: share 0 is the first, 1 the last, the others evenly between.

    Args:
        points: P vectors, at least two.
        shares: [N] in 0..1.
        way: [`slerp`] or [`lerp`] between neighbours.

    Returns:
        [N, D]

    Raises:
        ValueError: for fewer than two points or a share outside 0..1.
    """
    if points.ndim != 2 or len(points) < 2 or not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(f"a way needs points [P, D] with P at least 2 and shares in 0..1, not {list(points.shape)}")
    along = shares.to(points) * (len(points) - 1)
    leg = along.floor().long().clamp(max=len(points) - 2)
    return way(points[leg], points[leg + 1], along - leg)


def blend(prompt_embeds: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """The weighted mean [1, D] of text embeddings [P, D]; the weights are divided by their sum.

    Negative weights lead away from a text. Raises ValueError for another number of weights or a sum that is not
    positive.
    """
    share = torch.as_tensor(weights, dtype=prompt_embeds.dtype, device=prompt_embeds.device)
    if share.shape != prompt_embeds.shape[:1] or not share.sum() > 0:
        raise ValueError(f"{len(prompt_embeds)} prompts need as many weights with a positive sum, not {list(weights)}")
    return (share / share.sum()) @ prompt_embeds[None]


def step_lengths(images: torch.Tensor, embed_images: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """How far neighbours of N images lie from each other, [N - 1]: the angle of their embeddings, in radians, plus the
    mean absolute difference of pixels of images in [-1, 1], which also sees what embeddings overlook."""
    embeds = torch.nn.functional.normalize(embed_images(images), dim=1)
    angles = torch.acos((embeds[1:] * embeds[:-1]).sum(dim=1).clamp(-1, 1))
    return angles + (images[1:] - images[:-1]).abs().flatten(1).mean(dim=1)


def even_shares(
    lengths_at: Callable[[torch.Tensor], torch.Tensor], count: int, rounds: int = 3, density: int = 3
) -> torch.Tensor:
    """Shares [count] of a way at which neighbours lie equally far from each other, as measured.

    Args:
        lengths_at: from N increasing shares to the N - 1 measured lengths between the images there.
        count: shares wanted, at least 2; the first is 0, the last 1.
        rounds: how often the way is measured, each time with the points where the last round left them.
        density: points measured per share wanted.

    Raises:
        ValueError: for fewer than two shares.
    """
    if count < 2:
        raise ValueError(f"a way has at least 2 images, not {count}")
    shares = torch.linspace(0, 1, density * (count - 1) + 1)
    for _ in range(rounds):
        passed = torch.cat([torch.zeros(1), lengths_at(shares).cpu().float().clamp(min=1e-6).cumsum(0)])
        shares = _at(torch.linspace(0, float(passed[-1]), len(shares)), passed, shares)
    return shares[::density].clone()


def _at(wanted: torch.Tensor, passed: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Linear interpolation of `shares` over `passed`, both increasing."""
    right = torch.searchsorted(passed, wanted).clamp(1, len(passed) - 1)
    within = (wanted - passed[right - 1]) / (passed[right] - passed[right - 1])
    return (shares[right - 1] + within * (shares[right] - shares[right - 1])).clamp(0, 1)


def truncation_curve(
    pipe, embedder, prompts: Sequence[str], levels: Sequence[float | None], per_prompt: int = 8, seed: int = 0
) -> list[dict[str, float | None]]:
    """What truncation trades: how well images fit their prompts against how much those of one prompt differ.

    Args:
        pipe: a `RATLIPPipeline`.
        embedder: with `embed_images` and `encode`, such as a `FrozenCLIP`; better one that the model was
            not trained against.
        prompts: P prompts.
        levels: values of `truncation=`, None for none.
        per_prompt: images of each prompt, at least 2; image i of a prompt uses seed + i at every level.

    Returns:
        For each level {"truncation", "similarity" (mean cosine of image and prompt), "spread" (mean 1 - cosine of two
        images of a prompt)}.
    """
    unit = torch.nn.functional.normalize
    texts = unit(embedder.encode(list(prompts)), dim=1)
    generators, rows = range(seed, seed + per_prompt), []
    for level in levels:
        fits, spreads = [], []
        for prompt, text in zip(prompts, texts, strict=True):
            draws = [torch.Generator().manual_seed(number) for number in generators]
            batch = 1 if pipe.generator.couples_batch else per_prompt
            options = {"num_images_per_prompt": per_prompt, "generator": draws, "batch_size": batch}
            images = 2 * pipe(prompt, truncation=level, output_type="pt", **options).images - 1
            with torch.no_grad():
                embeds = unit(embedder.embed_images(images), dim=1)
            fits.append(embeds @ text)
            pairs = embeds @ embeds.T
            spreads.append(1 - (pairs.sum() - pairs.trace()) / (per_prompt * (per_prompt - 1)))
        means = {"similarity": float(torch.stack(fits).mean()), "spread": float(torch.stack(spreads).mean())}
        rows.append({"truncation": level, **means})
    return rows
