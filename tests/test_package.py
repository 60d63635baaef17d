"""What is shipped: the wheel's content, the bundled model's size and accuracy, the original checkpoints' key maps.
The wheel is installed and used for real by `make test-wheel`."""

import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch

from ratlip_hf import RATLIPDiscriminator, RATLIPGenerator, RATLIPPipeline, bundled
from ratlip_hf.convert.layout import discriminator_key_map, from_original, generator_key_map, to_original
from ratlip_hf.evaluation.engine import Evaluation, ScoringNetworks
from ratlip_hf.evaluation.inputs import Model

ROOT = Path(__file__).parents[1]
ASSETS = bundled.model_dir().parent


def test_the_wheel_carries_everything(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("setup.py", "README.md"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("ratlip_hf/")}
    wanted = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src" / "ratlip_hf").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == wanted


EXTRAS = metadata.metadata("ratlip_hf").get_all("Provides-Extra")


@pytest.mark.slow
@pytest.mark.parametrize("extras", [*EXTRAS, ",".join(EXTRAS)])
def test_extras_resolve_with_the_constraints(extras, tmp_path):
    """Asks pip's resolver, which needs a package index, and compares what it would install."""
    constraints, report = ROOT / "constraints.txt", tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    command += ["-c", str(constraints), "--report", str(report), f"{ROOT}[{extras}]"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    chosen = {_name(each["metadata"]["name"]): each["metadata"] for each in json.loads(report.read_text())["install"]}
    asked = chosen["ratlip-hf"]["requires_dist"]
    own = {re.match(r"[\w-]+", line)[0] for line in asked if any(f'"{extra}"' in line for extra in extras.split(","))}
    assert own and {_name(name) for name in own} <= set(chosen)
    pins = dict(re.findall(r"^([\w-]+)==(.+)$", constraints.read_text(), re.MULTILINE))
    assert all(chosen[_name(name)]["version"] == pin for name, pin in pins.items() if _name(name) in chosen)


def _name(package: str) -> str:
    return package.lower().replace("_", "-")


# Only tests and scripts that skip, or say what to install, without them.
OPTIONAL = {"gradio_client", "hypothesis", "openvino", "playwright", "torch_fidelity"}


def test_every_package_that_is_imported_is_declared():
    required = re.findall(r'"([\w-]+)(?:\[\w+\])?>=', (ROOT / "setup.py").read_text())
    declared = {_name(package) for package in required} | {"tokenizers"}  # transformers' own
    files = [path for part in ("src", "tests", "examples", "benchmarks") for path in (ROOT / part).rglob("*.py")]
    own, packages = {path.stem for path in files} | {"ratlip_hf"}, metadata.packages_distributions()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in {name.split(".")[0] for name in names} - own - OPTIONAL - set(sys.stdlib_module_names):
                assert {_name(package) for package in packages.get(name, [name])} & declared, (path, name)


def test_the_bundle_is_under_20_megabytes():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*")) < 20e6


def test_the_bundled_model_follows_prompts_of_held_out_colours():
    """A sample of what `ratlip evaluate --model synthetic-birds` measures in full. Chance is 1/8
    for colours, 1/2 for the direction and 1/4 for background and perch."""
    world = bundled.find_world("synthetic-birds")
    pipe, eval_data = (
        RATLIPPipeline.from_pretrained(bundled.model_dir()),
        world.load_eval_data(world.PROTOCOL).first(120),
    )
    pipe.set_progress_bar_config(disable=True)
    judges = world.load_judges("cpu")
    assert [len(group) for group in judges] == [2, 1]
    evaluation = Evaluation(world.PROTOCOL, eval_data, ScoringNetworks({}, None, judges))
    record = evaluation.score(Model("synthetic-birds", pipe, eval_data.prompts, world.PROTOCOL))
    for name in ("attribute_accuracy", "accuracy_direction", "accuracy_background", "accuracy_perch"):
        assert record.scores[name]["value"] >= 0.9, record.scores


def test_the_bundled_discriminator_fits_the_bundled_clip():
    discriminator = RATLIPDiscriminator.from_pretrained(ASSETS / "discriminator")
    encoder = RATLIPPipeline.from_pretrained(bundled.model_dir()).image_encoder
    assert discriminator.config.clip_width == encoder.config.hidden_size
    assert discriminator.feature_scale.scale.std() > 0


@pytest.mark.parametrize("preset", ["ratlip-released", "galip"])
def test_key_maps_cover_every_tensor_and_are_reversible(preset):
    generator = RATLIPGenerator.from_preset(preset, base_channels=16, clip_width=32, text_dim=8, lstm_hidden=4)
    key_map = generator_key_map(generator)
    original = to_original(key_map, generator.state_dict())
    assert len(original) == len(generator.state_dict())
    back = from_original(key_map, original, generator.state_dict())
    assert all(torch.equal(back[name], value) for name, value in generator.state_dict().items())

    names = discriminator_key_map(RATLIPDiscriminator.from_preset(preset, clip_width=32, text_dim=8))
    assert {"netC.joint_conv.0.weight", "netC.joint_conv.2.weight"} == {
        name for name in names.values() if name.startswith("netC")
    }
    assert {"netD.DBlocks.1.conv_r.2.weight", "netD.main.conv_s.bias"} <= set(names.values())


def test_recurrence_across_layers_has_no_original_names():
    generator = RATLIPGenerator.from_preset("ratlip", base_channels=16, clip_width=32, text_dim=8, lstm_hidden=4)
    with pytest.raises(ValueError, match="original"):
        generator_key_map(generator)
