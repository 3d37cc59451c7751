# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a command costs before it does anything: no heavy library is loaded by the command line, formats or measure."""

import subprocess
import sys

import pytest

from cvmtool.cli.app import COMMANDS
from tests.architecture.source import MODULES
from tests.unit.measure.test_ovmf import firmware

HEAVY = {"cryptography", "libvirt", "paramiko", "asyncio", "jinja2", "yaml"}
ROOT = {"cvmtool", "cvmtool.errors", "cvmtool.cli", "cvmtool.cli.app", "cvmtool.cli.interrupt"}


def modules_of(*arguments: str) -> set[str]:
    """Return every module that a Python process with these arguments loads."""
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    return {line.rsplit("|", 1)[1].strip() for line in ran.stderr.splitlines() if line.startswith("import time:")}


def loaded(statement: str) -> set[str]:
    """Return the top-level names of everything that is loaded by a statement in a process of its own."""
    return {name.split(".")[0] for name in modules_of("-c", statement)}


def own(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "cvmtool"}


def test_the_command_line_loads_nothing_heavy():
    names = loaded("import cvmtool.cli.app")
    assert "typer" in names
    assert names & (HEAVY | {"rich", "json"}) == set()


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_the_root_knows_its_commands_without_loading_them(argument):
    assert own(modules_of("-m", "cvmtool", argument)) == ROOT


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_is_only_asked_about_loads_nothing_heavy(name):
    names = loaded(f"import cvmtool.cli.{name}")
    assert names & (HEAVY | {"rich"}) == set()


def test_a_measurement_loads_what_it_measures_with(tmp_path):
    (tmp_path / "firmware").write_bytes(firmware(pages=2))
    names = modules_of("-m", "cvmtool", "measure", "raw", "--firmware", str(tmp_path / "firmware"))
    below = {name for name in own(names) if name.split(".")[1:2] not in ([], ["cli"], ["errors"])}
    parts = {f"cvmtool.measure.{part}" for part in ("hashes", "launch", "ovmf", "trace", "vmsa")}
    assert below == {"cvmtool.measure", *parts}
    assert {name.split(".")[0] for name in names} & (HEAVY | {"rich", "json"}) == set()


@pytest.mark.parametrize("zone", ["formats", "measure"])
def test_what_everybody_shares_needs_no_library(zone):
    modules = [module.dotted for module in MODULES if module.zone == zone]
    assert loaded(f"import {', '.join(modules)}") & (HEAVY | {"typer", "rich"}) == set()


def test_the_decisions_need_neither_libvirt_nor_a_terminal():
    modules = [module.dotted for module in MODULES if module.zone == "owner"]
    names = loaded(f"import {', '.join(modules)}")
    assert "cryptography" in names
    assert names & {"libvirt", "paramiko", "typer", "rich", "jinja2", "asyncio"} == set()


def test_the_guest_loads_what_its_image_has():
    modules = [module.dotted for module in MODULES if module.zone == "guest"]
    names = loaded(f"import {', '.join(modules)}")
    assert names & {"libvirt", "paramiko", "typer", "rich", "jinja2", "yaml"} == set()


def test_a_heavy_import_is_seen():
    assert "asyncio" in loaded("import asyncio.events")
