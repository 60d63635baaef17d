"""The trainer's configuration: files, options, shipped examples, and mistakes in one line.
What surroundings and data refuse is in `test_preflight`."""

import json
from pathlib import Path

import pytest

from ratlip_hf.training.__main__ import main
from ratlip_hf.training.config import load_config
from ratlip_hf.utils.errors import UserError


def test_options_override_the_file_which_overrides_the_defaults(tmp_path):
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"dataset_name": "synthetic-birds", "seed": 3, "train_batch_size": 8}))
    config = load_config(
        ["--config", str(file), "--seed", "5", "--max_train_samples", "none", "--random_flip", "false"]
    )
    assert (config.seed, config.train_batch_size, config.max_train_images) == (5, 8, 1_000_000)
    assert config.max_train_samples is None
    assert config.random_flip is False


def test_the_resolved_configuration_reads_back(config, tmp_path):
    (tmp_path / "again.json").write_text(config.to_json())
    assert load_config(["--config", str(tmp_path / "again.json")]) == config


EXAMPLES = Path(__file__).parents[1] / "examples" / "configs"


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("birds", "ratlip"),
        ("flowers", "ratlip"),
        ("faces", "ratlip"),
        ("galip_birds", "galip"),
        ("ratlip_released_birds", "ratlip-released"),
        ("synthetic_birds", "tiny"),
        ("smoke", "tiny"),
    ],
)
def test_shipped_configurations_are_found_by_name_and_as_files(name, preset):
    config = load_config(["--config", name])
    assert config == load_config(["--config", str(EXAMPLES / f"{name}.json")])
    assert config.preset == preset
    if preset != "tiny":  # the paper's hyper-parameters (docs/method.md, section 6)
        lrs = (config.generator_learning_rate, config.discriminator_learning_rate)
        penalty = (config.penalty_weight, config.penalty_power, config.clip_loss_weight)
        assert (lrs, penalty) == ((1e-4, 4e-4), (2, 6, 4))
        assert (config.adam_beta1, config.adam_beta2, config.range_weight) == (0.0, 0.9, 0.0)


def test_flags_stand_alone_and_whole_numbers_may_be_fractions():
    options = ["--dataset_name", "a", "--gradient_checkpointing", "--random_flip", "false", "--adam_beta1", "0"]
    config = load_config([*options, "--max_grad_norm", "1"])
    assert config.gradient_checkpointing is True and config.random_flip is False
    assert type(config.adam_beta1) is float and type(config.max_grad_norm) is float


def test_precision_is_accelerates_unless_it_is_given(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert load_config(["--config", "smoke"]).mixed_precision == "bf16"
    assert load_config(["--config", "smoke", "--mixed_precision", "no"]).mixed_precision == "no"
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    assert load_config(["--config", "smoke"]).mixed_precision == "no"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "dataset_name"),
        (["--dataset_name", "a", "--train_data_dir", "b"], "dataset_name"),
        (["--config", "nowhere.json"], "cannot read"),
        (["--dataset_name", "a", "--train_batch_size", "0"], "train_batch_size must be at least 1"),
        (["--dataset_name", "a", "--train_batch_size", "many"], "must be int"),
        (["--dataset_name", "a", "--generator", "[1]"], "must be dict"),
        (["--dataset_name", "a", "--preset", "large"], "preset"),
        (["--dataset_name", "a", "--mixed_precision", "fp8"], "mixed_precision"),
        (["--dataset_name", "a", "--learning_rate", "1"], "unrecognized"),
        (["--dataset_name", "a", "--ema_decay", "1.5"], "ema_decay"),
        (["--dataset_name", "a", "--penalty_weight", "NaN"], "penalty_weight must be finite"),
        (["--dataset_name", "a", "--augmentation", "color,blur"], "not 'blur'"),
        (["--dataset_name", "a", "--report_to", "paper"], "report_to must be one of"),
        (["--dataset_name", "a", "--max_grad_norm", "0"], "max_grad_norm must be positive"),
        (["--dataset_name", "a", "--gradient_accumulation_steps", "0"], "gradient_accumulation_steps"),
        (["--dataset_name", "a", "--dataloader_num_workers", "-1"], "dataloader_num_workers must be at least 0"),
        (
            ["--dataset_name", "a", "--pretrained_model_name_or_path", "b", "--generator", '{"sample_size": 64}'],
            "as they are",
        ),
        (["--config", "smoke", "--generator", '{"sample_sizes": 64}'], "no option 'sample_sizes'"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("text", "message"), [('{"sead": 1}', "unknown key 'sead'"), ("{", "valid JSON"), ("[]", "object")]
)
def test_bad_files_are_refused(text, message, tmp_path):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(["--config", str(tmp_path / "bad.json")])
