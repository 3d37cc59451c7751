# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""docs/reference/doctor.md has every check and every known error, as the code has them."""

import re
from pathlib import Path

from cvmtool.host.doctor.checks import CHECKS
from cvmtool.host.failure_table import ROWS

PAGE = (Path(__file__).parents[4] / "docs/reference/doctor.md").read_text("utf-8")


def rows(section: str) -> list[tuple[str, ...]]:
    table = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    return [
        tuple(cell.strip() for cell in line.strip("|").split(" |"))
        for line in re.findall(r"^\| `.*$", table, re.MULTILINE)
    ]


def test_every_check_is_told():
    told = [(f"`{check.code}`", check.why, ", ".join(f"`{code}`" for code in check.needs)) for check in CHECKS]
    assert rows("Checks") == told


def test_every_known_error_is_told():
    assert rows("Errors that `--explain` knows") == [(f"`{row.code}`", row.cause, row.remedy) for row in ROWS]


def test_what_nothing_is_promised_without_is_told():
    said = re.search(r"without which nothing is promised: ([^.]+)\.", PAGE)[1]
    assert re.findall(r"`([\w-]+)`", said) == [check.code for check in CHECKS if check.essential]
