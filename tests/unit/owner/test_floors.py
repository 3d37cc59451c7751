# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest

from cvmtool.dryrun.psp import _HEALTHY
from cvmtool.errors import ConfigError
from cvmtool.formats.report import parse_report
from cvmtool.formats.tcb import ProductLine, Silicon, Tcb
from cvmtool.owner.floors import applicable, built_in_floors, parse_floors, shortfalls
from tests import vectors

ROW = """
[[floor]]
bulletin = "AMD-SB-1"
silicon = ["Genoa"]
component = "snp"
value = 23
source = "test"
checked = 2026-01-31
"""
TEXT = f'schema = "cvmtool/tcb-floors/v1"\n{ROW}'


def genoa(snp, microcode=255):
    return Tcb(line=ProductLine.GENOA, bootloader=255, tee=255, snp=snp, microcode=microcode)


def test_a_floor_is_reached_or_not():
    floors = parse_floors(TEXT)
    assert shortfalls(genoa(23), Silicon.GENOA, floors) == ()
    (short,) = shortfalls(genoa(22), Silicon.GENOA, floors)
    assert (short.floor.bulletin, short.actual) == ("AMD-SB-1", 22)


def test_floors_hold_for_their_silicon_alone():
    floors = parse_floors(TEXT)
    assert shortfalls(genoa(0), Silicon.GENOA_X, floors) == ()
    assert applicable(ProductLine.GENOA, Silicon.GENOA_X, floors) == ()


def test_unknown_silicon_must_reach_the_floors_of_its_whole_line():
    floors = parse_floors(TEXT)
    assert shortfalls(genoa(22), None, floors)
    assert applicable(ProductLine.GENOA, None, floors) == floors
    assert applicable(ProductLine.TURIN, None, floors) == ()


def test_every_silicon_has_a_built_in_floor():
    for silicon in Silicon:
        assert applicable(silicon.line, silicon, built_in_floors()), silicon


@pytest.mark.parametrize("line", ProductLine)
def test_a_healthy_dry_run_reaches_every_floor(line):
    assert shortfalls(_HEALTHY[line], None, built_in_floors()) == ()


@pytest.mark.vectors
@pytest.mark.parametrize(
    ("name", "bulletins"),
    [
        ("az-genoa-v3", {"AMD-SB-3020", "AMD-SB-3027"}),
        ("oak-genoa-v5", {"AMD-SB-3020", "AMD-SB-3027"}),
        ("siena-bergamo-genoa-v5", set()),
        ("oak-turin-v5", {"AMD-SB-3020"}),
        ("oak-milan-v3-rel", {"AMD-SB-3020"}),
        ("aws-milan-v3-vlek", {"AMD-SB-3019", "AMD-SB-3020"}),
    ],
)
def test_real_reports_fare_as_published(name, bulletins):
    report = parse_report(vectors.report(name).report)
    short = shortfalls(report.tcbs(report.line).reported, report.cpuid.silicon, built_in_floors())
    assert {s.floor.bulletin for s in short} == bulletins


@pytest.mark.parametrize(
    "text",
    [
        "",
        'schema = "cvmtool/tcb-floors/v1"',
        TEXT.replace("floors/v1", "floors/v2"),
        TEXT.replace("Genoa", "Genua"),
        TEXT.replace('"snp"', '"spn"'),
        TEXT.replace('"snp"', '"fmc"'),
        TEXT.replace("23", "256"),
        TEXT.replace("23", "-1"),
        TEXT.replace("23", "true"),
        TEXT.replace("2026-01-31", "2026-01-31T00:00:00Z"),
        TEXT.replace("2026-01-31", '"yesterday"'),
        TEXT.replace("source", "sauce"),
        TEXT + "extra = 1\n",
        f'schema = "cvmtool/tcb-floors/v1"\nextra = 1\n{ROW}',
        TEXT.replace('["Genoa"]', "[]"),
        TEXT.replace('["Genoa"]', '["Genoa", "Genoa"]'),
    ],
)
def test_a_wrong_document_is_refused(text):
    with pytest.raises(ConfigError, match=r"^tcb-floors\b"):
        parse_floors(text)


@pytest.mark.parametrize("value", [0, 255])
def test_a_floor_is_any_byte(value):
    (floor,) = parse_floors(TEXT.replace("23", str(value)))
    assert floor.value == value


def test_turin_alone_has_an_fmc():
    (floor,) = parse_floors(TEXT.replace('"snp"', '"fmc"').replace("Genoa", "Turin"))
    turin = Tcb(line=ProductLine.TURIN, fmc=22, bootloader=255, tee=255, snp=255, microcode=255)
    assert [short.actual for short in shortfalls(turin, Silicon.TURIN, [floor])] == [22]
    assert shortfalls(genoa(0), Silicon.GENOA, [replace(floor, silicon=(Silicon.GENOA,))]) == ()
