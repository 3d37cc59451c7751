# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A comparison in its forms: rows, page and PNG, read back by others; and the notes that stand with each of them."""

import io
import sys
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

from cvmtool.config import resources
from cvmtool.errors import ConfigError
from cvmtool.flows.bench import Comparison
from cvmtool.flows.benchphases import Taken
from cvmtool.flows.benchplot import WIDTH, draw_page, draw_png, lay_out
from cvmtool.flows.benchreport import MEANINGS, notes, rows

SVG = "{http://www.w3.org/2000/svg}"


def comparison(**changes) -> Comparison:
    taken = (
        Taken(where="native", seconds={"start": 0.01, "load": 1.0, "compute": 2.0, "export": 0.1}),
        Taken(where="plain-vm", seconds={"start": 4.0, "load": 10.0, "compute": 20.0, "export": 0.2}),
        Taken(where="dry-run", seconds={"start": 8.0, "load": 12.0, "compute": 20.0, "export": 0.4}),
    )
    base = {
        "job": "digits",
        "simulated": True,
        "emulated": "emulating",
        "rounds": 3,
        "spread": 0.25,
        "taken": taken,
        "skipped": {},
    }
    return Comparison(**(base | changes))


def page(found: Comparison) -> ET.Element:
    """Parse the page; its markup is well-formed but for its first line and its meta."""
    text = draw_page(found, resources("templates"))
    return ET.fromstring(text.removeprefix("<!doctype html>\n").replace('<meta charset="utf-8">', ""))


def test_the_table_has_each_phase_and_the_ratio_that_counts():
    assert rows(comparison()) == [
        ("phase", "native", "plain-vm", "dry-run", "dry-run / plain-vm"),
        ("start", "0.01 s", "4.00 s", "8.00 s", "2.00 x"),
        ("load", "1.00 s", "10.00 s", "12.00 s", "1.20 x"),
        ("compute", "2.00 s", "20.00 s", "20.00 s", "1.00 x"),
        ("export", "0.10 s", "0.20 s", "0.40 s", "2.00 x"),
        ("total", "3.11 s", "34.20 s", "40.40 s", "1.18 x"),
    ]


def test_without_a_plain_vm_there_is_no_ratio():
    found = comparison(taken=comparison().taken[::2], skipped={"plain-vm": "host is lab"})
    assert rows(found)[0] == ("phase", "native", "dry-run")
    assert "plain-vm was left out: host is lab" in notes(found)


@pytest.mark.parametrize(
    ("changes", "words", "there"),
    [
        ({}, "SIMULATED / NOT CONFIDENTIAL", True),
        ({"simulated": False}, "SIMULATED / NOT CONFIDENTIAL", False),
        ({}, "emulated (TCG)", True),
        ({"emulated": None}, "emulated (TCG)", False),
        ({}, "median of 3 rounds", True),
        ({}, "differed by up to 25%", True),
        ({"rounds": 1, "spread": 0.0}, "of one run", True),
        ({"rounds": 1, "spread": 0.0}, "median", False),
    ],
)
def test_what_figures_do_not_say_is_noted_wherever_they_are(changes, words, there):
    found = comparison(**changes)
    assert (words in " ".join(notes(found))) is there
    assert (words in " ".join("".join(item.itertext()) for item in page(found).iter("li"))) is there
    assert (words in " ".join(word.text for word in lay_out(found).words)) is there


def test_the_page_has_a_box_as_wide_as_each_phase_took():
    boxes = {
        box.findtext(f"{SVG}title"): float(box.get("width"))
        for box in page(comparison()).iter(f"{SVG}rect")
        if ":" in (box.findtext(f"{SVG}title") or "")
    }
    assert len(boxes) == 12
    second = boxes["dry-run, compute: 20.00 s"] / 20
    assert boxes["native, load: 1.00 s"] == pytest.approx(second, abs=0.02)
    plain = [width for title, width in boxes.items() if title.startswith("plain-vm")]
    assert sum(plain) == pytest.approx(34.2 * second, abs=0.02)


def test_the_page_has_the_table():
    cells = [["".join(cell.itertext()) for cell in row] for row in page(comparison()).iter("tr")]
    assert cells == [list(row) for row in rows(comparison())]


def test_a_job_s_name_is_no_markup():
    assert page(comparison(job="<script>&")).find("head/title").text.startswith("<script>&:")


def test_the_png_is_the_same_picture():
    found = comparison()
    image = Image.open(io.BytesIO(draw_png(found)))
    assert (image.format, image.size) == ("PNG", (WIDTH, lay_out(found).height))
    for box in lay_out(found).boxes:
        if box.title and box.width > 4:
            middle = (round(box.x + box.width / 2), round(box.y + box.height / 2))
            assert "#{:02x}{:02x}{:02x}".format(*image.convert("RGB").getpixel(middle)) == box.colour


def test_without_pillow_there_is_no_png(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError) as refused:
        draw_png(comparison())
    assert "cvmtool[plot]" in refused.value.hint


def test_a_run_of_no_time_is_drawn_too():
    found = comparison(taken=(Taken(where="dry-run", seconds={"start": 0.0, "run": 0.0}),))
    assert Image.open(io.BytesIO(draw_png(found))).size[0] == WIDTH
    assert page(found).find("body") is not None


def test_every_phase_has_its_meaning():
    assert set(MEANINGS) == {"start", "load", "compute", "checkpoint", "run", "export"}
