"""What can be told from pixels alone: power by spatial frequency, and steps between neighbours by their place.
Generated images that are blurred lack power at high frequencies; those with joints have high steps at the joints."""

import torch

BANDS = 4  # equal parts of the frequencies up to half the sampling rate


def power_by_band(images: torch.Tensor) -> torch.Tensor:
    """Mean power of images [N, 3, S, S] in `BANDS` equal bands of radial frequency, [N, BANDS] in float64.

    The last band ends at half the sampling rate, S/2 cycles per image; beyond are only diagonals. The mean is taken
    off and a Hann window applied, so that what does not meet at the borders adds no power. Raises ValueError for other
    shapes or sides below 8.
    """
    if images.ndim != 4 or images.shape[2] != images.shape[3] or images.shape[3] < 2 * BANDS:
        raise ValueError(f"images must be [N, 3, S, S] with S at least {2 * BANDS}, not {list(images.shape)}")
    side, images = images.shape[3], images.double()
    window = torch.hann_window(side, periodic=False, dtype=torch.float64, device=images.device)
    spectrum = torch.fft.fft2((images - images.mean(dim=(2, 3), keepdim=True)) * window * window[:, None])
    power = spectrum.abs().square().mean(dim=1).flatten(1)
    frequency = torch.fft.fftfreq(side, dtype=torch.float64, device=images.device) * side
    band = (torch.hypot(frequency, frequency[:, None]) * 2 * BANDS / side).long().flatten()
    return torch.stack([power[:, band == number].mean(dim=1) for number in range(BANDS)], dim=1)


def steps_by_place(images: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference between pixel i and i + 1, over both axes, for images [N, 3, S, S]: [N, S - 1]."""
    across = images.diff(dim=3).abs().mean(dim=(1, 2))
    return ((across + images.diff(dim=2).abs().mean(dim=(1, 3))) / 2).double()


def steps_at_joints(steps: torch.Tensor, patch: int) -> torch.Tensor:
    """How much higher [`steps_by_place`] [N, S - 1] are at the joints of square patches than inside them, [N].

    1 for images that know nothing of patches. Raises ValueError where a patch is no smaller than the image, or 1.
    """
    places = torch.arange(1, steps.shape[1] + 1)
    joints = places % patch == 0
    if patch < 2 or not joints.any():
        raise ValueError(f"patches of {patch} pixels have no joints and inside in images of {steps.shape[1] + 1}")
    return steps[:, joints].mean(dim=1) / steps[:, ~joints].mean(dim=1).clamp(min=1e-12)
