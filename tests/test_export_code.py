"""The code that `ratlip export hub --with_code` ships: word for word that of the package, complete, and nothing else.
Whether it generates the same images is seen in `test_export_hub`."""

import ast
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ratlip_hf.export.repository import CODE, code_files
from ratlip_hf.export.single_file import PACKAGE, Import, Sources, self_contained

THERE = {"torch", "diffusers", "transformers", "safetensors", "huggingface_hub"} | sys.stdlib_module_names


@pytest.fixture(scope="module")
def code() -> dict[str, str]:
    return code_files()


def definitions(text: str) -> dict[str, ast.stmt]:
    """Classes, functions and assigned constants at the top level."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node
    return found


def test_every_definition_is_the_packages_own(code):
    own = {}
    for path in PACKAGE.rglob("*.py"):
        for name, node in definitions(path.read_text()).items():
            own.setdefault(name, []).append(node)
    for text in code.values():
        for name, node in definitions(text).items():
            assert any(is_part_of(node, original) for original in own[name]), name


def is_part_of(node: ast.stmt, original: ast.stmt) -> bool:
    """Equal; of a class, methods may be left out."""
    if not isinstance(node, ast.ClassDef):
        return ast.dump(node) == ast.dump(original)
    parts = {ast.dump(part) for part in original.body}
    heads = [[ast.dump(item) for item in [*cls.bases, *cls.decorator_list]] for cls in (node, original)]
    return heads[0] == heads[1] and all(ast.dump(part) in parts for part in node.body)


def test_only_these_methods_are_left_out(code):
    pipeline, generator = (definitions(code[path]) for path in CODE)
    package = {name: definitions((PACKAGE / name).read_text()) for name in ("pipeline.py", "models/base.py")}
    for shipped, original, left_out in (
        (
            pipeline["RATLIPPipeline"],
            package["pipeline.py"]["RATLIPPipeline"],
            {"from_clip", "from_single_file", "from_pretrained", "_dict_from_json_file", "optimize"},
        ),
        (generator["RATLIPModel"], package["models/base.py"]["RATLIPModel"], {"from_preset"}),
        (generator["StrictModel"], package["models/base.py"]["StrictModel"], {"of_pipeline", "_upload_folder"}),
    ):
        methods = [
            {part.name for part in cls.body if isinstance(part, ast.FunctionDef)} for cls in (shipped, original)
        ]
        assert methods[1] - methods[0] == left_out


def test_nothing_is_imported_but_what_diffusers_brings(code):
    for text in code.values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0 and node.module.split(".")[0] in THERE, node.module
            elif isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= THERE


def test_no_name_is_missing_none_is_idle_and_the_form_is_ours(code, tmp_path):
    for path, text in code.items():
        (tmp_path / Path(path).name).write_text(text)
    ruff = [sys.executable, "-m", "ruff"]
    options = ["--isolated", "--no-cache", "--line-length", "119", str(tmp_path)]
    for command in (["check", "--select", "E,F", *options], ["format", "--check", *options]):
        done = subprocess.run([*ruff, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_network_is_in_its_own_file_only(code):
    pipeline, generator = (definitions(code[path]) for path in CODE)
    assert "RATLIPGenerator" in generator and "RATLIPGenerator" not in pipeline


def test_it_has_one_pipeline_class(code):
    """diffusers refuses a file with several when it is named as `custom_pipeline=`."""
    names = [node.name for node in ast.parse(code[CODE[0]]).body if isinstance(node, ast.ClassDef)]
    assert [name for name in names if name.endswith("Pipeline")] == ["RATLIPPipeline"]


def test_it_follows_the_sources(tmp_path):
    package = tmp_path / "package"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    path = package / "models" / "blocks.py"
    path.write_text(path.read_text().replace("eps=1e-5", "eps=1e-3"))
    texts = [
        self_contained("models.generator", "RATLIPGenerator", sources=Sources(root)) for root in (PACKAGE, package)
    ]
    assert texts[0] != texts[1] and texts[0] == texts[1].replace("eps=1e-3", "eps=1e-5")


def test_it_does_not_depend_on_the_order_of_sets(code, run_python, tmp_path):
    script = """
        import sys
        from pathlib import Path
        from ratlip_hf.export.single_file import self_contained
        Path(sys.argv[1]).write_text(self_contained("models.generator", "RATLIPGenerator"))
    """
    texts = []
    for seed in ("1", "2"):
        run_python(textwrap.dedent(script), tmp_path / seed, env={**os.environ, "PYTHONHASHSEED": seed})
        texts.append((tmp_path / seed).read_text())
    assert texts[0] == texts[1]


# Packages that do not go into one file


@pytest.fixture
def write_package(tmp_path):
    """Makes a package of given modules."""

    def write(**modules: str) -> Sources:
        for name, text in {"__init__": "", **modules}.items():
            path = tmp_path / f"{name.replace('__', '/') if name != '__init__' else name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return Sources(tmp_path)

    return write


def test_comments_decorators_and_changes_come_along(write_package):
    sources = write_package(
        a="""
import functools
import math as m

from .b import BASE as BASE
from .b import unused

# Why this is so.
LIMITS = {"x": m.pi}
LIMITS |= {"y": BASE}


class Thing:
    def skipped(self):
        return unused()

    # Said of the method.
    @functools.cache
    def kept(self):
        return LIMITS  # said of the line
""",
        b="BASE = 2\n\n\ndef unused():\n    return 1\n",
    )
    text = self_contained("a", "Thing", left_out={"Thing": ["skipped"]}, sources=sources)
    assert text.index("BASE = 2") < text.index("# Why this is so.") < text.index("LIMITS |=") < text.index("class")
    assert "# Said of the method.\n    @functools.cache" in text and "# said of the line" in text
    assert "skipped" not in text.split('"""')[2] and "unused" not in text
    scope = {}
    exec(text, scope)
    assert scope["Thing"]().kept() == {"x": pytest.approx(3.14159, abs=1e-4), "y": 2}


@pytest.mark.parametrize(
    ("modules", "options", "message"),
    [
        (
            {"a": "from .b import f\ndef g(): pass\nclass T:\n    x = f, g\n", "b": "def g(): pass\ndef f(): g()\n"},
            {},
            "two things are called g",
        ),
        (
            {
                "a": "from json import load\nfrom .b import f\nclass T:\n    x = f, load\n",
                "b": "def load(): pass\ndef f(): load()\n",
            },
            {},
            "two things are called load",
        ),
        ({"a": "from . import b\nclass T:\n    x = b.y\n", "b": "y = 1\n"}, {}, "imports b as a module"),
        ({"a": "from .b import y as z\nclass T:\n    x = z\n", "b": "y = 1\n"}, {}, "imports z .* another name"),
        ({"a": "class T:\n    pass\n"}, {"left_out": {"T": ["gone"]}}, r"no T\.gone"),
    ],
)
def test_what_cannot_be_put_together_is_refused(write_package, modules, options, message):
    with pytest.raises(ValueError, match=message):
        self_contained("a", "T", sources=write_package(**modules), **options)


def test_a_stand_in_takes_the_place_of_a_definition(write_package):
    sources = write_package(a="from .b import Big\nclass T:\n    x: Big\n", b="class Big: pass\n")
    text = self_contained("a", "T", stand_ins={"Big": Import("numbers", "Number", inside=False)}, sources=sources)
    assert "from numbers import Number as Big" in text and "class Big" not in text
