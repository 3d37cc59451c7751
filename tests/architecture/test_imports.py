# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a command costs before it does anything: no heavy library is loaded by the command line, formats or measure."""

import subprocess
import sys

import pytest

from tests.architecture.source import MODULES

HEAVY = {"cryptography", "libvirt", "paramiko", "asyncio", "jinja2", "yaml"}


def loaded(statement: str) -> set[str]:
    """Return the top-level names of everything that is loaded by a statement in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", statement], capture_output=True, text=True, check=True, timeout=120
    )
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in ran.stderr.splitlines() if "|" in line}


def test_the_command_line_loads_nothing_heavy():
    names = loaded("import cvmtool.cli.app")
    assert "typer" in names
    assert names & HEAVY == set()


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
