"""`ratlip benchmark`: a record with every value, a step arranged as released that computes what ours does, mistakes.
Nothing here looks at how long anything took."""

import functools
import json

import pytest
import torch

from ratlip_hf.benchmark import inference, measuring, runtimes, training_speed
from ratlip_hf.benchmark.runtimes import RUNTIMES
from ratlip_hf.cli import benchmark
from ratlip_hf.cli.main import main
from ratlip_hf.models import PRESETS
from ratlip_hf.training.config import TrainingConfig

CPU = torch.device("cpu")


@pytest.fixture
def no_processes(monkeypatch):
    """Peaks of fresh processes take seconds each; here, only that they are asked for. Products are small: without
    instructions for bfloat16 a large one takes minutes."""
    monkeypatch.setattr(measuring, "_SIDE", 64)
    baselines = (inference.PLAIN, training_speed.RELEASED)
    monkeypatch.setattr(measuring, "in_fresh_process", lambda work, path, *_: 300 if path in baselines else 150)


@pytest.mark.slow
def test_the_record_holds_what_the_tables_show(no_processes, monkeypatch, tmp_path, capsys):
    out = tmp_path / "new" / "speed.jsonl"
    command = ["benchmark", "--preset", "tiny", "--parts", "inference", "training", "--batch_sizes", "1", "3"]
    command += [
        "--runtimes",
        "onnxruntime",
        "--training_batch",
        "2",
        "--repetitions",
        "2",
        "--threads",
        "1",
        "--device",
        "cpu",
    ]
    assert main([*command, "--output_file", str(out)]) == 0
    shown = capsys.readouterr().out
    record = json.loads(out.read_text())
    assert record["machine"]["threads"] == 1 and torch.__version__.startswith(record["machine"]["torch"])
    assert sorted(record["command"].split()) == sorted(["ratlip", *command[:-2]])  # not where the record goes
    assert benchmark.describe(record) in shown
    for part, name in ((inference, "inference"), (training_speed, "training")):
        monkeypatch.setattr(part, "measure", lambda _, name=name: record[name])
    assert main([*command, "--output_file", str(out)]) == 0
    first, second = map(json.loads, out.read_text().splitlines())
    assert first == record and second["training"] == record["training"]

    rows = {(row["path"], row["batch"]): row for row in record["inference"]["rows"]}
    assert rows.keys() == {
        (path, batch)
        for path in ("plain fp32", "optimized fp32", "optimized bf16", "onnxruntime fp32")
        for batch in (1, 3)
    }
    for (path, batch), row in rows.items():
        assert row["least_s"] <= row["median_s"] <= row["greatest_s"]
        assert row["faster"] == pytest.approx(rows["plain fp32", batch]["median_s"] / row["median_s"])
        rate = record["inference"]["matrix_product_rate"][path.split()[1]]
        work = record["inference"]["multiply_adds_per_image"][path]
        assert row["of_roofline"] == pytest.approx(row["median_s"] * rate / work / batch)
        assert row["of_plain_peak"] == (1 if path == "plain fp32" else 0.5)
        assert f"| {batch} | {path} | {row['median_s']:.3g} |" in shown
    assert 0 < rows["optimized fp32", 3]["max_error"] < 1e-4 and 0 < rows["onnxruntime fp32", 3]["max_error"] < 1e-4
    work = record["inference"]["multiply_adds_per_image"]
    assert work["onnxruntime fp32"] == work["plain fp32"]
    assert 35 < rows["optimized bf16", 3]["psnr_db"] < 90
    steps = {row["path"]: row for row in record["training"]["rows"]}
    assert (
        set(steps) == {"arranged as released", "ours", "ours, checkpointing", "ours, bf16"}
        and steps["ours"]["of_released_peak"] == 0.5
    )


@pytest.mark.slow
def test_the_paper_sized_model_has_the_known_number_of_operations():
    """65.7 GFLOP per image of 224 pixels where resizes come first, as in the released code; ours need fewer."""
    networks = inference.build_networks("ratlip", CPU)
    late = inference.multiply_adds("plain fp32", *networks)
    training_speed.resize_first(networks[0])
    first = inference.multiply_adds("plain fp32", *networks)
    assert round(2 * first / 1e9, 1) == 65.7
    assert late < first


def test_both_arrangements_are_counted_and_hold_the_tower():
    generator, tower = inference.build_networks("tiny", CPU)
    with torch.no_grad():
        plain, fast = (inference.multiply_adds(f"{kind} fp32", generator, tower) for kind in ("plain", "optimized"))
    assert plain == inference.multiply_adds("plain bf16", generator, tower)
    # By hand: what both must do at least.
    tower_only = 6 * (4 * 96**2 + 2 * 96 * 384) * 65  # layers of the tower on 64 patches and a class token
    assert tower_only < fast < plain


@pytest.mark.parametrize(
    ("path", "taken", "late"),
    [(training_speed.RELEASED, "released_step", False), (training_speed.OURS, "training_step", True)],
)
def test_only_the_baseline_resizes_first(path, taken, late, monkeypatch):
    seen, sides = [], []
    nearest = functools.partial(TrainingConfig, generator={"upsampling": "nearest"})
    monkeypatch.setattr(training_speed, "TrainingConfig", nearest)
    monkeypatch.setattr(training_speed, taken, lambda nets, *_: seen.append(nets.bare(nets.generator).blocks) or {})
    monkeypatch.setattr(training_speed, "mean_over_processes", lambda losses, _: losses)
    training_speed.stepper(path, training_speed.Training("tiny", 2, 1, CPU))()
    (blocks,) = seen
    block = blocks[-1]
    for part in (block.fuse1, block.shortcut):
        part.register_forward_pre_hook(lambda _, given: sides.append(given[0].shape[-1]))
    condition = torch.zeros(1, block.fuse1.affines[0].gamma[0].in_features)
    block(torch.zeros(1, block.conv1.conv.in_channels, 32, 32), [condition] * block.AFFINES)
    assert sides == ([32, 32] if late else [64, 64])


def test_paths_give_the_same_images():
    networks = inference.build_networks("tiny", CPU)
    given = inference.inputs_of(networks[0], 2)
    plain, *others = (
        inference.image_function(path, *networks)(*given)
        for path in ("plain fp32", "optimized fp32", "plain bf16", "optimized bf16")
    )
    exact, *halves = (inference.errors(images, plain) for images in others)
    assert exact["max_error"] < 1e-5 and all(found["psnr_db"] > 35 for found in halves)
    assert inference.errors(plain, plain) == {"max_error": 0.0}


def test_the_command_offers_every_runtime():
    assert set(benchmark._RUNTIMES) == RUNTIMES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("path", [f"{name} {precision}" for name in RUNTIMES for precision in RUNTIMES[name]])
def test_other_runtimes_give_the_same_images(path):
    if path.split()[0] not in runtimes.installed():
        pytest.skip("not installed")
    networks = inference.build_networks("tiny", CPU)
    for batch in (1, 3):
        given = inference.inputs_of(networks[0], batch)
        plain, other = (inference.image_function(name, *networks)(*given) for name in (inference.PLAIN, path))
        found = inference.errors(other, plain)
        assert found["psnr_db"] > 35 if path.endswith("bf16") else found["max_error"] < 1e-4


def test_the_step_arranged_as_released_computes_what_ours_does():
    """The same losses before the first move and after it, so that only the arrangement differs."""
    what = training_speed.Training("tiny", batch=3, steps=1, device=CPU)
    ours, released = (training_speed.stepper(path, what) for path in (training_speed.OURS, training_speed.RELEASED))
    for _ in range(2):
        expected, found = ours(), released()
        for name in ("d_loss", "g_loss"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4), name


def test_the_step_arranged_as_released_wastes_what_it_is_said_to_waste(monkeypatch):
    """Its pass over real images keeps a graph that reaches the pixels; ours does not."""
    from ratlip_hf.benchmark import training_speed
    from ratlip_hf.training import step

    seen = {}
    for module in (training_speed, step):
        reading = module.image_features_and_embeds
        monkeypatch.setattr(
            module,
            "image_features_and_embeds",
            lambda tower, images, *rest, module=module, reading=reading: (
                seen.setdefault(module, []).append(images.requires_grad),
                reading(tower, images, *rest),
            )[1],
        )
    what = training_speed.Training("tiny", batch=2, steps=1, device=CPU)
    for path in (training_speed.OURS, training_speed.RELEASED):
        training_speed.stepper(path, what)()
    assert seen == {training_speed: [True, True], step: [True]}


def test_the_diffusion_model_has_the_published_shape():
    """866 million weights in the denoiser of Stable Diffusion 2.1, 49 million in its decoder."""
    with torch.device("meta"):
        denoiser, decoder = inference.build_diffusion(torch.device("meta"), torch.float32)
    assert round(inference.parameters_of(denoiser) / 1e6) == 866
    assert round(inference.parameters_of(decoder.decoder) / 1e6) == 49


def test_memory_is_that_of_the_process_itself():
    held = torch.ones(30_000_000)  # 120 MB that a child would inherit as its own peak
    mine = measuring.peak_bytes("cpu")
    assert held.nbytes < mine
    assert measuring.in_fresh_process(measuring.peak_bytes, "cpu") < mine


@pytest.mark.slow
def test_start_up_is_measured():
    found = inference.measure_start_up(1)
    assert found["with ratlip_hf"] > 0 and found["generate"] > found["torch and diffusers"]
    assert 0 < found["image"] < found["generate"] and 0 < found["optimized image"] < found["generate"]
    assert inference.start_up_table(found).count("\n") == 5


def test_every_preset_whose_images_are_independent_can_be_measured():
    assert set(benchmark.PRESETS) == set(PRESETS) - {"ratlip-released"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch_sizes", "0"], "--batch_sizes must be at least 1"),
        (["--repetitions", "0"], "--repetitions must be at least 1"),
        (["--threads", "-1"], "--threads must be at least 1"),
        (["--training_batch", "1"], "--training_batch must be at least 2"),
        (["--preset", "ratlip-released"], "ratlip-released"),
        (["--parts", "flying"], "flying"),
        (["--device", "nonsense"], "--device nonsense is not available"),
        (["--output_file", "{tmp}"], "is a folder"),
        (["--output_file", "{tmp}/notes.txt/speed.jsonl"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_measured(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measuring, "machine", lambda device: pytest.fail("measured"))
    (tmp_path / "notes.txt").touch()
    assert main(["benchmark", *(argument.format(tmp=tmp_path) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
