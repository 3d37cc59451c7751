# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The threat model is executable: each row names where a defence is and a test that exists; every drill has a row."""

import ast
import re
from functools import cache

import pytest

from cvmtool.flows.attacks import all_drills
from tests.architecture.source import PACKAGE, ROOT

PAGE = (ROOT / "docs/threat-model.md").read_text("utf-8")
ATTACKS = PAGE.split("## Attacks")[1].split("## Residual")[0]
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in ATTACKS.splitlines()
    if line.startswith("|") and not line.startswith(("|---", "| attack |"))
]
REFERENCE = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)(?:\[([\w-]+)\])?`")
DRILL_TEST = ("tests/scenario/test_attacks.py", "test_attack_is_refused")
NAMED = sorted({match.groups(default="") for match in REFERENCE.finditer(PAGE)})


@cache
def defined_in(path: str) -> dict[str, str]:
    """Return the source of each test in a file, by name."""
    file = ROOT / path
    if not file.is_file():
        return {}
    text = file.read_text("utf-8")
    return {
        node.name: "\n".join(ast.unparse(part) for part in (*node.decorator_list, node))
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_the_table_is_read():
    assert len(ROWS) > 50
    assert len(NAMED) > len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:48] for row in ROWS])
def test_a_row_says_what_where_and_which_test(row):
    _attack, _stopped_by, where, named = row
    assert REFERENCE.sub("", named).strip() == "", "the last cell holds tests alone"
    assert REFERENCE.search(named)
    modules = re.findall(r"`([^`]+)`", where)
    assert modules
    for module in modules:
        assert (PACKAGE / module).exists() or (ROOT / module).exists(), f"{module} does not exist"


@pytest.mark.parametrize(("path", "name", "parameter"), NAMED, ids=["::".join(named) for named in NAMED])
def test_a_named_test_exists(path, name, parameter):
    assert name in defined_in(path)
    if parameter:
        source = defined_in(path)[name]
        assert "parametrize" in source
        if (path, name) == DRILL_TEST:
            assert parameter in {drill.name for drill in all_drills()}
        else:
            assert parameter in (ROOT / path).read_text("utf-8")


def test_every_drill_has_a_row():
    named = {parameter for path, name, parameter in NAMED if (path, name) == DRILL_TEST}
    assert named == {drill.name for drill in all_drills()}
