"""The modules for the `evaluate` library: each loads offline and does what its function does.
Sets may differ in size and arrive in batches."""

import evaluate
import pytest
import torch

from ratlip_hf import metrics
from ratlip_hf.metrics import EVALUATE_MODULES, evaluate_path


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> None:
    """`evaluate` copies modules into a cache; here it is empty."""
    for name in ("MODULES", "METRICS", "EVALUATE"):
        monkeypatch.setattr(evaluate.config, f"HF_{name}_CACHE", tmp_path / name)


def inputs_and_results(real: torch.Tensor, fake: torch.Tensor) -> dict[str, tuple[dict, dict]]:
    """What `compute` of each module gets, and what it is to return, for 30 real and 20 fake vectors."""
    prompts = ["a", "b"] * 10
    labels = torch.randint(8, (20, 3), generator=torch.Generator().manual_seed(0))
    sizes = {"num_real": 30, "num_fake": 20}

    distance, error, _ = metrics.kernel_distance_with_error(real, fake)
    precision, recall = metrics.precision_recall(real, fake)
    paired = {"predictions": fake, "references": real[:20]}
    clip = metrics.clip_score(fake, real[:20], encoder="toy")
    candidates = metrics.sample_mismatched(prompts, count=5, seed=3)
    attributes = metrics.attribute_accuracy(labels, labels.flip(0))
    sets = {"predictions": fake, "references": real}
    return {
        "fid": (sets, {"fid": metrics.frechet_distance(real, fake), **sizes}),
        "kid": (sets, {"kid": distance, "standard_error": error, **sizes}),
        "cmmd": (
            {**sets, "estimator": "unbiased"},
            {"cmmd": metrics.cmmd(real, fake, estimator="unbiased"), "estimator": "unbiased", **sizes},
        ),
        "precision_recall": (sets, {"precision": precision, "recall": recall, "k": 3, **sizes}),
        "clip_score": (
            {**paired, "encoder": "toy"},
            {"cosine": clip.cosine, "clip_score": clip.score, "encoder": "toy", "num_pairs": 20},
        ),
        "r_precision": (
            {**paired, "groups": prompts, "count": 5, "seed": 3},
            {
                "r_precision": metrics.r_precision(fake, real[:20], real[:20], candidates).value,
                "num_pairs": 20,
                "mismatched": 5,
                "seed": 3,
            },
        ),
        "prompt_diversity": (
            {"predictions": fake, "references": prompts},
            {
                "prompt_diversity": metrics.prompt_diversity(fake, prompts).value,
                "distance": "euclidean",
                "num_prompts": 2,
            },
        ),
        "attribute_accuracy": (
            {"predictions": labels, "references": labels.flip(0)},
            {
                "mean": attributes.mean,
                "all": attributes.all,
                **dict(zip(("crown", "belly", "wing"), attributes.parts.values(), strict=True)),
            },
        ),
    }


def test_every_module_loads_offline_and_computes_what_its_function_does(own_cache):
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(count, 4, generator=generator, dtype=torch.float64) for count in (30, 20))
    modules = {name: evaluate.load(evaluate_path(name)) for name in EVALUATE_MODULES}
    pairs = inputs_and_results(real, fake)
    for name, module in modules.items():
        given, wanted = pairs[name]
        found = module.compute(**given)
        assert found == wanted, (name, found, wanted)

    # Sets of different sizes, batch by batch and image by image, in any order.
    fid = modules["fid"]
    fid.add_batch(references=real[:17])
    fid.add_batch(predictions=fake[:8].numpy(), references=real[17:])
    for features in fake[8:]:
        fid.add(prediction=features)
    assert fid.compute() == pairs["fid"][1]


def test_an_unknown_module_is_refused():
    with pytest.raises(ValueError, match="there are attribute_accuracy, clip_score, cmmd, fid"):
        evaluate_path("inception_score")
    assert all(evaluate_path(name).endswith(name) for name in EVALUATE_MODULES)
