# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The zones import only what docs/architecture.md allows; what decides does no I/O."""

import ast

import pytest

from tests.architecture.source import MODULES, Module

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "formats": {"errors"},
    "measure": {"errors", "formats"},
    "owner": {"errors", "formats", "measure"},
    "host": {"errors", "formats"},
    "guest": {"errors", "formats"},
    "image": {"errors", "formats", "measure"},
    "data": {"errors", "formats"},
    "dryrun": {"errors", "formats", "measure"},
    "flows": {"errors", "config", "formats", "measure", "owner", "host", "image", "data", "dryrun"},
    "cli": {"errors", "config", "formats", "measure", "owner", "image", "flows"},
    "__init__": set(),
    "__main__": {"cli"},
}
PURE = {"errors", "formats", "measure", "owner"}
EFFECTS = {"asyncio", "http", "multiprocessing", "os", "pathlib", "random", "requests", "select", "shutil", "signal"} | {
    "socket", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "urllib",
}  # fmt: skip
CLOCKS = {"now", "today", "utcnow"}
BUILTINS = {"open", "print", "input", "exec", "eval", "__import__"}


def strays(module: Module) -> list[str]:
    """Return what a module imports of cvmtool and may not."""
    relative = [f"{module.path}:{item.line}: relative import" for item in module.imports() if item.level]
    return relative + [
        f"{module.path} imports {zone}" for zone in sorted(module.zones() - MAY_IMPORT[module.zone]) if zone != "None"
    ]


def effects(module: Module) -> list[str]:
    """Return how a module that only decides could touch the world, the clock or the process."""
    found = [f"{module.path} imports {name}" for name in sorted(module.libraries() & EFFECTS)]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in (CLOCKS if isinstance(node.func, ast.Attribute) else BUILTINS):
                found.append(f"{module.path}:{node.lineno}: calls {name}")
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.path)
def test_a_module_imports_only_allowed_zones(module):
    assert strays(module) == []


@pytest.mark.parametrize("module", [m for m in MODULES if m.zone in PURE], ids=lambda module: module.path)
def test_what_decides_does_no_io(module):
    assert effects(module) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("owner/x.py", "from cvmtool.host.channel import AgentChannel"),
        ("owner/x.py", "def f():\n    import cvmtool.host.channel"),
        ("host/x.py", "from cvmtool.owner.policy import Policy"),
        ("guest/x.py", "from cvmtool.measure.launch import launch_digest"),
        ("guest/x.py", "from cvmtool import owner"),
        ("formats/x.py", "from cvmtool.config import Settings"),
        ("flows/x.py", "from cvmtool.cli.render import emit"),
        ("owner/x.py", "from .policy import Policy"),
        (
            "owner/x.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cvmtool.dryrun.amd import FakeAmd",
        ),
    ],
)
def test_a_stray_import_is_seen(path, text):
    assert strays(Module(path, text)) != []


@pytest.mark.parametrize("text", ["import os", "x = open('f')", "now = datetime.now(UTC)", "from pathlib import Path"])
def test_an_effect_is_seen(text):
    assert effects(Module("owner/x.py", text)) != []
