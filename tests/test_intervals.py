"""How certain a score is: quantiles, means over clusters, and how often intervals hold the truth."""

import math

import pytest
import torch

from ratlip_hf.metrics import Origins, clustered_mean, interval, kernel_distance_with_error, student_t


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.7062), (2, 4.30265), (9, 2.26216), (63, 1.99834)])
def test_quantiles_are_those_of_student(freedom, expected):
    """As printed in tables."""
    assert student_t(0.95, freedom) == pytest.approx(expected, rel=1e-5)


def test_the_quantile_of_many_degrees_is_the_normal_one():
    assert student_t(0.95, 1_000_000) == pytest.approx(1.959964, rel=1e-5)
    assert student_t(0.5, 3) == pytest.approx(0.764892, rel=1e-5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        student_t(1.0, 3)


def test_clusters_of_different_sizes_weigh_by_their_sizes():
    """By hand: clusters (1, 1, 1) and (0), mean 3/4; residuals 3/4 and -3/4."""
    mean = clustered_mean([1.0, 1.0, 0.0, 1.0], [7, 7, 9, 7])
    assert mean.distance == 0.75 and mean.freedom == 1
    assert mean.spread == pytest.approx((2 * 2 * 0.75**2) ** 0.5 / 4)
    found = interval(mean)
    assert (found.low + found.high) / 2 == pytest.approx(0.75)
    assert found.high - 0.75 == pytest.approx(12.7062 * mean.spread, rel=1e-5)
    for values, clusters in (([1.0, 2.0], [1, 1]), ([1.0, 2.0], [1]), ([1.0, math.nan], [1, 2])):
        with pytest.raises(ValueError):
            clustered_mean(values, clusters)


def simulated(rng: torch.Generator, effect: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images of 3 prompts of each of 40 triples, a real and a generated one: triples and prompts differ from each
    other. Hits [120] are 1 or 0, features [120, 3] continuous."""
    triple = torch.randn(40, 1, 1, 3, generator=rng)
    prompt = 0.7 * torch.randn(40, 3, 1, 3, generator=rng)
    images = triple + prompt + torch.randn(40, 3, 2, 3, generator=rng)
    images[:, :, 1] += effect
    chance = 0.8 + 0.19 * torch.tanh(2 * triple[..., 0])
    hits = (torch.rand(40, 3, 2, generator=rng) < chance).double()
    return images[:, :, 0].flatten(0, 1), images[:, :, 1].flatten(0, 1), hits.flatten(0, 1)[:, 1]


def test_intervals_of_95_percent_hold_the_truth_in_92_to_98():
    """Of a share of hits, whose truth is .8, and of KID, whose truth is 0 for samples of one distribution. Intervals
    by prompt, or KID with pairs of one prompt, fail this."""
    triples = torch.arange(40).repeat_interleave(3)
    of, rng, runs = Origins(torch.arange(120), triples), torch.Generator().manual_seed(0), 500
    held, wrong = torch.zeros(2), torch.zeros(2)
    for _ in range(runs):
        real, fake, hits = simulated(rng, 0.0)
        intervals = [
            interval(clustered_mean(hits, triples)),
            interval(kernel_distance_with_error(real, fake, (of, of))),
        ]
        others = [interval(clustered_mean(hits, range(120))), interval(kernel_distance_with_error(real, fake))]
        for counts, pair in ((held, intervals), (wrong, others)):
            counts += torch.tensor(
                [each.low <= truth <= each.high for each, truth in zip(pair, (0.8, 0.0), strict=True)]
            )
    assert ((held / runs >= 0.92) & (held / runs <= 0.98)).all(), held / runs
    assert (wrong / runs < 0.92).all(), wrong / runs
