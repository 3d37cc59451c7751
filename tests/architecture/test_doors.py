# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Each outside library has one door (docs/architecture.md, "Doors"), and so has the environment."""

import ast
import re

import pytest

from tests.architecture.source import MODULES, ROOT, Module

DOORS: dict[str, set[str]] = {
    "typer": {"cli"},
    "click": set(),
    "rich": {"cli"},
    "libvirt": {"host/hypervisor.py"},
    "libvirt_qemu": {"host/hypervisor.py"},
    "paramiko": {"host/channel.py", "host/doctor/distant.py", "host/remote.py"},
    "jinja2": {"host/domain.py", "flows/benchplot.py"},
    "PIL": {"flows/benchplot.py"},
    "yaml": {"owner/strictyaml.py"},
    "tomllib": {"config.py", "owner/toml.py", "image/recipe.py"},
    "cryptography": {"owner", "guest", "data", "dryrun"},
    "lxml": {"owner/rim.py"},
    "signxml": {"owner/rim.py"},
    "pynvml": {"guest/gpu.py"},
    "re2": {"data/patterns.py"},
    "presidio_analyzer": {"data/presidio.py"},
    "spacy": {"data/presidio.py"},
    "subprocess": {"data/tools.py", "guest/container.py", "guest/programs.py", "host/accelerator.py", "image/run.py"}
    | {"host/doctor/local.py", "host/doctor/trial.py", "flows/benchnative.py", "flows/supervise.py"},
    # One module talks to a network by itself (ADR-0015): packages come through apt and pip.
    "http": {"flows/collateral.py"},
    "urllib": {"flows/collateral.py", "image/sbom.py"},
    **{name: set() for name in ("asyncio", "requests", "httpx", "ssl", "ftplib", "smtplib")},
    # Formats that run code when read, and ways to run code.
    **{name: set() for name in ("pickle", "marshal", "shelve")},
    "ctypes": {"data/xts.py"},
    "sqlite3": {"flows/jobdb.py"},
    # A file of the package, and the module of a command that `COMMANDS` names: never a name from outside.
    "importlib": {"owner/floors.py", "cli/app.py"},
}
ENVIRONMENT: dict[str, str] = {
    "config.py": "every setting",
    "host/hypervisor.py": "LIBVIRT_LOG_OUTPUTS, which libvirt reads when it is loaded",
    "data/tools.py": "PATH, to find a program",
    "image/run.py": "proxies and PIP_*, which apt and pip need",
}


def strangers(module: Module) -> list[str]:
    """Return the libraries that a module imports and is no door for."""
    return [
        library
        for library in sorted(module.libraries() & DOORS.keys())
        if not {module.path, module.zone} & DOORS[library]
    ]


def reads_environment(module: Module) -> bool:
    """Whether a module looks at the process's environment."""
    names = {"environ", "environb", "getenv", "putenv", "expandvars"}
    return any(
        (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and names & {item.name for item in node.names})
        for node in ast.walk(module.tree)
    )


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.path)
def test_each_library_has_one_door(module):
    assert strangers(module) == []


@pytest.mark.parametrize("door", sorted({door for doors in DOORS.values() for door in doors if door.endswith(".py")}))
def test_a_door_that_nobody_uses_is_taken_off_the_list(door):
    libraries = next(module.libraries() for module in MODULES if module.path == door)
    assert any(door in doors and library in libraries for library, doors in DOORS.items())


def test_only_the_listed_modules_read_the_environment():
    assert {module.path for module in MODULES if reads_environment(module)} == set(ENVIRONMENT)


def test_the_page_lists_these_doors():
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    rows = dict(
        re.findall(r"^\| `([A-Za-z0-9_]+)` \| ([^|]*) \|", page.split("## Doors")[1].split("\n## ")[0], re.MULTILINE)
    )
    listed = {name: set(re.findall(r"`([^`]+)`", doors)) for name, doors in rows.items()}
    kept = {name: doors for name, doors in DOORS.items() if doors and name not in {"libvirt_qemu", "importlib"}}
    assert listed == kept | {"environ": set(ENVIRONMENT)}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("owner/x.py", "import libvirt"),
        ("host/storage.py", "def f():\n    import paramiko.transport"),
        ("formats/x.py", "from cryptography.hazmat.primitives import hashes"),
        ("cli/x.py", "import subprocess"),
        ("flows/x.py", "import rich"),
        ("guest/x.py", "import pickle"),
    ],
)
def test_a_second_door_is_seen(path, text):
    assert strangers(Module(path, text)) != []


@pytest.mark.parametrize("text", ["import os\nos.environ['A']", "from os import getenv", "import os\nos.getenv('A')"])
def test_a_look_at_the_environment_is_seen(text):
    assert reads_environment(Module("flows/x.py", text))
