"""`import ratlip_hf` is light, and diffusers finds our classes in whatever order things are imported."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import ratlip_hf
from ratlip_hf import bundled

HEAVY = ("diffusers.pipelines.pipeline_utils", "transformers.models.clip.modeling_clip", "torch")


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_nothing_heavy():
    run(f"import sys, ratlip_hf; print(ratlip_hf.__version__); assert not {set(HEAVY)!r} & set(sys.modules)")


# Orders of imports, and what is found after them.
BY_DIFFUSERS = """
pipe = DiffusionPipeline.from_pretrained({folder!r})
assert type(pipe).__module__ == "ratlip_hf.pipeline" and type(pipe.generator).__name__ == "RATLIPGenerator", pipe
"""
BY_AUTOMODEL = """
alone = diffusers.AutoModel.from_pretrained({folder!r} + "/generator")
part = diffusers.AutoModel.from_pretrained({folder!r}, subfolder="generator")
assert type(alone) is type(part) is ratlip_hf.RATLIPGenerator
"""
BY_AUTOPIPELINE = """
pipe = AutoPipelineForText2Image.from_pretrained({folder!r})
assert type(pipe) is ratlip_hf.RATLIPPipeline and len(pipe("a red bird").images) == 1, pipe
assert type(AutoPipelineForText2Image.from_pipe(pipe)) is ratlip_hf.RATLIPPipeline
"""
IMAGES = """
def generate(cls):
    random = torch.Generator().manual_seed(0)
    return cls.from_pretrained({folder!r})("a red bird", generator=random, output_type="np").images

np.savez({out!r}, base=generate(DiffusionPipeline), own=generate(ratlip_hf.RATLIPPipeline))
import ratlip_hf.model_card  # what pushing needs besides
loaded = {{name.split(".")[1] for name in sys.modules if name.startswith("ratlip_hf.")}}
assert not loaded & {{"training", "cli"}}, loaded
"""


def run_each(*cases: str, **values: str) -> None:
    """Each in a process of its own, which knows torch and transformers already: their import takes the time."""
    folder = str(bundled.model_dir())
    code = "import os, sys, numpy as np, torch, transformers.models.clip.modeling_clip\n"
    code += "assert not {'diffusers', 'ratlip_hf'} & sys.modules.keys()\n"
    code += f"for case in {[case.format(folder=folder, **values) for case in cases]!r}:\n"
    code += "    if os.fork() == 0: exec(case); sys.exit()\n"
    run(code + "    assert os.wait()[1] == 0, case\n")


@pytest.mark.slow
def test_diffusers_finds_the_classes_in_either_order_of_imports(tmp_path):
    """AutoModel also alone; and nothing of training is imported for images and cards."""
    out = tmp_path / "images.npz"
    run_each(
        "import ratlip_hf; from diffusers import DiffusionPipeline" + IMAGES,
        "from diffusers import DiffusionPipeline; import ratlip_hf" + BY_DIFFUSERS,
        "import ratlip_hf, diffusers" + BY_AUTOMODEL,
        out=str(out),
    )
    pipe = ratlip_hf.RATLIPPipeline.from_pretrained(bundled.model_dir())
    expected = pipe("a red bird", generator=torch.Generator().manual_seed(0), output_type="np").images
    for images in np.load(out).values():
        assert np.allclose(images, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_diffusers_finds_the_classes_after_parts_of_the_package():
    run_each(
        "import ratlip_hf; from diffusers import DiffusionPipeline" + BY_DIFFUSERS,
        "import ratlip_hf.models; from diffusers import DiffusionPipeline" + BY_DIFFUSERS,
        "from ratlip_hf import RATLIPPipeline; from diffusers import DiffusionPipeline" + BY_DIFFUSERS,
        "from ratlip_hf.pipeline import RATLIPPipeline as DiffusionPipeline" + BY_DIFFUSERS,
        "import diffusers, ratlip_hf" + BY_AUTOMODEL,
        "from diffusers import AutoPipelineForText2Image; import ratlip_hf" + BY_AUTOPIPELINE,
        "import ratlip_hf; from diffusers import AutoPipelineForText2Image" + BY_AUTOPIPELINE,
    )


def test_names_are_listed_and_others_refused():
    assert set(ratlip_hf.__all__) <= set(dir(ratlip_hf))
    with pytest.raises(AttributeError, match="has no attribute 'RATLIPpipeline'"):
        ratlip_hf.RATLIPpipeline  # noqa: B018
