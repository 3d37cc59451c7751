# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Small modules, small functions, no cycles, no `assert`, a head on every file."""

import ast

import pytest

from tests.architecture.source import MODULES, Module

MOST_LINES = 450
MOST_FUNCTION_LINES = 80
# What is longer, how long it may be, and why. The numbers may fall and never rise.
LONGER: dict[str, tuple[int, str]] = {}
HEAD = "# SPDX-FileCopyrightText: The cvmtool authors\n# SPDX-License-Identifier: Apache-2.0\n"


def functions(module: Module) -> dict[str, int]:
    """Return the length of each function in lines, its docstring aside, by name."""
    found = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found[f"{module.path}::{node.name}"] = (node.end_lineno or node.lineno) - node.lineno + 1
    return found


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return one cycle of a graph, or nothing."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        for further in sorted(graph.get(node, set())):
            if found := walk(further, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


def module_graph(modules: tuple[Module, ...]) -> dict[str, set[str]]:
    """Return who imports whom when it is loaded."""
    names = {module.dotted for module in modules}
    graph: dict[str, set[str]] = {}
    for module in modules:
        targets = set()
        for item in module.imports():
            if not item.lazy and not item.typing_only:
                inner = f"{item.module}.{item.name}"
                targets.add(inner if inner in names else item.module)
        graph[module.dotted] = (targets & names) - {module.dotted, "cvmtool"}
    return graph


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.path)
def test_a_module_is_small(module):
    lines, most = len(module.text.splitlines()), LONGER.get(module.path, (MOST_LINES, ""))[0]
    assert lines <= most


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.path)
def test_a_function_is_small(module):
    long = {
        name: lines
        for name, lines in functions(module).items()
        if lines > LONGER.get(name, (MOST_FUNCTION_LINES, ""))[0]
    }
    assert long == {}


def test_what_became_small_is_taken_off_the_list():
    lengths = {module.path: len(module.text.splitlines()) for module in MODULES}
    for module in MODULES:
        lengths |= functions(module)
    usual = {name: MOST_FUNCTION_LINES if "::" in name else MOST_LINES for name in LONGER}
    assert {name: lengths.get(name, 0) for name in LONGER if lengths.get(name, 0) <= usual[name]} == {}


def test_no_import_cycle():
    assert cycle(module_graph(MODULES)) == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.path)
def test_no_assert(module):
    assert [node.lineno for node in ast.walk(module.tree) if isinstance(node, ast.Assert)] == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.path)
def test_a_head_and_a_docstring(module):
    is_init = module.path.endswith("__init__.py")
    assert is_init or module.text.startswith(HEAD)
    text = ast.get_docstring(module.tree) or ""
    assert text.strip()
    says_zone = "Zone: " in text or is_init or module.path == "__main__.py"
    assert says_zone, "the docstring says which zone this is"


def test_a_cycle_is_seen():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    pair = (Module("owner/a.py", "import cvmtool.owner.b"), Module("owner/b.py", "from cvmtool.owner import a"))
    assert sorted(cycle(module_graph(pair))) == ["cvmtool.owner.a", "cvmtool.owner.b"]


def test_a_lazy_import_is_no_cycle():
    pair = (
        Module("owner/a.py", "import cvmtool.owner.b"),
        Module("owner/b.py", "def f():\n    import cvmtool.owner.a"),
    )
    assert cycle(module_graph(pair)) == []


def test_a_long_function_is_seen():
    assert functions(Module("owner/a.py", "def f():\n" + "    x = 1\n" * 99)) == {"owner/a.py::f": 100}
