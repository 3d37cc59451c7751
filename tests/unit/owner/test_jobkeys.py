# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The table of job.yaml's keys. (That the readers know these and no other: tests/architecture/test_docs.py.)"""

import re
from pathlib import Path

import pytest

from cvmtool.owner.jobkeys import KEYS, below


def test_no_key_stands_twice_and_each_has_a_meaning():
    assert len({key.name for key in KEYS}) == len(KEYS)
    assert all(key.meaning and "|" not in key.meaning for key in KEYS)


def test_a_key_stands_behind_the_one_that_it_belongs_to():
    seen = set()
    for key in KEYS:
        parent = key.name.rpartition(".")[0]
        assert not parent or parent in seen
        seen.add(key.name)


PAGE = (Path(__file__).parents[3] / "docs/reference/job.md").read_text("utf-8")
ROWS = {
    cells[0].strip("`"): cells[1:]
    for cells in re.findall(r"^\| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
}


@pytest.mark.parametrize("key", KEYS, ids=[key.name for key in KEYS])
def test_the_page_says_what_each_key_is(key):
    kind, default, meaning = ROWS[key.name]
    assert meaning == key.meaning
    assert key.kind in {None, kind}
    assert key.default in {None, default}


@pytest.mark.parametrize(
    ("parent", "keys"),
    [
        ("serve", ("port",)),
        ("checkpoint", ("size", "every", "grace")),
        ("outputs.NAME", ("kind", "max")),
        ("outputs", ("NAME",)),
        ("nothing", ()),
    ],
)
def test_what_may_stand_below_a_key(parent, keys):
    assert below(parent) == keys


def test_what_may_stand_in_the_file_itself():
    assert below()[:2] == ("name", "kind")
    assert not any("." in key for key in below())
