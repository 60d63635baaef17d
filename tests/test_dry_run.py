"""`--dry_run`: sizes of a run that never happens, and nothing left behind.
Sizes that are counted without allocating are compared with those of networks that really take a step."""

import json
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ratlip_hf import RATLIPDiscriminator, RATLIPGenerator
from ratlip_hf.clip import FrozenCLIP
from ratlip_hf.training import footprint, loop
from ratlip_hf.training.__main__ import main
from ratlip_hf.training.footprint import memory_use, step_peak_bytes, weight_bytes
from ratlip_hf.training.step import training_step
from training_toys import DISCRIMINATOR, GENERATOR, step_inputs


@pytest.fixture
def dry(config, tmp_path):
    """Runs `main` with `--dry_run` and returns the lines of its report by name."""

    def run(capsys) -> dict[str, str]:
        (tmp_path / "config.json").write_text(config.to_json())
        assert main(["--config", str(tmp_path / "config.json"), "--dry_run"]) == 0
        resolved, report = capsys.readouterr().out.split("\n}\n")
        assert json.loads(resolved + "}")["dry_run"] is True
        return {line[:18].strip(): line[18:] for line in report.splitlines()}

    return run


def test_a_dry_run_tells_sizes_and_leaves_nothing(config, dry, capsys, monkeypatch):
    monkeypatch.setattr(loop, "training_step", lambda *_, **__: pytest.fail("a step was taken"))
    config.text_embeddings, config.max_train_images = True, 18
    report = dry(capsys)
    generator, discriminator = (
        sum(p.numel() for p in kind.from_preset("ratlip", **options).parameters())
        for kind, options in ((RATLIPGenerator, GENERATOR), (RATLIPDiscriminator, DISCRIMINATOR))
    )
    assert report["generator"] == f"{generator:,} parameters, {generator:,} trained, 0 frozen"
    assert report["discriminator"] == f"{discriminator:,} parameters, {discriminator:,} trained, 0 frozen"
    assert report["CLIP text tower"].split(", ")[1] == report["CLIP image tower"].split(", ")[1] == "0 trained"
    assert report["memory"].startswith("about ")
    assert report["data"] == "12 images, 120 captions, 10.0 per image"
    assert report["images"].startswith("trained at 64 x 64; of 12 looked at: 64 to 64 wide, 64 to 64 high")
    assert report["captions"].count("'; '") == 2
    assert report["length"] == "5 steps of 4 images are 20 images, 1.67 epochs"
    assert "(2 kept)" in report["files"]
    assert not Path(config.output_dir).exists()


def test_a_dry_run_refuses_what_a_run_would(config, tmp_path, capsys):
    config.train_batch_size = 1
    (tmp_path / "config.json").write_text(config.to_json())
    assert main(["--config", str(tmp_path / "config.json"), "--dry_run"]) == 2
    assert "at least two images" in capsys.readouterr().err


# Memory


def peak(config, nets, small_clip: FrozenCLIP, **changes) -> int:
    for name, value in changes.items():
        setattr(config, name, value)
    return step_peak_bytes(config, nets.accelerator, nets.generator, nets.discriminator, small_clip)


@pytest.mark.slow
def test_the_estimate_allocates_nothing_changes_nothing_and_shrinks_with_precision_and_checkpointing(
    config, nets, small_clip, make_generator
):
    few = {"bridge_blocks": 1, "bridge_conv": "plain", "image_conv": "plain", "prompt_layers": (0,)}
    nets.generator = make_generator(noise_dim=8, **few).train()
    before = [parameter.clone() for parameter in nets.generator.parameters()]
    whole = peak(config, nets, small_clip, train_batch_size=1_000, augmentation="color,cutout")
    assert whole > 1_000 * 3 * 32 * 32 * 4 * 10
    assert peak(config, nets, small_clip, mixed_precision="bf16") < 0.9 * whole
    assert peak(config, nets, small_clip, mixed_precision="no", gradient_checkpointing=True) < 0.95 * whole
    assert all(map(torch.equal, before, nets.generator.parameters()))
    assert all(p.grad is None and p.requires_grad for p in nets.generator.parameters())
    assert not nets.generator.gradient_checkpointing


def test_the_estimate_is_what_a_step_takes(config, nets, small_clip):
    """Against the allocator's record of a real step, in which nothing but the small optimizer is left out."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        training_step(nets, [step_inputs()])
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    largest = max(accumulate(changes))
    assert peak(config, nets, small_clip, train_batch_size=4) == pytest.approx(largest, rel=0.3)


def test_memory_is_the_sum_of_weights_gradients_moments_and_activations(config, nets, small_clip, monkeypatch):
    given = (config, nets.accelerator, nets.generator, nets.discriminator, small_clip)
    monkeypatch.setattr(footprint, "step_peak_bytes", lambda *what: 10**9 if what == given else 0)
    use = memory_use(*given)
    towers = weight_bytes(small_clip.text_encoder) + weight_bytes(small_clip.image_encoder)
    assert use.weights == 2 * weight_bytes(nets.generator) + weight_bytes(nets.discriminator) + towers
    assert use.moments == 2 * use.gradients
    unused = [p.numel() * 4 for p in nets.discriminator.parameters() if not p.requires_grad]
    assert unused
    networks = (nets.generator, nets.discriminator)
    assert use.gradients == sum(p.numel() * 4 for network in networks for p in network.parameters()) - sum(unused)
    assert use.activations == 10**9 - use.gradients
    assert use.total == use.weights + use.gradients + use.moments + use.activations
