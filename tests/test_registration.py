"""`import ratlip_hf` is light, and diffusers finds our classes in whatever order things are imported."""

import subprocess
import sys

import pytest

from ratlip_hf import bundled

HEAVY = ("diffusers.pipelines.pipeline_utils", "transformers.models.clip.modeling_clip", "torch")
LOADS = """
pipe = DiffusionPipeline.from_pretrained({folder!r})
assert type(pipe).__module__ == "ratlip_hf.pipeline" and type(pipe.generator).__name__ == "RATLIPGenerator", pipe
"""


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_nothing_heavy():
    run(f"import sys, ratlip_hf; print(ratlip_hf.__version__); assert not {set(HEAVY)!r} & set(sys.modules)")


@pytest.mark.parametrize(
    "imports",
    [
        "from diffusers import DiffusionPipeline; import ratlip_hf",
        # The other order is also that of a fast test in `test_pipeline_saving`.
        pytest.param("import ratlip_hf; from diffusers import DiffusionPipeline", marks=pytest.mark.slow),
        pytest.param("import ratlip_hf.models; from diffusers import DiffusionPipeline", marks=pytest.mark.slow),
        pytest.param(
            "from ratlip_hf import RATLIPPipeline; from diffusers import DiffusionPipeline", marks=pytest.mark.slow
        ),
        pytest.param("from ratlip_hf.pipeline import RATLIPPipeline as DiffusionPipeline", marks=pytest.mark.slow),
    ],
)
def test_diffusers_finds_the_pipeline(imports):
    run(imports + LOADS.format(folder=str(bundled.model_dir())))


@pytest.mark.parametrize(
    "imports", ["import ratlip_hf, diffusers", pytest.param("import diffusers, ratlip_hf", marks=pytest.mark.slow)]
)
def test_automodel_finds_the_generator(imports):
    """Alone, and where a model_index.json names this library."""
    run(f"""
{imports}
alone = diffusers.AutoModel.from_pretrained({str(bundled.model_dir() / "generator")!r})
part = diffusers.AutoModel.from_pretrained({str(bundled.model_dir())!r}, subfolder="generator")
assert type(alone) is type(part) is ratlip_hf.RATLIPGenerator
""")


def test_names_are_listed_and_others_refused():
    import ratlip_hf

    assert set(ratlip_hf.__all__) <= set(dir(ratlip_hf))
    with pytest.raises(AttributeError, match="has no attribute 'RATLIPpipeline'"):
        ratlip_hf.RATLIPpipeline  # noqa: B018
