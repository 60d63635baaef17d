"""The quick evaluation during a run: its scores, what it leaves untouched, and the best weights it keeps.
Runs take a few steps of a toy generator on rendered birds; known answers come from images put in its place."""

import copy
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from ratlip_hf import RATLIPPipeline
from ratlip_hf.bundled import find_world
from ratlip_hf.clip import FrozenCLIP
from ratlip_hf.metrics import kernel_distance
from ratlip_hf.training import loop
from ratlip_hf.training.config import TrainingConfig
from ratlip_hf.training.samples import load_training_data
from ratlip_hf.training.validation import Best, QuickEvaluation
from ratlip_hf.utils.errors import UserError
from training_toys import toy_dataset

# The kernel distance


def test_the_kernel_distance_of_four_numbers():
    """By hand: 3^3 within the first pair, 1 within the second, (1 + 8 + 1 + 27) / 4 between them."""
    real, fake = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [1.0]])
    assert kernel_distance(real, fake) == pytest.approx(27 + 1 - 2 * 9.25, abs=1e-12)
    assert kernel_distance(real, fake, degree=1) == pytest.approx(3 + 1 - 2 * 1.75, abs=1e-12)


def test_the_kernel_divides_by_the_width():
    """The same numbers twice over: x.y / d is unchanged."""
    real, fake = torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert kernel_distance(real, fake) == pytest.approx(9.5, abs=1e-12)


def test_the_kernel_distance_is_unbiased_and_sees_a_shift():
    embeds = torch.randn(400, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    same = torch.tensor([kernel_distance(*pair) for pair in embeds])
    assert abs(same.mean()) < 3 * same.std() / 20  # with the diagonal it would be 2.6, ten times as much
    assert (same < 0).any()
    assert kernel_distance(embeds[:, 0, 0], embeds[:, 1, 0] + 1) > 1


def test_the_kernel_distance_is_computed_in_double_precision():
    embeds = 100 * torch.randn(2, 50, 16, generator=torch.Generator().manual_seed(0))
    assert kernel_distance(*embeds) == kernel_distance(*embeds.double())


@pytest.mark.parametrize("shapes", [((1, 4), (5, 4)), ((5, 4), (1, 4)), ((5, 4), (5, 3)), ((5,), (5,))])
def test_features_of_other_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match="features must be"):
        kernel_distance(*map(torch.zeros, shapes))


# Scores


class Projector:
    """In a generator's place: shows given images in order, and remembers the sizes of the batches."""

    def __init__(self, images: torch.Tensor):
        self.images, self.sizes = images, []

    def __call__(self, noise, prompt_embeds, image_encoder, return_dict):
        assert not torch.is_grad_enabled()
        start = sum(self.sizes)
        self.sizes.append(len(noise))
        return (self.images[start : start + len(noise)],)


@pytest.fixture
def data(config):
    return load_training_data(config, 64, 8)


@pytest.fixture
def generator(make_generator):
    return make_generator(sample_size=64, noise_dim=8)


@pytest.fixture
def evaluation(config, data, small_clip) -> QuickEvaluation:
    config.evaluation_samples = 10
    return QuickEvaluation(config, data, copy.copy(small_clip))


def test_real_images_in_the_generators_place_score_as_real_ones(evaluation, data):
    reals = data.batch(range(10)).images
    world = find_world("synthetic-birds")
    renders = world.load_eval_data(world.PROTOCOL, "validation").real.load(0, 10)
    perfect = Projector(torch.cat([reals, renders]))
    scores = evaluation.run(perfect)
    assert scores["attribute_accuracy"] > 0.95 and scores["all_words_right"] > 0.9
    assert scores["judge_fid"] == pytest.approx(0, abs=1e-3)  # of the very same renders
    assert scores["kid"] < 0  # the same images: less than between two samples of one distribution
    assert perfect.sizes == [4, 4, 2, 4, 4, 2]
    noise = torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    poor = evaluation.run(Projector(noise))
    assert poor["kid"] > 10 * abs(scores["kid"])
    assert poor["attribute_accuracy"] < 0.5 and poor["judge_fid"] > 100
    shuffled = evaluation.run(Projector(torch.cat([reals, renders.roll(1, 0)])))
    assert shuffled["attribute_accuracy"] < 0.5 and shuffled["all_words_right"] < 0.2
    assert shuffled["clip_similarity"] == scores["clip_similarity"]


def test_the_similarity_is_the_cosine_with_the_captions(evaluation, data, small_clip):
    batch = data.batch(range(10))
    scores = evaluation.run(Projector(3 * torch.cat([batch.images] * 2)))  # clamped as a saved image is
    with torch.no_grad():
        pixels = (batch.images * 3).clamp(-1, 1)
        embeds = evaluation._embed(pixels)
        tower = small_clip.image_encoder.vision_model(pixel_values=_clip_pixels(pixels))
        torch.testing.assert_close(embeds, small_clip.image_encoder.visual_projection(tower.pooler_output))
    cosines = torch.cosine_similarity(embeds, small_clip.encode(batch.captions))
    assert scores["clip_similarity"] == pytest.approx(cosines.mean().item(), abs=1e-6)


def _clip_pixels(images: torch.Tensor) -> torch.Tensor:
    from ratlip_hf.clip import prepare_pixels

    return prepare_pixels(images, 32)


def test_scores_repeat_and_need_no_text_tower(evaluation, generator):
    evaluation.clip.text_encoder = None
    first = evaluation.run(generator)
    assert set(first) == {"kid", "clip_similarity", "attribute_accuracy", "all_words_right", "judge_fid"}
    assert evaluation.run(generator) == first
    assert not generator.training


def test_the_protocol_says_what_was_compared(evaluation, small_clip):
    protocol = json.loads(json.dumps(evaluation.protocol))
    assert (protocol["samples"], protocol["validation_prompts"]) == (10, 10)
    assert protocol["decisive"] == "judge_fid"
    assert protocol["clip_sha256"] == small_clip.describe()["weights_sha256"]


def test_without_judges_the_kernel_distance_decides(config, small_clip, make_generator):
    config.dataset_name, config.train_data_dir = None, "grey"
    evaluation = QuickEvaluation(config, toy_dataset(config), small_clip)
    assert evaluation.protocol["decisive"] == "kid"
    assert evaluation.protocol["samples"] == 10  # all there are
    assert set(evaluation.run(make_generator(noise_dim=3))) == {"kid", "clip_similarity"}


def test_a_run_never_looks_at_test_prompts(config, data, small_clip, monkeypatch):
    encoded, encode = [], FrozenCLIP.encode
    monkeypatch.setattr(FrozenCLIP, "encode", lambda clip, texts: (encoded.extend(texts), encode(clip, texts))[1])
    config.evaluation_samples = 500
    QuickEvaluation(config, data, small_clip)
    dataset = find_world("synthetic-birds", "dataset")
    kept, looked_at = ({entry["prompt"] for entry in dataset.load_prompts(split)} for split in ("test", "validation"))
    assert looked_at <= set(encoded) and not kept & set(encoded)


@pytest.mark.parametrize(("size", "decisive"), [(128, "judge_fid"), (100, "kid")])
def test_the_judges_read_their_own_size_and_multiples(config, small_clip, size, decisive):
    config.evaluation_samples = 4
    evaluation = QuickEvaluation(config, load_training_data(config, size, 8), small_clip)
    assert evaluation.protocol["decisive"] == decisive


def test_the_kernel_between_embeddings_is_that_of_their_cosine(evaluation, data):
    others = data.batch(range(10, 20)).images
    found = evaluation.run(Projector(torch.cat([others, others])))["kid"]
    pair = evaluation.real_embeds, _embeds(evaluation, others)
    real, fake = (torch.nn.functional.normalize(x.double()) for x in pair)
    within = [((x @ x.T + 1) ** 3).fill_diagonal_(0).sum() / 90 for x in (real, fake)]
    assert found == pytest.approx((sum(within) - 2 * ((real @ fake.T + 1) ** 3).mean()).item(), abs=1e-5)


def _embeds(evaluation: QuickEvaluation, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return evaluation._embed(images)


def test_one_sample_is_too_few(config, data, small_clip):
    config.evaluation_samples = 1
    with pytest.raises(UserError, match="at least two images"):
        QuickEvaluation(config, data, small_clip)


def test_no_global_random_numbers_are_used(config, data, small_clip, generator):
    config.evaluation_samples = 6
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    QuickEvaluation(config, data, small_clip).run(generator)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert before[2] == random.getstate()


# The best weights


def record(step: int, **scores) -> dict:
    return {"step": step, "images": 4 * step, "scores": scores, "protocol": {"decisive": next(iter(scores))}}


@pytest.mark.parametrize("name", ["judge_fid", "kid"])
def test_only_a_better_score_is_kept(pipe, tmp_path, name):
    best = Best(tmp_path)
    (tmp_path / ".best.x" / "left by a kill").mkdir(parents=True)
    series = [(1, 0.5), (2, 0.6), (3, 0.5), (4, float("nan")), (5, 0.4), (6, 0.45)]
    kept = [step for step, score in series if best.update(record(step, **{name: score}), pipe)]
    assert kept == [1, 5] and [path.name for path in tmp_path.iterdir()] == ["best"]
    assert json.loads((tmp_path / "best" / "best.json").read_text()) == record(5, **{name: 0.4})


def test_a_first_score_that_is_not_finite_is_not_the_best(pipe, tmp_path):
    assert not Best(tmp_path).update(record(1, kid=float("nan")), pipe)
    assert not (tmp_path / "best").exists()


def lines(folder: Path, name: str) -> list[dict]:
    found = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in found]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return RATLIPPipeline.from_pretrained(folder).generator.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def evaluated(config: TrainingConfig, folder: Path) -> TrainingConfig:
    changed = copy.copy(config)
    changed.output_dir, changed.evaluate_every, changed.evaluation_samples = str(folder), 8, 6
    return changed


def test_training_is_the_same_with_and_without_evaluation(config, tmp_path):
    plain = loop.train(config)
    scored = loop.train(evaluated(config, tmp_path / "scored"))
    assert not (plain / "evaluations.jsonl").exists()
    assert [line["images"] for line in lines(scored, "evaluations.jsonl")] == [8, 16]
    assert lines(plain, "log.jsonl") == lines(scored, "log.jsonl")
    assert same(weights(plain / "pipeline"), weights(scored / "pipeline"))


def scripted(monkeypatch, *distances: float) -> None:
    """Let the evaluations of the next runs find these distances, one after the other."""
    scores = iter(distances)
    monkeypatch.setattr(QuickEvaluation, "run", lambda *_: {"judge_fid": next(scores)})


def test_a_resumed_run_remembers_its_best(config, tmp_path, monkeypatch):
    """The best came before the interruption, a poorer one, cut off by it, was not the best: neither may win again."""
    config = evaluated(config, tmp_path / "run")
    config.max_train_images = 8
    scripted(monkeypatch, 10.0)
    folder = loop.train(config)
    at_best = weights(folder / "best")
    assert same(at_best, weights(folder / "pipeline"))
    config.max_train_images, config.resume_from_checkpoint = 24, "latest"
    scripted(monkeypatch, 50.0, 30.0)
    loop.train(config)
    assert [line["step"] for line in lines(folder, "evaluations.jsonl")] == [2, 4, 6]
    assert json.loads((folder / "best" / "best.json").read_text())["images"] == 8
    assert same(at_best, weights(folder / "best"))
    assert not same(at_best, weights(folder / "pipeline"))


def test_in_another_folder_nothing_has_been_the_best_yet(pipe, tmp_path):
    first = Best(tmp_path / "first")
    first.update(record(1, kid=0.5), pipe)
    for folder, expected in (("first", 0.5), ("second", None)):
        best = Best(tmp_path / folder)
        best.load_state_dict(first.state_dict())
        assert best.score == expected


def test_a_score_of_another_name_is_no_rival(pipe, tmp_path):
    """Checkpoints of earlier versions hold an accuracy, at most 1, which no distance would ever beat."""
    best = Best(tmp_path)
    best.folder.mkdir()
    best.load_state_dict({"score": 0.97})
    assert best.update(record(1, judge_fid=60.0), pipe)
    again = Best(tmp_path)
    again.load_state_dict(best.state_dict())
    assert not again.update(record(2, judge_fid=61.0), pipe) and again.update(record(3, judge_fid=59.0), pipe)
