"""One self-contained Python file out of the package's own sources: a class with every definition that it uses.

Definitions are found in the syntax trees and copied word for word; `repository` says which classes are shipped.
"""

import ast
import sys
import textwrap
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path

from ..version import __version__

PACKAGE = Path(__file__).parents[1]
_LINE = 119
_HEADER = '''\
"""`{name}` of ratlip_hf {version} in one file, for places where that package is not installed.

{origin}
"""

# SPDX-License-Identifier: Apache-2.0
# Part of ratlip_hf {version}, licensed under the Apache License, Version 2.0, http://www.apache.org/licenses/LICENSE-2.0.
# Distributed "AS IS", without warranties or conditions of any kind. Changes belong into the package's own sources.
'''


@dataclass(frozen=True)
class Import:
    """What a name was imported from: `name` of `module`, or all of `module`; inside the package or outside."""

    module: str
    name: str | None
    inside: bool


@dataclass
class Module:
    """One source file: its lines, and what each name at its top level stands for."""

    lines: list[str]
    definitions: dict[str, list[ast.stmt]] = field(default_factory=lambda: defaultdict(list))
    imports: dict[str, Import] = field(default_factory=dict)


class Sources:
    """The modules of a package by their dotted names relative to it; "" is the package itself."""

    def __init__(self, package: Path = PACKAGE):
        self._package = package
        self._modules: dict[str, Module] = {}

    def module(self, name: str) -> Module:
        """A module, read at the first call."""
        if name not in self._modules:
            self._modules[name] = self._read(name)
        return self._modules[name]

    def find(self, module: str, name: str) -> tuple[str, str] | Import | None:
        """What `name` stands for in `module`: a definition (module, name), an import from outside, or neither.

        Raises ValueError for a module of the package that is imported as a whole.
        """
        source = self.module(module)
        if name in source.definitions:
            return module, name
        found = source.imports.get(name)
        if found is None or not found.inside:
            return found
        target = found.name and self.find(found.module, found.name)
        if not target or target[1] != name:
            raise ValueError(f"{module} imports {name} as a module or under another name, which cannot be followed")
        return target

    def _read(self, name: str) -> Module:
        path = self._package / name.replace(".", "/")
        path, parent = (path / "__init__.py", name) if path.is_dir() else (path.with_suffix(".py"), _parent(name))
        text = path.read_text(encoding="utf-8")
        module = Module(text.splitlines())
        for node in ast.parse(text).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                module.imports.update(_imports(node, parent))
            for defined in _defined(node):
                module.definitions[defined].append(node)
        return module


def self_contained(
    module: str,
    name: str,
    left_out: Mapping[str, Collection[str]] | None = None,
    stand_ins: Mapping[str, Import] | None = None,
    sources: Sources | None = None,
) -> str:
    """Source of a file that defines class `name` of `module` ("models.generator"), with what it uses of the package.

    Methods `left_out` (by class) are not taken; `stand_ins` are imports in the place of definitions of the package.
    Raises ValueError for sources that do not go into one file, such as two definitions of one name.
    """
    bundle = _Bundle(sources or Sources(), left_out or {}, stand_ins or {})
    bundle.take(module, name)
    return bundle.text(name)


class _Bundle:
    """The definitions taken so far, the imports they need, and which module needs which."""

    def __init__(self, sources: Sources, left_out: Mapping[str, Collection[str]], stand_ins: Mapping[str, Import]):
        self.sources, self.left_out, self.stand_ins = sources, left_out, stand_ins
        self.taken: dict[str, str] = {}  # name -> module
        self.imports: dict[str, Import] = {}
        self.needs: dict[str, set[str]] = {}

    def take(self, module: str, name: str) -> None:
        """Take a definition and everything that it uses."""
        if self._bind(self.taken, name, module):
            return
        self.needs.setdefault(module, set())
        for node in self.sources.module(module).definitions[name]:
            for used in _names(node, self.left_out.get(name, ())):
                if used in self.stand_ins:
                    self._bind(self.imports, used, self.stand_ins[used])
                    continue
                found = self.sources.find(module, used)
                if isinstance(found, Import):
                    self._bind(self.imports, used, found)
                elif found is not None:
                    self.needs[module] |= {found[0]} - {module}
                    self.take(*found)

    def _bind(self, names: dict, name: str, value: str | Import) -> bool:
        """Let `name` stand for `value` in the file; True if it does already."""
        known = self.taken.get(name) or self.imports.get(name)
        if known not in (None, value):
            raise ValueError(f"two things are called {name}: {known} and {value}; one must be renamed")
        names[name] = value
        return known is not None

    def text(self, name: str) -> str:
        """The file."""
        needs = {module: sorted(needed) for module, needed in self.needs.items()}  # the same order every time
        order = list(TopologicalSorter(needs).static_order())
        origin = "Generated from " + ", ".join(f"{module.replace('.', '/')}.py" for module in reversed(order))
        if left_out := [f"{cls}.{method}" for cls, methods in self.left_out.items() for method in methods]:
            origin += f"; without {', '.join(left_out)}"
        header = _HEADER.format(name=name, version=__version__, origin=textwrap.fill(f"{origin}.", _LINE))
        parts = [header, _import_lines(self.imports)]
        for module in order:
            parts += self._segments(module)
        return "\n".join(parts)

    def _segments(self, module: str) -> Iterator[str]:
        source = self.sources.module(module)
        nodes = [
            (node, name) for name, home in self.taken.items() if home == module for node in source.definitions[name]
        ]
        after_block = True
        for node, name in sorted(nodes, key=lambda item: item[0].lineno):
            is_block = isinstance(node, ast.ClassDef | ast.FunctionDef)
            segment = _segment(source.lines, node, self.left_out.get(name, ()))
            yield f"\n{segment}" if is_block or after_block else segment
            after_block = is_block


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _imports(node: ast.Import | ast.ImportFrom, parent: str) -> Iterator[tuple[str, Import]]:
    """Names bound by an import statement of a module in package `parent`."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            # `import a.b` binds a
            yield alias.asname or alias.name.split(".")[0], Import(alias.name, None, inside=False)
        return
    base = parent
    for _ in range(node.level - 1):
        base = _parent(base)
    module = ".".join(filter(None, [base if node.level else "", node.module]))
    for alias in node.names:
        yield alias.asname or alias.name, Import(module, alias.name, inside=bool(node.level))


def _defined(node: ast.stmt) -> list[str]:
    """Names that a statement at the top level defines or changes."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _names(node: ast.stmt, skipped: Collection[str]) -> Iterator[str]:
    """Names that a definition mentions, without those in the methods `skipped`."""
    if isinstance(node, ast.Name):
        yield node.id
    for child in ast.iter_child_nodes(node):
        if getattr(child, "name", None) not in skipped:
            yield from _names(child, ())


def _first_line(lines: list[str], node: ast.stmt) -> int:
    """Index of the first line of a definition, with decorators and the comment above."""
    first = min([node.lineno, *(item.lineno for item in getattr(node, "decorator_list", []))]) - 1
    while lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return first


def _segment(lines: list[str], node: ast.stmt, skipped: Collection[str]) -> str:
    """The lines of a definition, without the methods `skipped`."""
    kept = set(range(_first_line(lines, node), node.end_lineno))
    present = {method.name: method for method in getattr(node, "body", []) if getattr(method, "name", None) in skipped}
    if missing := set(skipped) - present.keys():
        raise ValueError(f"there is no {node.name}.{missing.pop()} to leave out")
    for method in present.values():
        kept -= set(range(_first_line(lines, method), method.end_lineno + 1))  # and the blank line below
    return "\n".join(lines[index] for index in sorted(kept)).rstrip() + "\n"


def _import_lines(imports: Mapping[str, Import]) -> str:
    """Import statements, one for each name, the standard library's first."""
    blocks = {True: [], False: []}
    for bound, item in sorted(imports.items(), key=lambda pair: (pair[1].module, pair[0])):
        top = item.module.split(".")[0]
        line = f"import {item.module}" if item.name is None else f"from {item.module} import {item.name}"
        if bound != (item.name or top):
            line += f" as {bound}"
        blocks[top in sys.stdlib_module_names].append(line)
    return "\n\n".join("\n".join(lines) for lines in blocks.values() if lines) + "\n"
