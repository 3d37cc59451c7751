# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The lowest security versions that count as repaired, as dated rows: bulletin, silicon, component, value, source.

Zone: owner (trusted). `built_in_floors` reads a file of this package; all else is pure.

The rows are data (`tcb-floors.toml`), so that a new bulletin is an edit and a date, not code.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from cvmtool.errors import ConfigError
from cvmtool.formats.tcb import COMPONENTS, ProductLine, Silicon, Tcb
from cvmtool.owner.toml import Table, load_table

FLOORS_SCHEMA = "cvmtool/tcb-floors/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """On each of `silicon`, the TCB's `component` is at least `value` (0 to 255)."""

    bulletin: str
    silicon: tuple[Silicon, ...]
    component: str
    value: int
    source: str
    checked: dt.date


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """A floor that a TCB does not reach: `actual` stands in the component."""

    floor: Floor
    actual: int


def shortfalls(tcb: Tcb, silicon: Silicon | None, floors: Sequence[Floor]) -> tuple[Shortfall, ...]:
    """Return the floors that `tcb` does not reach.

    `silicon` None (a report of version 2 does not say): the floors of every silicon of the line hold, so the doubt
    counts against the report.
    """
    values = tcb.components()
    return tuple(
        Shortfall(floor=floor, actual=values[floor.component])
        for floor in applicable(tcb.line, silicon, floors)
        if floor.component in values and values[floor.component] < floor.value
    )


def applicable(line: ProductLine, silicon: Silicon | None, floors: Sequence[Floor]) -> tuple[Floor, ...]:
    """Return the floors that hold for this silicon, or for any of the line when it is not known."""
    candidates = {silicon} if silicon is not None else {s for s in Silicon if s.line is line}
    return tuple(floor for floor in floors if not candidates.isdisjoint(floor.silicon))


def read_floors(rows: Sequence[Table]) -> tuple[Floor, ...]:
    """Read floors from the tables of a document.

    Raises:
        ConfigError: a key is missing, unknown or of the wrong kind, or the component does not exist on the silicon.
    """
    floors = []
    for row in rows:
        floor = Floor(
            bulletin=row.text("bulletin"),
            silicon=row.choices("silicon", Silicon),
            component=row.text("component"),
            value=row.integer("value", 0, 255),
            source=row.text("source"),
            checked=row.date("checked"),
        )
        turin_only = floor.component == "fmc"
        misfit = turin_only and any(s.line is not ProductLine.TURIN for s in floor.silicon)
        if floor.component not in COMPONENTS or misfit:
            raise row.wrong("component", floor.component, f"one of {', '.join(COMPONENTS)} that the silicon has")
        row.finish()
        floors.append(floor)
    return tuple(floors)


def parse_floors(text: str) -> tuple[Floor, ...]:
    """Read a document of floors.

    Raises:
        ConfigError: not TOML, another schema, or a row is wrong.
    """
    document = load_table(text, "tcb-floors")
    schema = document.text("schema")
    if schema != FLOORS_SCHEMA:
        raise ConfigError(f"tcb-floors.schema is {schema!r}; required: {FLOORS_SCHEMA!r}")
    floors = read_floors(document.tables("floor"))
    document.finish()
    return floors


@cache
def built_in_floors() -> tuple[Floor, ...]:
    """Return the floors that ship with cvmtool."""
    return parse_floors((files("cvmtool.owner") / "tcb-floors.toml").read_text("utf-8"))
