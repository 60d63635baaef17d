"""The house keeps its order: imports point one way, no two modules share a name, files and functions stay readable."""

import ast
import functools
import subprocess
import sys
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ratlip_hf

ROOT = Path(ratlip_hf.__file__).parent
# Lowest first; members of one row do not import each other. A module at the top level counts as a package.
LAYERS = (
    ("version", "registration"),
    ("utils",),
    ("bundled", "losses", "model_card"),
    ("clip",),
    ("models",),
    ("metrics", "data"),
    ("fast", "latents", "inversion", "explain"),
    ("pipeline",),
    ("training", "evaluation", "convert", "export"),
    ("synthetic_birds", "evaluate_modules"),
    ("study", "benchmark", "web"),
    ("app",),
    ("cli",),
)
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}
# What the package itself offers comes from here.
PUBLIC = {
    "RATLIPPipeline": "pipeline",
    "RATLIPGenerator": "models",
    "RATLIPDiscriminator": "models",
    "__version__": "version",
}
LONGEST_FILE = 500
LONGEST_FUNCTION = 55  # lines without its docstring: a screen
HEAVY = {"torch", "transformers", "diffusers", "datasets", "accelerate"}


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


# Imported when the method runs: the pipeline lies below what converts to it.
LAZY_UPWARD = {("pipeline", "convert")}


@functools.cache
def imported(name: str, path: Path) -> set[tuple[str, bool]]:
    """(module of the package, whether inside a function) that this one imports; nothing for TYPE_CHECKING alone."""
    package = [part for part in (name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]) if part]
    found, waiting = set(), [(ast.parse(path.read_text()), False)]
    while waiting:
        node, lazy = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += [(child, lazy) for child in node.orelse]
            continue
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
            found |= {(".".join(parts[1:]), lazy) for parts in targets if parts[0] == "ratlip_hf"}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            if node.level or base[:1] == ["ratlip_hf"]:
                base = base if node.level else base[1:]
                found |= {(".".join([*base, alias.name]), lazy) for alias in node.names}
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        waiting += [(child, lazy) for child in ast.iter_child_nodes(node)]
    return found


def upward(name: str, targets: set[tuple[str, bool]]) -> list[str]:
    """The imports of module `name` that do not lead to a lower layer, or to its own package."""
    here, wrong = name.split(".")[0], []
    for target, lazy in targets:
        there = PUBLIC.get(target, target.split(".")[0])
        allowed = there == here or RANK[there] < RANK[here] or (lazy and (here, there) in LAZY_UPWARD)
        wrong += [] if allowed else [f"{name} imports {target or 'the package'}"]
    return wrong


def test_every_package_has_a_layer():
    assert {name.split(".")[0] for name in modules()} - {""} == RANK.keys()


def test_no_package_imports_upward():
    assert not [line for name, path in modules().items() if name for line in upward(name, imported(name, path))]


@pytest.mark.parametrize(
    "statement",
    [
        "import ratlip_hf.pipeline",
        "from ratlip_hf import pipeline",
        "from .. import RATLIPPipeline",
        "from ..training.step import generate",
        "class Late:\n    from .. import cli",
        "try:\n    pass\nexcept ImportError:\n    from .. import cli",
        "def late():\n    from ..training import step",
    ],
)
def test_an_import_upward_is_noticed(statement, tmp_path):
    (tmp_path / "blocks.py").write_text(statement)
    assert upward("models.blocks", imported("models.blocks", tmp_path / "blocks.py"))


def test_no_modules_import_each_other_in_a_circle():
    known = modules()
    graph = {
        name: {target for target, lazy in imported(name, path) if not lazy and name} for name, path in known.items()
    }
    # A name that is no module is something defined in one.
    graph = {
        name: {target if target in known else target.rpartition(".")[0] for target in targets} - {name, ""}
        for name, targets in graph.items()
    }
    graph = {name: targets - {name.rpartition(".")[0]} for name, targets in graph.items()}  # its own package's face
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_no_two_modules_have_one_name():
    places = defaultdict(list)
    for name, path in modules().items():
        # A subcommand is called like the package that it serves; `evaluate` wants a file called like its folder.
        if path.stem not in ("__init__", "__main__") and name.split(".")[0] not in ("cli", "evaluate_modules"):
            places[path.stem].append(name)
    assert not {stem: names for stem, names in places.items() if len(names) > 1}


@pytest.mark.parametrize("name", modules(), ids=lambda name: name or "ratlip_hf")
def test_files_and_functions_are_short(name):
    text = modules()[name].read_text()
    assert text.count("\n") <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            assert node.end_lineno - first.lineno < LONGEST_FUNCTION, node.name


def test_help_needs_no_heavy_library():
    code = "import sys\nfrom ratlip_hf.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += f"assert not {HEAVY!r} & set(sys.modules), sorted({HEAVY!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "benchmark" in done.stdout


def test_an_unknown_subcommand_is_one_line():
    from ratlip_hf.cli.main import main

    assert main(["paint"]) == 2
    assert main([]) == 2
