"""Evaluation by protocol: what is compared with what, and that shares, batches and files change no score.
With toy networks; `test_evaluate_command.py` types the command."""

import copy
import dataclasses
import itertools
import json
import math

import pytest
import torch
from accelerate import PartialState
from torch import nn

from ratlip_hf.bundled import find_world
from ratlip_hf.evaluation import scoring
from ratlip_hf.evaluation.engine import Evaluation, ScoringNetworks, share
from ratlip_hf.evaluation.features import FeatureExtractor
from ratlip_hf.evaluation.inputs import Folder, Model, load_eval_data
from ratlip_hf.evaluation.protocols import Protocol, find_protocol
from ratlip_hf.evaluation.records import compare_records
from ratlip_hf.evaluation.scoring import GROUPS, Batch, CLIPAccumulator, FeatureAccumulator
from ratlip_hf.metrics import (
    UNNAMED,
    FeatureStatistics,
    Origins,
    frechet_distance,
    interval,
    kernel_distance_with_error,
)
from ratlip_hf.synthetic_birds.captions import named_scene
from ratlip_hf.synthetic_birds.dataset import load_prompts, make_dataset, prompt_bird
from ratlip_hf.utils.errors import UserError

COUNT = 12
TOY = Protocol("toy", "for tests", size=32, spaces=("judge",))


class ToyFeatures(FeatureExtractor):
    """Means over a 2 x 2 grid of a fixed random colour mix: [B, 8]."""

    preprocessing = "none"

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 2, 1), "toy", 8)

    def _features(self, images):
        return nn.functional.adaptive_avg_pool2d(self.network(images), 2).flatten(1)


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """A folder with a dataset of a few renders, ten captions each."""
    folder = tmp_path_factory.mktemp("birds")
    make_dataset("test", COUNT).to_parquet(folder / "test-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def eval_data(birds):
    return load_eval_data(TOY, birds)


def evaluation(eval_data, clip=None, protocol=TOY, batch_size=7) -> Evaluation:
    return Evaluation(protocol, eval_data, ScoringNetworks({"judge": ToyFeatures()}, clip), batch_size)


def values(record) -> dict:
    return {f"{name} {key}": value for name, score in record.scores.items() for key, value in score.items()}


def test_every_caption_is_used_once(eval_data, birds):
    captions = make_dataset("test", COUNT)["captions"]
    assert eval_data.prompts == [captions[place][which] for which in range(10) for place in range(COUNT)]
    assert eval_data.clusters == list(range(COUNT)) * 10
    assert len(eval_data.real) == COUNT and eval_data.real.load(0, 5).shape == (5, 3, 32, 32)
    few = eval_data.first(5)
    assert (len(few.prompts), len(few.real), len(few.clusters)) == (5, 5, 5)


def test_released_passes_shuffle_and_drop_the_incomplete_batch(birds):
    protocol = dataclasses.replace(find_protocol("released"), whole_batches=5)
    eval_data = load_eval_data(protocol, birds)
    captions = make_dataset("test", COUNT)["captions"]
    assert len(eval_data.prompts) == 12 * 10
    passes = [eval_data.clusters[start : start + 10] for start in range(0, 120, 10)]
    assert all(len(set(each)) == 10 for each in passes) and len({tuple(each) for each in passes}) == 12
    assert all(text in captions[place] for text, place in zip(eval_data.prompts, eval_data.clusters, strict=True))
    assert eval_data.prompts == load_eval_data(protocol, birds).prompts
    assert eval_data.prompts != load_eval_data(dataclasses.replace(protocol, seed=1), birds).prompts
    with pytest.raises(UserError, match="at least 32 images"):
        load_eval_data(find_protocol("released"), birds)


def test_heldout_prompts_know_what_they_name():
    eval_data = load_eval_data(find_protocol("synthetic-birds"), "synthetic-birds")
    entries = load_prompts("test")
    assert len(eval_data.prompts) == len(eval_data.real) == 2400 and eval_data.clusters[400:402] == [0, 1]
    for entry, words in zip(entries, eval_data.targets[:400], strict=True):
        named = {name for name, word in zip(eval_data.fields, words, strict=True) if word != UNNAMED}
        assert {"crown", "belly", "wing"} <= named and "size" not in named
        assert ("direction" in named) == (" left" in entry["prompt"] or " right" in entry["prompt"])
    with pytest.raises(UserError, match="do not go together"):
        load_eval_data(find_protocol("standard"), "synthetic-birds")


def test_named_scene():
    bird = prompt_bird(load_prompts("test")[0])  # left, snow, rock
    assert named_scene("a red bird, facing left, perched on a stone in winter", bird) == (
        "direction",
        "background",
        "perch",
    )
    assert named_scene("a red bird facing right at sunset", bird) == ()


def test_images_are_those_of_the_pipeline_by_seed(pipe, eval_data):
    pipe.set_progress_bar_config(disable=True)
    model = Model("toy", pipe, eval_data.prompts, TOY)
    alone = pipe(eval_data.prompts[4], generator=torch.Generator().manual_seed(4), output_type="pt").images * 2 - 1
    torch.testing.assert_close(model.load(3, 6)[1:2], alone, atol=1e-5, rtol=0)


def test_files_score_as_the_model_that_generated_them(pipe, eval_data, small_clip, tmp_path):
    pipe.set_progress_bar_config(disable=True)
    eval_clip = copy.deepcopy(small_clip)
    eval_clip.image_encoder.visual_projection.weight.data.mul_(2)
    few = eval_data.first(60)
    judged = evaluation(few, eval_clip)
    generated = judged.score(Model("toy", pipe, few.prompts, TOY))
    lines = []
    for index, prompt in reversed(list(enumerate(few.prompts))):  # another order is the same set
        name = f"{index}.png"
        pipe(prompt, generator=torch.Generator().manual_seed(index)).images[0].save(tmp_path / name)
        lines.append(json.dumps({"file": name, "prompt": prompt}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    read = judged.score(Folder(tmp_path))
    shared = compare_records(generated, read)
    assert {"fid_judge", "kid_judge", "clip_score", "cmmd"} <= shared.keys()
    for name, (first, second) in shared.items():
        assert first["value"] == pytest.approx(second["value"], rel=1e-3, abs=1e-4), name
    assert "r_precision" not in shared  # fewer than 100 images


def test_a_folder_without_prompts_has_no_scores_of_prompts(eval_data, small_clip, tmp_path):
    from PIL import Image

    for index in range(3 * GROUPS):
        Image.new("RGB", (32, 32), (index, 50, 90)).save(tmp_path / f"{index:02d}.png")
    record = evaluation(eval_data, small_clip).score(Folder(tmp_path))
    assert {"fid_judge", "cmmd"} <= record.scores.keys() and "clip_score" not in record.scores
    assert record.protocol["prompts_sha256"] is None and record.protocol["num_fake"] == 3 * GROUPS
    Image.new("RGB", (16, 32)).save(tmp_path / "99.png")
    with pytest.raises(UserError, match="one size; there are 16 x 32, 32 x 32"):
        Folder(tmp_path).load(0, 31)
    with pytest.raises(UserError, match="holds no images"):
        Folder(tmp_path, limit=0)


def test_batches_change_nothing(pipe, eval_data, small_clip):
    pipe.set_progress_bar_config(disable=True)
    model = Model("toy", pipe, eval_data.prompts[:40], TOY)
    few = eval_data.first(40)
    one, other = (evaluation(few, small_clip, batch_size=size).score(model) for size in (40, 3))
    assert one.protocol == other.protocol
    assert values(one) == pytest.approx(values(other), rel=1e-4, abs=1e-5)


def test_shares_of_several_processes_come_together(small_clip):
    """The states of three shares merge to that of the whole, vectors in the order of the images."""
    images, clusters = torch.rand(50, 3, 32, 32) * 2 - 1, [index // 2 for index in range(50)]
    prompts = [f"bird {index}" for index in range(50)]

    def accumulate(makers, start, stop):
        accumulators = [make() for make in makers]
        for accumulator in accumulators:
            for first in range(start, stop, 4):
                last = min(first + 4, stop)
                accumulator.update(Batch(images[first:last], first, clusters[first:last], prompts[first:last]))
        return [accumulator.state() for accumulator in accumulators], accumulators

    makers = [lambda: FeatureAccumulator(ToyFeatures(), keep=30), lambda: CLIPAccumulator(small_clip, keep=30)]
    states, (features, view) = accumulate(makers, 0, 50)
    features.merge([states[0]]), view.merge([states[1]])
    cuts = [share(50, _process(rank, 3)) for rank in range(3)]
    assert [index for cut in cuts for index in cut] == list(range(50))
    parts = [accumulate(makers, cut.start, cut.stop)[0] for cut in cuts]
    merged, seen = (make() for make in makers)
    merged.merge([part[0] for part in parts]), seen.merge([part[1] for part in parts])

    torch.testing.assert_close(merged.vectors, features.vectors)
    assert len(merged.vectors) == len(torch.cat(seen.images)) == len(torch.cat(seen.texts)) == 30
    torch.testing.assert_close(torch.cat(seen.cosines), torch.cat(view.cosines), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(merged.statistics.covariance, features.statistics.covariance)
    whole = FeatureStatistics.of(ToyFeatures()(images))
    torch.testing.assert_close(merged.statistics.covariance, whole.covariance)
    assert sum(part.count for part in merged.parts) == 50


def test_memory_does_not_grow_by_whole_batches(small_clip):
    """Beyond what is kept, only a cosine per image stays."""
    view = CLIPAccumulator(small_clip, keep=6)
    for first in range(0, 20, 4):
        view.update(Batch(torch.zeros(4, 3, 32, 32), first, [0] * 4, ["a bird"] * 4))
    assert [len(part) for part in view.images] == [len(part) for part in view.texts] == [4, 2]
    assert sum(len(part) for part in view.cosines) == 20


def _process(rank: int, world: int) -> PartialState:
    class State:
        process_index, num_processes = rank, world

    return State()


def test_the_distance_is_that_of_all_images_and_its_interval_holds_it(eval_data):
    torch.manual_seed(0)
    real, fake = FeatureAccumulator(ToyFeatures(), 100), FeatureAccumulator(ToyFeatures(), 100)
    for accumulator, images in ((real, torch.rand(60, 3, 8, 8)), (fake, torch.rand(60, 3, 8, 8) / 2)):
        accumulator.update(Batch(images, 0, list(range(60))))
        accumulator.merge([accumulator.state()])
    number = torch.arange(120)
    origins = Origins(number[:60], number[:60]), Origins(number[60:], number[60:])
    found = scoring.set_scores(real, fake, origins, "_toy")
    assert found["fid_toy"]["value"] == pytest.approx(frechet_distance(real.vectors, fake.vectors), rel=1e-9)
    assert found["fid_toy"]["low"] < found["fid_toy"]["value"] < found["fid_toy"]["high"]
    assert found["kid_toy"]["low"] > 0
    assert found["precision_toy"]["value"] <= 1 and found["recall_toy"]["value"] <= 1


def test_judges_know_renders():
    """Fresh renders are what a perfect model would generate; prompts that leave a word open do not count for it."""
    world, protocol = find_world("synthetic-birds"), find_protocol("synthetic-birds")
    eval_data = load_eval_data(protocol, "synthetic-birds").first(60)
    networks = ScoringNetworks({}, None, world.load_judges("cpu"))
    record = Evaluation(protocol, eval_data, networks).score(world.fresh_renders(eval_data))
    accuracies, fields = {name: score["value"] for name, score in record.scores.items()}, eval_data.fields
    assert list(accuracies) == [
        "attribute_accuracy",
        *(f"accuracy_{name}" for name in fields[:3]),
        "all_parts_right",
        *(f"accuracy_{name}" for name in fields[3:] if name != "size"),
        "all_words_right",
        *(f"power_{band}_of_4" for band in (1, 2, 3, 4)),
    ]
    assert min(score for name, score in accuracies.items() if "power" not in name) > 0.96
    assert all(0.8 < score < 1.25 for name, score in accuracies.items() if "power" in name)
    per_prompt = {name: record.per_prompt[name] for name in accuracies if "power" not in name}
    assert all(len(means) == 60 for means in per_prompt.values())
    for name, means in per_prompt.items():
        named = [mean for mean in means if mean is not None]
        assert sum(named) / len(named) == pytest.approx(accuracies[name], abs=1e-4)
    assert math.isclose(accuracies["attribute_accuracy"], sum(accuracies[f"accuracy_{p}"] for p in fields[:3]) / 3)


def test_three_images_are_no_set(pipe, eval_data):
    few = eval_data.first(3)
    with pytest.raises(UserError, match="at least 4"):
        evaluation(few).score(Model("toy", pipe, few.prompts, TOY))


def test_only_named_words_count():
    predictions = torch.tensor([[[1, 0]], [[1, 0]], [[0, 0]]])
    targets = torch.tensor([[1, UNNAMED], [0, UNNAMED], [UNNAMED, UNNAMED]])
    origins = Origins(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]))
    scores, per_prompt = scoring.attribute_scores([(predictions, targets, ["direction", "perch"])], origins)
    assert scores.keys() == per_prompt.keys() == {"accuracy_direction", "all_words_right"}
    assert scores["accuracy_direction"]["value"] == pytest.approx(1 / 2)
    assert per_prompt == {"accuracy_direction": [1.0, 0.0, None], "all_words_right": [1.0, 0.0, 1.0]}


def test_images_of_one_prompt_are_one_piece_of_evidence():
    torch.manual_seed(0)
    per_prompt, number = torch.rand(20, dtype=torch.float64), torch.arange(20)
    once = scoring._mean(per_prompt, Origins(number, number))
    repeated = scoring._mean(per_prompt.repeat(6), Origins(number.repeat(6), number.repeat(6)))
    assert repeated == pytest.approx(once)


def test_held_out_prompts_are_grouped_by_what_was_never_seen():
    """400 prompts of 64 colour triples: renders of one triple are in one group, whatever else the prompts say."""
    data = load_eval_data(find_protocol("synthetic-birds"), "synthetic-birds")
    origins = data.origins(data.clusters)
    assert (len(origins.prompts.unique()), len(origins.groups.unique())) == (400, 64)
    birds = [prompt_bird(entry) for entry in load_prompts("test")]
    for prompt, group in zip(origins.prompts.tolist(), origins.groups.tolist(), strict=True):
        assert birds[prompt].colours == birds[origins.prompts[origins.groups == group][0]].colours
    assert data.origins([5, 400]).groups.tolist() == [origins.groups[5].item(), 800]  # 400 is no prompt of the data


def test_fresh_renders_are_at_no_distance_from_each_other_beyond_chance():
    """The interval of KID holds 0, which it misses by far where pairs of one prompt count."""
    world, protocol = find_world("synthetic-birds"), find_protocol("synthetic-birds")
    data, features = load_eval_data(protocol, "synthetic-birds").first(400), world.load_features()
    fresh = [features(dataclasses.replace(data.real, seed=seed).load(0, 400)) for seed in (1, 2, 3)]
    of = data.origins(data.clusters)
    for one, other in itertools.combinations(fresh, 2):
        kid, with_pairs = (interval(kernel_distance_with_error(one, other, origins)) for origins in ((of, of), None))
        assert kid.low < 0 < kid.high
        assert with_pairs.high < kid.low


def test_pixels_are_compared_at_the_model_s_own_patches(pipe, eval_data):
    scores = evaluation(eval_data).score(Model("toy", pipe, eval_data.prompts, TOY)).scores
    assert scores["steps_at_joints"]["value"] > 0 and scores["power_4_of_4"]["value"] > 0


def test_the_training_signal_is_measured_as_the_protocol_says(pipe, eval_data, small_clip):
    """Also where the same CLIP is the eval_clip, whose own input may be another."""
    pipe.set_progress_bar_config(disable=True)
    model, name = (
        Model("toy", pipe, eval_data.prompts[:20], TOY),
        f"_own_{small_clip.describe()['weights_sha256'][:8]}",
    )
    twice = dataclasses.replace(TOY, own_clip_input="released")
    found = [
        evaluation(eval_data.first(20), eval_clip, protocol).score(model).scores[f"clip_score{name}"]["value"]
        for protocol in (TOY, twice)
        for eval_clip in (None, small_clip)
    ]
    assert found[0] == pytest.approx(found[1]) and found[2] == pytest.approx(found[3])
    assert abs(found[0] - found[2]) > 1e-3


def test_the_training_signal_is_never_called_the_clip_score(pipe, eval_data, small_clip):
    pipe.set_progress_bar_config(disable=True)
    model = Model("toy", pipe, eval_data.prompts[:20], TOY)
    few = eval_data.first(20)
    own = model.own_clip.describe()["weights_sha256"][:8]
    for eval_clip in (None, small_clip):  # the CLIP of `pipe` is a copy of the latter
        found = evaluation(few, eval_clip).score(model).scores
        assert f"clip_score_own_{own}" in found and "clip_score" not in found
    other = copy.deepcopy(small_clip)
    other.text_encoder.text_projection.weight.data.mul_(-1)
    found = evaluation(few, other).score(model).scores
    assert found["clip_score"]["value"] == pytest.approx(-found[f"clip_score_own_{own}"]["value"], rel=1e-5)
