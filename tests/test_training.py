"""The trainer: which network moves when, EMA weights, resuming, outputs.
Runs take a few steps of a toy generator on rendered birds."""

import copy
import dataclasses
import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from ratlip_hf import RATLIPDiscriminator, RATLIPGenerator, RATLIPPipeline, bundled
from ratlip_hf.clip import FrozenCLIP
from ratlip_hf.training import loop, run
from ratlip_hf.training.checkpoints import Checkpoints
from ratlip_hf.training.config import load_config
from ratlip_hf.training.optimization import EMA
from ratlip_hf.training.run import build_networks
from ratlip_hf.training.step import training_step
from ratlip_hf.utils.errors import UserError
from training_toys import GENERATOR, step_inputs

# The step


def moved(before: torch.nn.Module, after: torch.nn.Module) -> set[str]:
    pairs = zip(before.named_parameters(), after.named_parameters(), strict=True)
    return {name for (name, old), (_, new) in pairs if not torch.equal(old, new)}


def test_a_step_moves_both_networks_and_nothing_else(nets):
    generator, discriminator = copy.deepcopy(nets.generator), copy.deepcopy(nets.discriminator)
    tower = copy.deepcopy(nets.image_encoder)
    metrics = training_step(nets, [step_inputs()])
    assert moved(generator, nets.generator) > {"noise_proj.weight", "to_rgb.weight", "states.input_gates.weight"}
    unused = {name for name, _ in discriminator.named_parameters() if "blocks" in name and "shortcut" in name}
    assert moved(discriminator, nets.discriminator) == dict(discriminator.named_parameters()).keys() - unused
    assert not moved(tower, nets.image_encoder)
    assert all(parameter.grad is None for parameter in nets.image_encoder.parameters())
    assert all(torch.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(("rate_index", "network"), [(0, "discriminator"), (1, "generator")])
def test_each_optimizer_moves_its_own_network_only(nets, rate_index, network):
    """With one network's rate at zero the other phase must not move it: no gradient leaks between the phases."""
    (nets.discriminator_optimization, nets.generator_optimization)[rate_index].set_lr_factor(0.0)
    before = copy.deepcopy(getattr(nets, network))
    training_step(nets, [step_inputs()])
    assert not moved(before, getattr(nets, network))


def test_a_step_leaves_no_gradients_behind(nets):
    """Neither the generator phase in the discriminator, nor any phase in its own network or the tower."""
    moving = [name for name, p in nets.discriminator.named_parameters() if p.requires_grad]
    training_step(nets, [step_inputs()])
    networks = (nets.generator, nets.discriminator, nets.image_encoder)
    assert all(parameter.grad is None for network in networks for parameter in network.parameters())
    assert moving == [name for name, p in nets.discriminator.named_parameters() if p.requires_grad]
    assert len(moving) < len(list(nets.discriminator.parameters()))  # there are unused ones that never move


def test_the_step_uses_one_generator_forward(nets):
    calls = []
    nets.generator.register_forward_hook(lambda *_: calls.append(1))
    training_step(nets, [step_inputs()])
    assert len(calls) == 1


# EMA weights and whole runs


def test_ema_covers_weights_and_buffers():
    module = torch.nn.BatchNorm2d(1)
    ema = EMA(module, decay=0.5)
    with torch.no_grad():
        module.weight.fill_(3.0)
        module.running_mean.fill_(10.0)
        module.num_batches_tracked.fill_(7)
    ema.update(module)  # the first decay is 1/10
    assert ema.module.weight.item() == pytest.approx(0.1 * 1 + 0.9 * 3)
    assert ema.module.running_mean.item() == pytest.approx(9.0)
    assert ema.module.num_batches_tracked.item() == 7
    ema.updates = 1000
    ema.update(module)
    assert ema.module.running_mean.item() == pytest.approx(9.5)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return RATLIPPipeline.from_pretrained(folder / "pipeline").generator.state_dict()


def test_a_run_leaves_everything_and_resumes_exactly(config, tmp_path):
    whole = loop.train(config)
    for name in ("config.json", "clip.json", "log.jsonl", "pipeline/model_index.json", "discriminator/config.json"):
        assert (whole / name).is_file(), name
    assert (whole / "samples" / "step-00000004.png").is_file()
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [4, 8, 12, 16]
    assert len(json.loads((whole / "clip.json").read_text())["weights_sha256"]) == 64
    assert RATLIPDiscriminator.from_pretrained(whole / "discriminator").feature_scale.scale.std() > 0

    halved = copy.copy(config)
    halved.output_dir, halved.max_train_images = str(tmp_path / "halved"), 8
    loop.train(halved)
    with pytest.raises(UserError, match="already holds a run"):
        loop.train(halved)
    halved.max_train_images, halved.resume_from_checkpoint = 16, "latest"
    resumed = loop.train(halved)
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert len((resumed / "log.jsonl").read_text().splitlines()) == 4


def test_an_interval_that_is_no_multiple_of_a_step_is_met_by_the_step_that_crosses_it():
    seen = [SimpleNamespace(seen=images, per_step=12) for images in range(12, 61, 12)]
    assert [loop.crossed(run, 20) for run in seen] == [False, True, False, True, True]


def test_learning_rates_and_lazy_penalties_follow_the_step_through_a_resumption(config, monkeypatch):
    penalised, lrs, real_step = [], [], loop.training_step

    def noted(nets, inputs, penalise, penalise_pixels):
        penalised.append(penalise)
        moving = (nets.generator_optimization, nets.discriminator_optimization)
        lrs.append([each.optimizer.param_groups[0]["lr"] for each in moving])
        return real_step(nets, inputs, penalise, penalise_pixels)

    monkeypatch.setattr(loop, "training_step", noted)
    config.penalty_interval, config.lr_warmup_steps, config.resume_from_checkpoint = 3, 4, "latest"
    for config.max_train_images in (8, 28):
        loop.train(config)
    assert penalised == [True, False, False, True, False, False, True]
    shares = [0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert lrs == [pytest.approx([share * 1e-4, share * 4e-4]) for share in shares]


def test_with_stored_embeddings_the_text_tower_rests_and_resuming_finds_them(config, monkeypatch):
    asked = []
    encode = FrozenCLIP.encode
    monkeypatch.setattr(
        FrozenCLIP, "encode", lambda clip, captions: asked.append(len(captions)) or encode(clip, captions)
    )
    config.text_embeddings, config.max_train_images = True, 8
    table = loop.train(config) / "text_embeddings" / "0" / "embeds.npy"
    assert asked == [120, 12, 12]  # all captions for the table, one of each image for centring and for the samples
    before = table.read_bytes(), table.stat().st_mtime_ns
    config.resume_from_checkpoint, config.max_train_images = "latest", 16
    loop.train(config)
    assert asked == [120, 12, 12, 12]
    assert (table.read_bytes(), table.stat().st_mtime_ns) == before


def test_a_trained_pipeline_is_fine_tuned_with_its_clip_and_discriminator(config, tmp_path):
    first = loop.train(config)
    fine = dataclasses.replace(config, generator={}, discriminator={}, clip=None, output_dir=str(tmp_path / "fine"))
    fine.pretrained_model_name_or_path, fine.generator_learning_rate = str(first / "pipeline"), 1e-12
    fine.discriminator_learning_rate, fine.ema_decay = 1e-12, 0.0
    tuned = loop.train(fine)
    started, ended = weights(first), weights(tuned)
    moved_by_steps = {name for name, value in ended.items() if not torch.allclose(value, started[name], atol=1e-9)}
    assert all("running" in name or "tracked" in name for name in moved_by_steps) and moved_by_steps
    discriminators = [
        RATLIPDiscriminator.from_pretrained(run / "discriminator").state_dict() for run in (first, tuned)
    ]
    for name, value in discriminators[0].items():
        torch.testing.assert_close(discriminators[1][name], value, rtol=0, atol=1e-9, msg=name)


def test_fine_tuning_without_a_discriminator_starts_a_fresh_one_and_says_so(tmp_path, caplog):
    shutil.copytree(bundled.model_dir(), tmp_path / "alone")
    options = ["--pretrained_model_name_or_path", str(tmp_path / "alone"), "--preset", "tiny"]
    config = load_config([*options, "--dataset_name", "synthetic-birds"])
    _, discriminator, fresh = build_networks(config)
    assert fresh == [discriminator] and "no discriminator comes with" in caplog.text
    config.pretrained_model_name_or_path = "synthetic-birds"
    _, discriminator, fresh = build_networks(config)
    assert fresh == [] and discriminator.feature_scale.scale.std() > 0
    config.pretrained_model_name_or_path = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="no pipeline to fine-tune"):
        build_networks(config)


def test_the_discriminator_of_a_name_on_the_hub_is_looked_for_nowhere_else(config, monkeypatch):
    """Beside "someone/birds" lies no folder, and "someone/discriminator" is another repository."""
    asked = []

    def missing(source, **_):
        asked.append(source)
        raise OSError

    monkeypatch.setattr(RATLIPGenerator, "from_pretrained", lambda *_, **__: None)
    monkeypatch.setattr(RATLIPDiscriminator, "from_pretrained", missing)
    config.pretrained_model_name_or_path = "someone/birds"
    build_networks(config)
    assert asked == ["someone/birds"]


def test_a_run_that_diverges_stops_with_a_report_and_keeps_its_last_checkpoint(config, monkeypatch):
    real_step, calls = loop.training_step, []

    def diverging(*arguments, **options):
        calls.append(1)
        metrics = real_step(*arguments, **options)
        return {**metrics, "d_loss": torch.tensor(float("nan"))} if len(calls) == 3 else metrics

    monkeypatch.setattr(loop, "training_step", diverging)
    with pytest.raises(UserError, match=r"step 3 \(global samples 8 to 11\).*d_loss nan"):
        loop.train(config)
    assert [path.name for path in (Path(config.output_dir) / "checkpoints").iterdir()] == ["step-00000002"]


def test_overflows_of_float16_do_not_end_a_run(config, monkeypatch):
    scaler = functools.partial(torch.amp.GradScaler, init_scale=2.0**60)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    config.mixed_precision, config.checkpoints_total_limit = "fp16", 1
    output = loop.train(config)
    norms = [json.loads(line)["d_grad_norm"] for line in (output / "log.jsonl").open()]
    assert norms == [None] * 4
    state = torch.load(output / "checkpoints" / "step-00000004" / "state.pt", weights_only=True)
    for name in ("generator", "discriminator"):
        assert state[f"{name}_optimization"]["scaler"]["scale"] == 2.0**56
        assert all(value.isfinite().all() for value in state[name].values())


def test_weights_that_are_not_finite_never_become_a_checkpoint(config, monkeypatch):
    """A gradient may overflow while its loss does not: the metrics of the step then look healthy."""
    real_step, calls = loop.training_step, []

    def breaking(nets, *inputs, **options):
        metrics = real_step(nets, *inputs, **options)
        calls.append(1)
        if len(calls) == 4:
            with torch.no_grad():
                nets.discriminator.referee.conv2.weight.view(-1)[0] = float("inf")
        return metrics

    monkeypatch.setattr(loop, "training_step", breaking)
    with pytest.raises(UserError, match=r"step 4 .*discriminator_norm (inf|nan)"):
        loop.train(config)
    assert [path.name for path in (Path(config.output_dir) / "checkpoints").iterdir()] == ["step-00000002"]


class State:
    """Something with a state."""

    def __init__(self, value: int):
        self.value = value

    def state_dict(self) -> dict:
        return {"value": self.value}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"]


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    """Three checkpoints of a counter, of which two are kept."""
    saved = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (1, 2, 3):
        saved.objects = {"counter": State(10 * step)}
        saved.save(step, {"step": step})
    saved.objects = {"counter": State(0)}
    return saved


def test_the_latest_checkpoint_is_restored_and_old_ones_go(checkpoints):
    path, facts = checkpoints.find("latest")
    checkpoints.restore(path)
    assert (facts["step"], checkpoints.objects["counter"].value) == (3, 30)
    assert sorted(folder.name for folder in checkpoints.folder.iterdir()) == ["step-00000002", "step-00000003"]
    assert checkpoints.find(str(checkpoints.folder / "step-00000002"))[1]["step"] == 2
    assert Checkpoints(checkpoints.folder / "none", keep=1).find("latest") is None


def test_a_run_taken_back_to_an_earlier_step_supersedes_what_came_after(checkpoints):
    """Otherwise the new checkpoints would be the old ones to be removed, and the latest one the abandoned one."""
    checkpoints.save(1, {"step": 1})
    assert [folder.name for folder in checkpoints.folder.iterdir()] == ["step-00000001"]
    checkpoints.save(4, {"step": 4})
    assert checkpoints.find("latest")[1]["step"] == 4


def test_processes_that_found_different_checkpoints_are_refused(config, monkeypatch, caplog):
    """As on two machines without a common disk: here every other process is said to be at step 4."""
    config.resume_from_checkpoint = "latest"
    with caplog.at_level("INFO"):
        loop.train(config)
    assert f"nothing to resume in {config.output_dir}" in caplog.text
    config.output_dir += "-elsewhere"
    monkeypatch.setattr(Accelerator, "gather", lambda _, steps: torch.cat([steps, torch.tensor([4])]))
    with pytest.raises(UserError, match=r"of the steps \[0, 4\]: output_dir must be the same folder"):
        loop.train(config)


def test_a_run_goes_on_from_another_ones_checkpoint_only_in_a_folder_of_its_own(config, tmp_path):
    first = loop.train(config)
    config.resume_from_checkpoint = str(first / "checkpoints" / "step-00000002")
    other = dataclasses.replace(config, output_dir=str(tmp_path / "other"))
    assert [line["step"] for line in map(json.loads, (loop.train(other) / "log.jsonl").open())] == [3, 4]
    with pytest.raises(UserError, match="other already holds another run"):
        loop.train(other)
    assert loop.train(config) == first  # its own may be named


def test_what_killed_writers_left_goes_with_the_next_checkpoint(config):
    output = loop.train(config)
    rests = [output / "checkpoints" / ".step-00000003.ab12", output / ".pipeline.x.old", output / ".discriminator.x"]
    for rest in rests:
        (rest / "state").mkdir(parents=True)
    config.resume_from_checkpoint, config.max_train_images = "latest", 20
    loop.train(config)
    assert not any(rest.exists() for rest in rests)


@pytest.mark.parametrize("damage", ["flip", "cut", "facts"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(checkpoints, damage, caplog):
    newest = checkpoints.folder / "step-00000003"
    content = (newest / "state.pt").read_bytes()
    if damage == "flip":
        (newest / "state.pt").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        (newest / "state.pt").write_bytes(content[: len(content) // 2])
    else:
        (newest / "facts.json").write_text("{")
    assert checkpoints.find("latest")[1]["step"] == 2
    assert "step-00000003" in caplog.text
    with pytest.raises(UserError, match="step-00000003"):
        checkpoints.find(str(newest))


def test_a_changed_architecture_refuses_to_resume_and_a_changed_learning_rate_is_reported(config, caplog):
    config.max_train_images = 8
    loop.train(config)
    config.resume_from_checkpoint, config.max_train_images = "latest", 12
    config.generator_learning_rate = 1e-3
    loop.train(config)
    assert "generator_learning_rate from 0.0001 to 0.001" in caplog.text
    config.generator = {**GENERATOR, "lstm_hidden": 5}
    with pytest.raises(UserError, match="lstm_hidden 4"):
        loop.train(config)


@pytest.mark.parametrize(
    ("part", "option", "message"),
    [
        ("generator", {"clip_width": 24}, "width 24"),
        ("generator", {"text_dim": 24}, "embeddings of width 24"),
        ("discriminator", {"clip_grid": 7}, "grid 7"),
        ("discriminator", {"feature_layers": [0, 5]}, "beyond"),
    ],
)
def test_networks_for_another_clip_are_refused_before_any_data_is_read(config, part, option, message, monkeypatch):
    monkeypatch.setattr(run, "load_training_data", lambda *_: pytest.fail("data was read"))
    setattr(config, part, {**getattr(config, part), **option})
    with pytest.raises(ValueError, match=message):
        loop.train(config)


def test_a_clip_stored_in_half_precision_is_used_in_full(config, clip_model):
    copy.deepcopy(clip_model).half().save_pretrained(config.clip)
    config.max_train_images = 4
    pipe = RATLIPPipeline.from_pretrained(loop.train(config) / "pipeline")
    assert {pipe.text_encoder.dtype, pipe.image_encoder.dtype, pipe.generator.dtype} == {torch.float32}


def test_an_unknown_clip_is_one_line(config):
    config.clip = "no/such-folder-or-repository/at-all"
    with pytest.raises(ValueError, match="no CLIP could be loaded"):
        loop.train(config)


def test_an_option_that_is_gone_since_the_checkpoint_is_reported(config, caplog):
    networks = RATLIPGenerator.from_preset("tiny"), RATLIPDiscriminator.from_preset("tiny")
    facts = run.describe_state(*networks, config)
    run._compare_with_checkpoint(facts, *networks, config)
    assert not caplog.records
    facts["config"]["similarity_weight"] = 8.0
    run._compare_with_checkpoint(facts, *networks, config)
    assert "made with similarity_weight 8.0, which is no option any more" in caplog.text
