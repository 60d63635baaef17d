"""Power by frequency and steps by place, on images with known answers."""

import math

import pytest
import torch

from ratlip_hf.metrics import BANDS, power_by_band, steps_at_joints, steps_by_place


@pytest.mark.parametrize(("cycles", "band"), [(4, 0), (12, 1), (20, 2), (28, 3)])
def test_a_wave_has_its_power_in_its_band(cycles, band):
    wave = torch.sin(2 * math.pi * cycles * torch.arange(64, dtype=torch.float64) / 64)
    power = power_by_band(wave.expand(2, 3, 64, 64))
    assert power.shape == (2, BANDS) and power.dtype == torch.float64
    assert power[0].argmax() == band and power[0, band] > 0.99 * power[0].sum()
    assert torch.allclose(power_by_band(2 * wave.expand(1, 3, 64, 64)), 4 * power[:1])
    assert torch.allclose(power_by_band(wave.expand(1, 3, 64, 64).mT), power[:1])  # in any direction
    assert torch.allclose(power_by_band(wave.expand(1, 3, 64, 64) + 5), power[:1])  # whatever the mean


def test_other_shapes_are_refused():
    for shape in ((1, 3, 64, 32), (3, 64, 64), (1, 3, 4, 4)):
        with pytest.raises(ValueError, match="must be"):
            power_by_band(torch.zeros(shape))


def test_tiles_have_all_their_steps_at_the_joints():
    tiles = torch.rand(3, 3, 4, 4).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    steps = steps_by_place(tiles)
    assert steps.shape == (3, 31)
    assert (steps.nonzero()[:, 1] % 8 == 7).all()
    assert (steps_at_joints(steps, 8) > 1e6).all()
    ramp = torch.arange(32.0).expand(1, 3, 32, 32)
    assert steps_at_joints(steps_by_place(ramp), 8).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="no joints"):
        steps_at_joints(steps, 32)
