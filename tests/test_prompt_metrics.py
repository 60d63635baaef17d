"""The metrics of images and their prompts against answers known beforehand; `test_metrics.py` has those of sets."""

from itertools import permutations

import pytest
import torch

from ratlip_hf.metrics import (
    UNNAMED,
    attribute_accuracy,
    attribute_hits,
    clip_score,
    prompt_diversity,
    r_precision,
    sample_mismatched,
    words_right,
)


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# CLIP score and R-precision


def test_the_clip_score_is_the_cosine_twice_and_names_its_encoder():
    images, texts = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-2.0, 0.0]])
    result = clip_score(images, texts, encoder="toy")
    assert result.per_sample.tolist() == pytest.approx([0.6, -1.0], abs=1e-15)
    assert (result.cosine, result.score) == pytest.approx((-0.2, -20.0), abs=1e-12)
    assert result.encoder == "toy"
    assert clip_score(images.double() * 1e200, texts.double() * 1e-200, encoder="toy").cosine == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("images", "texts", "encoder", "message"),
    [
        (torch.ones(3, 4), torch.ones(3, 4), " ", "name of its encoder"),
        (torch.ones(3, 4), torch.ones(2, 4), "toy", "row by row"),
        (torch.ones(3, 4), torch.zeros(3, 4), "toy", "vector of zeros"),
        (torch.ones(0, 4), torch.ones(0, 4), "toy", "at least 1"),
    ],
)
def test_clip_scores_that_mean_nothing_are_refused(images, texts, encoder, message):
    with pytest.raises(ValueError, match=message):
        clip_score(images, texts, encoder=encoder)


def test_r_precision_counts_images_that_know_their_caption():
    """Own captions at 45, 45 and 90 degrees; the mismatched ones closer for the second and as close for the third."""
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    texts = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    pool = torch.tensor([[0.0, 9.0], [-1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 5.0]])
    result = r_precision(images, texts, pool, [[0, 1], [2, 3], [4, 1]])
    assert result.per_sample.tolist() == [1.0, 0.0, 0.5]
    assert result.value == 0.5


def test_an_encoder_that_tells_nothing_apart_is_at_chance():
    same = torch.ones(8, 3).double() / 7
    assert r_precision(same, same, same, sample_mismatched(range(8), count=4)).value == pytest.approx(0.2, abs=1e-15)


def test_the_same_caption_twice_is_a_tie_whatever_the_rounding():
    images, texts = draws(60, 64), draws(60, 64, seed=1)
    tied = r_precision(images, texts, texts, torch.arange(60)[:, None])
    assert tied.per_sample.tolist() == [0.5] * 60


def test_mismatched_captions_are_of_other_groups_and_never_twice():
    groups = ["a", "b", "c", "d"] * 5
    sampled = sample_mismatched(groups, count=15, seed=3)
    assert sampled.shape == (20, 15)
    for own, row in zip(groups, sampled.tolist(), strict=True):
        assert sorted(row) == [index for index, group in enumerate(groups) if group != own]
    assert torch.equal(sampled, sample_mismatched(groups, count=15, seed=3))
    assert not torch.equal(sampled, sample_mismatched(groups, count=15, seed=4))
    with pytest.raises(ValueError, match="only 15 others"):
        sample_mismatched(groups, count=16)
    with pytest.raises(ValueError, match="only 99 others"):
        sample_mismatched(range(100), count=100)
    assert sample_mismatched(range(100)).shape == (100, 99)


@pytest.mark.parametrize(
    ("others", "candidates", "message"),
    [
        (torch.ones(0, 4), torch.zeros(3, 2, dtype=torch.long), "candidate embeddings must be"),
        (torch.zeros(5, 4), torch.zeros(3, 2, dtype=torch.long), "vector of zeros"),
        (torch.ones(5, 4), torch.zeros(3, 0, dtype=torch.long), "must be indices"),
        (torch.ones(5, 4), torch.full((3, 2), 5), "must be indices"),
        (torch.ones(5, 4), torch.full((3, 2), -1), "must be indices"),
        (torch.ones(5, 4), torch.zeros(2, 2, dtype=torch.long), "the pool must be"),
    ],
)
def test_candidates_that_do_not_fit_are_refused(others, candidates, message):
    with pytest.raises(ValueError, match=message):
        r_precision(torch.ones(3, 4), torch.ones(3, 4), others, candidates)


# Diversity


def test_the_diversity_of_prompts_weighs_prompts_alike():
    """A triangle with sides 3, 4, 5 for one prompt, one image twice for another."""
    features = torch.tensor([[0.0, 0.0], [7.0, 7.0], [3.0, 0.0], [0.0, 4.0], [7.0, 7.0]])
    result = prompt_diversity(features, ["bird", "fish", "bird", "bird", "fish"])
    assert result.per_prompt == {"bird": 4.0, "fish": 0.0}
    assert result.value == 2.0


def test_the_diversity_by_cosine():
    features = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0], [-1.0, 0.0]])
    assert prompt_diversity(features, torch.tensor([1, 1, 2, 2]), "cosine").per_prompt == pytest.approx({1: 1, 2: 2})


@pytest.mark.parametrize(
    ("prompts", "distance", "message"),
    [
        (["a", "a", "b"], "euclidean", "single image"),
        (["a"], "euclidean", "as many"),
        ("aaa", "angle", "distance must"),
    ],
)
def test_diversities_that_mean_nothing_are_refused(prompts, distance, message):
    with pytest.raises(ValueError, match=message):
        prompt_diversity(torch.ones(3, 2), prompts, distance)


# The counting of attributes


def test_an_image_is_right_where_every_named_word_is():
    """Two judges of two colours and one of the scene; the first image fails one judge, the third the scene."""
    colours = torch.tensor([[[1, 2], [1, 0]], [[3, 3], [3, 3]], [[0, 1], [0, 1]]])
    scene = torch.tensor([[[1]], [[0]], [[1]]])
    targets = torch.tensor([[1, 2], [3, 3], [0, 1]]), torch.tensor([[1], [UNNAMED], [0]])
    right = words_right([(colours, targets[0]), (scene, targets[1])])
    assert right.tolist() == [0.5, 1.0, 0.0]


def test_attribute_accuracy_counts_parts_and_whole_images():
    targets = torch.tensor(list(permutations(range(3))))
    predictions = targets.clone()
    predictions[0, 0], predictions[0, 2], predictions[1, 2] = 7, 7, 7
    result = attribute_accuracy(predictions, targets, ["crown", "belly", "wing"])
    assert result.mean == pytest.approx(15 / 18) and result.all == pytest.approx(4 / 6)
    assert result.parts == pytest.approx({"crown": 5 / 6, "belly": 1.0, "wing": 4 / 6})
    assert list(attribute_accuracy(predictions, targets).parts) == ["0", "1", "2"]
    for wrong in (predictions[:, :2], predictions.float(), predictions[:0]):
        with pytest.raises(ValueError, match="labels must be"):
            attribute_accuracy(wrong, targets)
    with pytest.raises(ValueError, match="as many names"):
        attribute_accuracy(predictions, targets, ["crown"])


def test_attribute_hits_are_per_judge():
    predictions = torch.tensor([[[1, 2], [1, 3]], [[0, -1], [4, 0]]])  # two images, two judges, two attributes
    hits = attribute_hits(predictions, [[1, 3], [0, UNNAMED]])
    assert hits.dtype == torch.float64 and hits.tolist() == [[[1, 0], [1, 1]], [[1, 1], [0, 0]]]
    with pytest.raises(ValueError, match="labels must be"):
        attribute_hits(predictions, [[1], [0]])
