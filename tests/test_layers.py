"""The house keeps its order: imports point one way, no two modules share a name, files and functions stay readable."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import ratlip_hf

ROOT = Path(ratlip_hf.__file__).parent
# Lowest first; members of one row do not import each other. A module at the top level counts as a package.
LAYERS = (
    ("version", "registration"),
    ("utils",),
    ("bundled", "losses"),
    ("clip",),
    ("models",),
    ("metrics", "data"),
    ("fast", "model_card"),
    ("pipeline",),
    ("training", "evaluation", "convert", "export"),
    ("synthetic_birds", "evaluate_modules"),
    ("study", "benchmark"),
    ("cli",),
)
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}
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


def imported(name: str, path: Path) -> set[str]:
    """Modules of the package that importing this one imports: statements outside of functions and TYPE_CHECKING."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    package = [part for part in package if part]
    found, waiting = set(), list(ast.parse(path.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            found |= {".".join([*base, alias.name]) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ratlip_hf"):
            found.add(node.module.removeprefix("ratlip_hf").removeprefix("."))
        waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return found


def test_every_package_has_a_layer():
    assert {name.split(".")[0] for name in modules()} - {""} == RANK.keys()


def test_no_package_imports_upward():
    upward = []
    for name, path in modules().items():
        here = name.split(".")[0]
        for target in imported(name, path):
            there = target.split(".")[0]
            if here and there in RANK and there != here and RANK[there] >= RANK[here]:
                upward.append(f"{name} imports {target}")
    assert not upward


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
