"""`ratlip evaluate` as a user types it: records, comparisons, shares of several processes, and mistakes."""

import json

import pytest

from ratlip_hf import bundled
from ratlip_hf.cli.main import main
from ratlip_hf.evaluation.records import read_records
from ratlip_hf.synthetic_birds.dataset import make_dataset
from several_processes import run_together

COUNT = 12


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("birds")
    make_dataset("test", COUNT).to_parquet(folder / "test-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture
def saved(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def evaluate(*arguments) -> int:
    return main(["evaluate", *map(str, arguments)])


def test_a_record_a_folder_and_their_comparison(saved, birds, clip_dir, tmp_path, capsys):
    where = ["--protocol", "clip", "--data", birds, "--eval_clip", bundled.model_dir(), "--max_images", 24]
    model, files = tmp_path / "model.jsonl", tmp_path / "files.jsonl"
    assert evaluate("--model", saved, *where, "--output_file", model) == 0
    assert "protocol clip: 24 images against 12 real ones" in capsys.readouterr().out
    prompts = tmp_path / "prompts.jsonl"
    assert evaluate("--write_prompts", prompts, *where) == 0

    entries = [json.loads(line) for line in prompts.read_text().splitlines()]
    assert [entry["file"] for entry in entries] == [f"{index:06d}.png" for index in range(24)]
    texts = tmp_path / "prompts.txt"
    texts.write_text("\n".join(entry["prompt"] for entry in entries))
    images = tmp_path / "images"
    assert main(["generate", "--model", saved, "--prompts_file", str(texts), "--output_dir", str(images)]) == 0
    assert evaluate("--images_dir", images, *where, "--output_file", files) == 0

    capsys.readouterr()
    assert evaluate("--compare", model, files) == 0
    shown = capsys.readouterr().out
    assert "cmmd" in shown and "clip_score" in shown and "below 2048" in shown
    first, second = (read_records(path)[0] for path in (model, files))
    assert first.scores["clip_score"]["value"] == pytest.approx(second.scores["clip_score"]["value"], abs=1e-3)
    assert first.candidate["weights_sha256"] and second.candidate == {"images": str(images)}
    assert first.protocol["num_fake"] == 24 and first.protocol["eval_clip_sha256"]

    assert evaluate("--images_dir", images, *where[:-1], 20, "--output_file", files) == 0
    assert evaluate("--compare", model, files) == 2
    assert "num_fake (24 against 20)" in capsys.readouterr().err


def evaluate_together(processes: int, *arguments) -> str:
    return run_together(processes, "module", "ratlip_hf.cli.main", "evaluate", *arguments)


def same_scores(first, second):
    assert first.protocol == second.protocol and first.scores.keys() == second.scores.keys()
    for name, score in first.scores.items():
        assert score == pytest.approx(second.scores[name], rel=1e-6, abs=1e-6), name


@pytest.mark.slow
def test_two_processes_score_as_one(saved, birds, tmp_path):
    where = [
        "--model",
        saved,
        "--protocol",
        "clip",
        "--data",
        birds,
        "--eval_clip",
        bundled.model_dir(),
        "--device",
        "cpu",
    ]
    assert evaluate(*where, "--output_file", tmp_path / "one.jsonl") == 0
    shown = evaluate_together(2, *where, "--output_file", tmp_path / "two.jsonl")
    assert shown.count("protocol clip") == 1
    (one,), (two,) = read_records(tmp_path / "one.jsonl"), read_records(tmp_path / "two.jsonl")
    same_scores(one, two)


@pytest.mark.slow
def test_two_processes_score_the_bundled_model_as_one(tmp_path):
    for processes in (1, 2):
        evaluate_together(processes, "--max_images", "250", "--output_file", tmp_path / f"{processes}.jsonl")
    (one,), (two,) = (read_records(tmp_path / f"{processes}.jsonl") for processes in (1, 2))
    same_scores(one, two)
    assert {"attribute_accuracy", "fid_judge", "kid_judge", "clip_score", "cmmd", "diversity"} - one.scores.keys() == {
        "diversity"  # one image of each prompt so far
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "nonsense"], "--protocol must be one of synthetic-birds, standard"),
        (["--protocol", "standard"], "do not go together"),
        (["--protocol", "standard", "--data", "{birds}"], "--inception"),
        (["--protocol", "standard", "--data", "{birds}", "--inception", "nowhere.pth"], "nowhere.pth is no file"),
        (["--protocol", "clip", "--data", "{tmp}"], "cannot load the data"),
        (["--protocol", "clip", "--data", "{birds}", "--split", "validation"], "cannot load the data"),
        (["--protocol", "clip", "--data", "{birds}", "--model", "real-renders"], "--protocol synthetic-birds only"),
        (["--images_dir", "{tmp}/nothing"], "is no folder"),
        (["--images_dir", "{tmp}"], "holds no images"),
        (["--model", "{tmp}"], "no model_index.json"),
        (["--model", "x", "--images_dir", "y"], "not allowed with"),
        (["--eval_clip", "{tmp}"], "no CLIP could be loaded"),
        (["--max_images", "0"], "--max_images must lie in 1.."),
        (["--batch_size", "0"], "--batch_size must lie in 1.."),
        (["--seed", "-1"], "--seed"),
        (["--seed", str(2**62)], "--seed"),
        (["--output_file", "{tmp}"], "is a folder"),
        (["--dtype", "int8"], "--dtype"),
        (["--compare", "{tmp}/a.jsonl", "{tmp}/b.jsonl"], "a.jsonl"),
    ],
)
def test_mistakes_are_one_line(arguments, message, birds, tmp_path, capsys):
    places = {"tmp": tmp_path, "birds": birds}
    assert evaluate(*(argument.format(**places) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
