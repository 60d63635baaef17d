"""What is shipped: the wheel's content, the bundled model's size and accuracy, the original checkpoints' key maps.
The wheel is installed and used for real by `make test-wheel`."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from ratlip_hf import RATLIPDiscriminator, RATLIPGenerator, RATLIPPipeline, bundled
from ratlip_hf.convert.layout import discriminator_key_map, from_original, generator_key_map, to_original
from ratlip_hf.synthetic_birds.alignment import measure_alignment
from ratlip_hf.synthetic_birds.attributes import FIELD_VOCABULARIES
from ratlip_hf.synthetic_birds.captions import named_scene
from ratlip_hf.synthetic_birds.dataset import load_heldout_prompts, prompt_bird
from ratlip_hf.synthetic_birds.judge import BirdJudge

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


def test_the_bundle_is_under_20_megabytes():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*")) < 20e6


def test_the_bundled_model_paints_held_out_colours_where_the_prompt_wants_them():
    """A sample of what `make accuracy` measures in full."""
    pipe = RATLIPPipeline.from_pretrained(bundled.model_dir())

    def generate(prompts, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe(prompts, generator=generators, output_type="pt").images * 2 - 1

    judges = [BirdJudge.from_pretrained(folder) for folder in bundled.judge_dirs()]
    assert len(judges) == 2
    result = measure_alignment(generate, judges, load_heldout_prompts()[:80], noise_seeds=[0])
    assert result["mean"] >= 0.90, result
    assert result["real_renders"]["mean"] > 0.97, result


def test_the_bundled_model_follows_the_scene_where_the_prompt_names_it():
    """As the judge of scenes reads it; chance is 0.5 for the direction and 0.25 for the others."""
    pipe, judge = (
        RATLIPPipeline.from_pretrained(bundled.model_dir()),
        BirdJudge.from_pretrained(bundled.scene_judge_dir()),
    )
    prompts = load_heldout_prompts()[:120]
    seeds = [torch.Generator().manual_seed(index) for index in range(len(prompts))]
    images = pipe([prompt["prompt"] for prompt in prompts], generator=seeds, output_type="pt").images * 2 - 1
    hits = {"direction": [], "background": [], "perch": []}
    for prompt, words in zip(prompts, judge.read(images).tolist(), strict=True):
        bird = prompt_bird(prompt)
        for name in named_scene(prompt["prompt"], bird):
            found = words[judge.config.reads.index(name)]
            hits[name].append(FIELD_VOCABULARIES[name][found] == getattr(bird, name))
    for name, right in hits.items():
        assert len(right) > 20 and sum(right) / len(right) >= 0.9, name


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
    assert {"joint_conv.0.weight", "joint_conv.2.weight"} == {name for net, name in names.values() if net == "netC"}
    assert ("netD", "DBlocks.1.conv_r.2.weight") in names.values() and ("netD", "main.conv_s.bias") in names.values()


def test_recurrence_across_layers_has_no_original_names():
    generator = RATLIPGenerator.from_preset("ratlip", base_channels=16, clip_width=32, text_dim=8, lstm_hidden=4)
    with pytest.raises(ValueError, match="original"):
        generator_key_map(generator)
