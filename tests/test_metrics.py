"""The metrics against answers known beforehand, against independent formulas, and under changes that must not matter.
`test_evaluation.py` has the kernel distance's first tests."""

import math

import numpy as np
import pytest
import torch

from ratlip_hf.metrics import (
    FeatureStatistics,
    Origins,
    Spread,
    cmmd,
    cmmd_with_error,
    frechet_distance,
    frechet_distance_with_error,
    frechet_from_statistics,
    kernel_distance,
    kernel_distance_of_subsets,
    kernel_distance_with_error,
    precision_recall,
)
from ratlip_hf.metrics.kernels import discrepancy


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(dim: int, seed: int) -> torch.Tensor:
    return torch.cov(draws(dim, 3 * dim, seed=seed))


TWO_SETS = {
    "frechet": frechet_distance,
    "kernel": kernel_distance,
    "kernel_error": lambda real, fake: kernel_distance_with_error(real, fake).spread,
    "cmmd_biased": lambda real, fake: cmmd(real, fake, estimator="biased"),
    "cmmd_unbiased": lambda real, fake: cmmd(real, fake, estimator="unbiased"),
    "precision": lambda real, fake: precision_recall(real, fake).precision,
    "recall": lambda real, fake: precision_recall(real, fake).recall,
}


# Metrics of two sets


@pytest.mark.parametrize("metric", TWO_SETS.values(), ids=TWO_SETS)
def test_order_within_sets_and_single_precision_change_nothing(metric):
    real, fake = draws(30, 6).float(), draws(23, 6, seed=1).float() + 0.5
    value = metric(real, fake)
    assert math.isfinite(value)
    assert metric(real.flip(0), fake.roll(5, 0)) == pytest.approx(value, abs=1e-9)
    assert metric(real.double(), fake.double()) == value
    assert metric(real.numpy(), fake.tolist()) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("name", ["frechet", "kernel", "kernel_error", "cmmd_biased", "cmmd_unbiased"])
def test_distances_are_symmetric(name):
    real, fake = draws(30, 6), draws(5, 6, seed=1) + 0.5
    assert TWO_SETS[name](real, fake) == pytest.approx(TWO_SETS[name](fake, real), abs=1e-9)


@pytest.mark.parametrize("metric", TWO_SETS.values(), ids=TWO_SETS)
@pytest.mark.parametrize("fault", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(metric, fault):
    good, bad = draws(5, 4), draws(5, 4)
    bad[3, 2] = fault
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(ValueError, match="without NaN and infinite values"):
            metric(*pair)


@pytest.mark.parametrize("metric", TWO_SETS.values(), ids=TWO_SETS)
@pytest.mark.parametrize(
    "shapes", [((0, 4), (5, 4)), ((5, 4), (5, 3)), ((5,), (5,)), ((5, 0), (5, 0)), ((2, 5, 4),) * 2]
)
def test_features_of_other_shapes_are_refused(metric, shapes):
    with pytest.raises(ValueError, match="features must be"):
        metric(*map(torch.ones, shapes))


@pytest.mark.parametrize("metric", [frechet_distance, kernel_distance, TWO_SETS["cmmd_unbiased"]])
def test_a_single_vector_has_no_spread(metric):
    with pytest.raises(ValueError, match="at least 2"):
        metric(torch.ones(1, 4), torch.ones(5, 4))


# Fréchet distance


def test_equal_covariances_leave_the_distance_of_the_means_exactly():
    mean, cov = torch.zeros(2048), torch.eye(2048)
    assert frechet_from_statistics(mean, cov, mean + 1, cov) == 2048.0
    features = draws(16, 2048).round(decimals=2)
    assert frechet_distance(features, features + 1) == pytest.approx(2048, rel=1e-12)
    assert frechet_distance(features, features) == 0.0
    cov, step = covariance(20, 0), torch.arange(20)
    assert frechet_from_statistics(step, cov, 0 * step, cov) == step.square().sum()
    assert frechet_distance(features.T, features.T) == 0.0


def test_the_distance_of_diagonal_gaussians():
    """(1 - 2)^2 + (3 - 1)^2 + (0 - 4)^2 for the deviations, 3^2 + 4^2 for the means."""
    covs = torch.tensor([1.0, 9.0, 0.0]).diag(), torch.tensor([4.0, 1.0, 16.0]).diag()
    means = torch.tensor([3.0, 0.0, -4.0]), torch.zeros(3)
    assert frechet_from_statistics(means[0], covs[0], means[1], covs[1]) == pytest.approx(21 + 25, abs=1e-12)


def test_the_distance_of_two_pairs_of_points():
    """One number each: variances 2 and 8 (over N - 1), means 1 and 3."""
    distance = frechet_distance([[0.0], [2.0]], [[1.0], [5.0]])
    assert distance == pytest.approx(4 + (math.sqrt(2) - math.sqrt(8)) ** 2, abs=1e-12)


def test_the_distance_agrees_with_the_eigenvalues_of_the_product():
    cov1, cov2, step = covariance(20, 0), 3 * covariance(20, 1), draws(20)
    root_trace = torch.linalg.eigvals(cov1 @ cov2).sqrt().real.sum()
    expected = step.square().sum() + cov1.trace() + cov2.trace() - 2 * root_trace
    assert frechet_from_statistics(step, cov1, 0 * step, cov2) == pytest.approx(expected.item(), rel=1e-10)


def test_fast_and_careful_decompositions_agree(monkeypatch):
    statistics = draws(20), covariance(20, 0), draws(20, seed=1), 3 * covariance(20, 1)
    fast = frechet_from_statistics(*statistics)
    monkeypatch.setattr("ratlip_hf.metrics.sets._WELL_CONDITIONED", math.inf)
    assert frechet_from_statistics(*statistics) == pytest.approx(fast, rel=1e-12)


def test_a_rotation_of_both_sets_changes_nothing():
    turn = torch.linalg.qr(draws(12, 12))[0]
    real, fake = draws(40, 12) * torch.arange(12), draws(30, 12, seed=1) + 1
    assert frechet_distance(real @ turn, fake @ turn) == pytest.approx(frechet_distance(real, fake), rel=1e-10)


def test_covariances_without_full_rank():
    """Gaussians on the planes of axes 0, 1 and of axes 1, 2 share axis 1 only: Tr (C1 C2)^(1/2) = 2 * 5."""
    cov1, cov2 = torch.zeros(6, 6), torch.zeros(6, 6)
    cov1[0, 0], cov1[1, 1], cov2[1, 1], cov2[2, 2] = 9, 4, 25, 1
    turn = torch.linalg.qr(draws(6, 6))[0]
    zero = torch.zeros(6)
    turned = [turn.T @ cov.double() @ turn for cov in (cov1, cov2)]
    expected = 9 + 4 + 25 + 1 - 2 * 10
    assert frechet_from_statistics(zero, cov1, zero, cov2) == pytest.approx(expected, abs=1e-12)
    assert frechet_from_statistics(zero, turned[0], zero, turned[1]) == pytest.approx(expected, abs=1e-10)
    assert frechet_from_statistics(zero, 0 * cov1, zero + 2, cov2) == pytest.approx(24 + 26, abs=1e-12)


@pytest.mark.parametrize("sizes", [(5, 7), (5, 200), (200, 300)])
def test_few_vectors_in_many_dimensions_agree_whichever_way_they_are_taken(sizes):
    real, fake = draws(sizes[0], 64) + 10, draws(sizes[1], 64, seed=1) * 2 + 10
    stats = [FeatureStatistics.of(features) for features in (real, fake)]
    from_stats = frechet_from_statistics(stats[0].mean, stats[0].covariance, stats[1].mean, stats[1].covariance)
    assert frechet_distance(real, fake) == pytest.approx(from_stats, rel=1e-10)
    assert frechet_distance(stats[0], fake) == pytest.approx(from_stats, rel=1e-10)
    # Adding a column of zeros, or repeating every column scaled, adds dimensions without content.
    wide = [torch.cat([3 * x, 4 * x, 0 * x], dim=1) for x in (real, fake)]
    assert frechet_distance(*wide) == pytest.approx(25 * from_stats, rel=1e-10)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ((torch.zeros(2), torch.eye(3), torch.zeros(2), torch.eye(2)), "statistics must be"),
        ((torch.zeros(2), torch.eye(2), torch.zeros(3), torch.eye(3)), "statistics must be"),
        ((torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.zeros(2), torch.eye(2)), "symmetric"),
        ((torch.zeros(2), -torch.eye(2), torch.zeros(2), torch.eye(2)), "negative eigenvalue"),
        ((torch.zeros(2), torch.eye(2), torch.zeros(2), torch.eye(2) / 0), "without NaN"),
    ],
)
def test_matrices_that_are_no_covariances_are_refused(statistics, message):
    with pytest.raises(ValueError, match=message):
        frechet_from_statistics(*statistics)


# Streamed statistics


def test_streamed_statistics_are_those_of_all_vectors_at_once():
    """Far from 0, where sums of squares would have no digits left."""
    features = draws(101, 8) + 1e8
    parts = [FeatureStatistics.empty(8) for _ in range(3)]
    for index, batch in enumerate(features.split(7)):
        parts[index % 2].update(batch)
    parts[2].update(features[:0])
    merged = parts[2].merge(parts[1]).merge(parts[0])
    assert merged.count == 101
    torch.testing.assert_close(merged.mean, features.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(merged.covariance, torch.cov(features.T), rtol=0, atol=1e-6)
    torch.testing.assert_close(merged.covariance.diagonal(), (features - 1e8).var(0), rtol=1e-6, atol=0)


def test_statistics_of_too_little_or_of_another_width_are_refused():
    single = FeatureStatistics.empty(4).update(torch.ones(1, 4))
    with pytest.raises(ValueError, match="at least two feature vectors, not 1"):
        frechet_distance(single, torch.ones(5, 4))
    with pytest.raises(ValueError, match="do not mix"):
        single.update(torch.ones(5, 3))
    with pytest.raises(ValueError, match="without NaN"):
        single.update(torch.full((2, 4), math.nan))
    assert single.count == 1 and torch.equal(single.mean, torch.ones(4))


def test_the_error_of_the_distance_is_its_spread_over_samples_of_prompts():
    """Vectors of one prompt have its mean in common on both sides, and five copies are no more evidence than one."""

    def sample(seed: int, copies: int) -> Spread:
        prompts = 2 * draws(100, 3, seed=seed)
        sides = (prompts + draws(100, 3, seed=seed + 1000), prompts + draws(100, 3, seed=seed + 2000) + 0.5)
        parts = ([FeatureStatistics.of(part.repeat(copies, 1)) for part in side.split(10)] for side in sides)
        return frechet_distance_with_error(*parts)

    samples = [sample(seed, 1) for seed in range(50)]
    spread = torch.tensor([found.distance for found in samples]).std().item()
    assert np.mean([found.spread for found in samples]) == pytest.approx(spread, rel=0.25)
    assert samples[0].freedom == 9
    assert sample(0, 5).spread == pytest.approx(sample(0, 1).spread, rel=0.05)


def test_parts_of_the_distance_are_merged_and_must_go_together():
    real, fake = ([FeatureStatistics.of(part) for part in draws(40, 3, seed=seed).split(10)] for seed in (1, 2))
    everything = (FeatureStatistics.of(draws(40, 3, seed=seed)) for seed in (1, 2))
    empty = FeatureStatistics.empty(3)
    found = frechet_distance_with_error([*real, empty], [*fake, empty])
    assert found.distance == pytest.approx(frechet_distance(*everything)) and found.freedom == 3
    assert [part.count for part in (*real, *fake)] == 8 * [10]
    with pytest.raises(ValueError, match="at least two parts"):
        frechet_distance_with_error(real[:1], fake[:1])
    with pytest.raises(ValueError, match="4 parts of real features do not go with 3"):
        frechet_distance_with_error(real, fake[:3])


# Kernel distance and CMMD


def origins(real: list[tuple[int, int]], fake: list[tuple[int, int]]) -> tuple[Origins, Origins]:
    """From a (prompt, group) for each vector."""
    return tuple(Origins(*torch.tensor(pairs).T) for pairs in (real, fake))


def test_the_jackknife_leaves_out_each_group_in_turn_and_pairs_of_one_prompt_always():
    """By hand: nine vectors of four prompts in three groups, every pair written out."""
    real, fake = draws(5, 3), draws(4, 3, seed=1)
    of = origins([(0, 0), (0, 0), (1, 0), (2, 1), (3, 2)], [(0, 0), (1, 0), (2, 1), (3, 2)])

    def by_hand(left_out: int | None) -> float:
        def mean(one, of_one, other, of_other):
            kernel = (one @ other.T / 3 + 1) ** 3
            used = of_one.prompts[:, None] != of_other.prompts
            if left_out is not None:
                used &= (of_one.groups != left_out)[:, None] & (of_other.groups != left_out)
            return kernel[used].mean()

        x, y = real.double(), fake.double()
        return mean(x, of[0], x, of[0]) + mean(y, of[1], y, of[1]) - 2 * mean(x, of[0], y, of[1])

    found = kernel_distance_with_error(real, fake, of)
    assert found.distance == pytest.approx(float(by_hand(None)), rel=1e-12)
    without = torch.stack([by_hand(group) for group in range(3)])
    jackknife = float(4 / 3 * without.var())  # of which the variance of pairs is taken off, at most half
    assert jackknife / 2 * (1 - 1e-9) <= found.spread**2 < jackknife
    assert found.freedom == 2


def test_without_origins_every_vector_stands_for_itself():
    real, fake = draws(6, 3), draws(5, 3, seed=1)
    own = origins([(i, i) for i in range(6)], [(6 + i, 6 + i) for i in range(5)])
    found = kernel_distance_with_error(real, fake)
    assert found == kernel_distance_with_error(real, fake, own)
    assert found.distance == pytest.approx(kernel_distance(real, fake), rel=1e-12)
    with pytest.raises(ValueError, match="at least three groups"):
        kernel_distance_with_error(real[:2], fake[:2], origins([(0, 0), (1, 1)], [(0, 0), (1, 1)]))


def test_the_jackknife_error_is_the_spread_over_samples():
    samples = [
        kernel_distance_with_error(draws(60, 4, seed=seed), draws(40, 4, seed=-1 - seed) + 1) for seed in range(80)
    ]
    spread = torch.tensor([found.distance for found in samples]).std().item()
    assert np.mean([found.spread for found in samples]) == pytest.approx(spread, rel=0.25)


def test_blocks_of_rows_change_nothing(monkeypatch):
    real, fake = draws(10, 3), draws(7, 3, seed=1)
    whole = kernel_distance_with_error(real, fake), cmmd(real, fake, estimator="biased")
    monkeypatch.setattr("ratlip_hf.metrics.kernels._BLOCK", 3)
    assert kernel_distance_with_error(real, fake) == pytest.approx(whole[0], abs=1e-12)
    assert cmmd(real, fake, estimator="biased") == pytest.approx(whole[1], abs=1e-12)


def test_both_estimators_are_means_over_pairs():
    real, fake = draws(4, 3), draws(6, 3, seed=1)

    def kernel(x, y):
        return (x @ y.T + 2) ** 2

    within = [kernel(x, x) for x in (real, fake)]
    off_diagonal = [values[~torch.eye(len(values), dtype=torch.bool)] for values in within]
    across = 2 * kernel(real, fake).mean()
    biased, unbiased = (discrepancy(real, fake, kernel, choice) for choice in (False, True))
    assert biased == pytest.approx((within[0].mean() + within[1].mean() - across).item(), abs=1e-12)
    assert unbiased == pytest.approx((off_diagonal[0].mean() + off_diagonal[1].mean() - across).item(), abs=1e-12)


def test_subsets_of_everything_are_the_whole():
    real, fake = draws(9, 3), draws(9, 3, seed=1)
    distance, spread, _ = kernel_distance_of_subsets(real, fake, subsets=4, size=9)
    assert (distance, spread) == pytest.approx((kernel_distance(real, fake), 0), abs=1e-12)
    parts = kernel_distance_of_subsets(real, fake, subsets=200, size=6, seed=1)
    assert parts.distance == pytest.approx(distance, abs=3 * parts.spread / 200**0.5) and parts.spread > 1e-3
    assert parts == kernel_distance_of_subsets(real, fake, subsets=200, size=6, seed=1)
    for options in ({"subsets": 1, "size": 5}, {"size": 10}, {"size": 1}):
        with pytest.raises(ValueError, match="cannot be sampled"):
            kernel_distance_of_subsets(real, fake, **options)


def test_cmmd_of_two_directions():
    """Two vectors along each of two axes: the kernel is 1 within a set, exp(-2 / 200) across."""
    real, fake = torch.tensor([[2.0, 0.0], [5.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    for estimator in ("biased", "unbiased"):
        assert cmmd(real, fake, estimator=estimator) == pytest.approx(2000 * (1 - math.exp(-0.01)), abs=1e-9)


def test_the_two_estimators_of_cmmd_differ_by_the_diagonal():
    """An orthogonal pair against itself: k = exp(-0.01) between the two, 1 on the diagonal."""
    pair, gap = torch.eye(2), 1000 * (1 - math.exp(-0.01))
    assert cmmd(pair, pair, estimator="biased") == pytest.approx(0, abs=1e-12)
    assert cmmd(pair, pair, estimator="unbiased") == pytest.approx(-gap, abs=1e-9)
    assert cmmd(pair[:1], pair[1:], estimator="biased") == pytest.approx(2 * gap, abs=1e-9)


def test_the_error_of_cmmd_is_its_spread_over_samples():
    samples = [cmmd_with_error(draws(60, 4, seed=seed), draws(40, 4, seed=-1 - seed) + 1) for seed in range(80)]
    spread = torch.tensor([found.distance for found in samples]).std().item()
    assert np.mean([found.spread for found in samples]) == pytest.approx(spread, rel=0.25)
    real, fake = draws(20, 4), draws(20, 4, seed=1)
    assert cmmd_with_error(real, fake).distance == pytest.approx(cmmd(real, fake, estimator="unbiased"), rel=1e-9)
    with pytest.raises(ValueError, match="at least 2"):
        cmmd_with_error(real[:1], fake)


def test_cmmd_knows_directions_only():
    real, fake = torch.tensor([[3.0]]), torch.tensor([[-1.0]])
    assert cmmd(real, fake, estimator="biased") == pytest.approx(2000 * (1 - math.exp(-4 / 200)), abs=1e-9)
    with pytest.raises(ValueError, match="must be one of"):
        cmmd(real, fake, estimator="v")
    with pytest.raises(ValueError, match="vector of zeros"):
        cmmd(real, 0 * fake, estimator="biased")


# Precision and recall


def test_precision_and_recall_on_a_line():
    """With k = 1 the real 0, 1, 2, 10 have radii 1, 1, 1, 8, the fake 3, 3.5, -1.5, 40 have 0.5, 0.5, 4.5, 36.5."""
    real, fake = torch.tensor([[0.0], [1.0], [2.0], [10.0]]), torch.tensor([[3.0], [3.5], [-1.5], [40.0]])
    result = precision_recall(real, fake, k=1)
    assert result.precision == 0.5  # 3 on the surface of the ball around 2, and 3.5 within that around 10
    assert result.recall == 1.0  # the ball around -1.5 holds 0 to 3, that around 40 reaches down to 3.5
    assert precision_recall(fake, real, k=1) == (1.0, 0.5)


def test_distances_do_not_blur_far_from_the_origin():
    """Fractions of 1024, which a shift by 1e8 leaves exact; inner products of such numbers would not be."""
    real, fake = ((draws(20, 3, seed=seed) * 1024).round() / 1024 for seed in (0, 1))
    assert precision_recall(real + 1e8, fake + 1e8) == precision_recall(real, fake)


def test_precision_and_recall_of_equal_and_of_distant_sets():
    real = draws(20, 5)
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, real + 1e3) == (0.0, 0.0)
    copies = real[:1].repeat(9, 1)  # radius 0
    assert precision_recall(copies, copies) == (1.0, 1.0)
    assert precision_recall(real, copies) == (1.0, 1 / 20)
    for k in (0, 9):
        with pytest.raises(ValueError, match="at least"):
            precision_recall(real, copies, k=k)
