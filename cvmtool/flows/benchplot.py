# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A comparison as a picture: a bar for each place, cut into phases. Laid out once, then drawn as SVG in a page and as PNG.

Zone: flows. Doors to jinja2 (the page) and to Pillow (the PNG; the extra `plot`, ADR-0031).
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cvmtool.errors import ConfigError
from cvmtool.flows.bench import Comparison
from cvmtool.flows.benchphases import PHASES
from cvmtool.flows.benchreport import MEANINGS, notes, rows

WIDTH = 960
_LEFT, _RIGHT, _TOP = 150, 90, 92
_BAR, _GAP, _LINE = 44, 22, 20
_TEXT = 15  # pixels
_WRAP = 118  # characters of a note on a line
_TICKS = 8  # at most
# Okabe and Ito's colours, which people who see colours otherwise can tell apart.
_COLOURS = dict(zip(PHASES, ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"), strict=True))
_INK, _PALE = "#222222", "#dddddd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle, in pixels from the upper left corner."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A line of text; `y` is its middle."""

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"] = "start"
    size: int = _TEXT


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A picture."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    words: tuple[Word, ...]


def lay_out(comparison: Comparison) -> Plot:
    """Return the picture of a comparison."""
    longest = max(item.total for item in comparison.taken)
    scale = (WIDTH - _LEFT - _RIGHT) / longest if longest > 0 else 0.0
    boxes: list[Box] = []
    words = [Word(x=20, y=28, text=f"Job {comparison.job}: seconds by phase", size=20)]
    present = [name for name in PHASES if any(name in item.seconds for item in comparison.taken)]
    for number, name in enumerate(present):
        boxes.append(Box(x=20 + number * 130, y=54, width=14, height=14, colour=_COLOURS[name]))
        words.append(Word(x=40 + number * 130, y=61, text=name))
    bottom = _TOP + len(comparison.taken) * (_BAR + _GAP)
    for second in _ticks(longest):
        at = _LEFT + second * scale
        boxes.append(Box(x=at, y=_TOP - 8, width=1, height=bottom - _TOP, colour=_PALE))
        words.append(Word(x=at, y=bottom + 6, text=f"{second:g} s", anchor="middle"))
    for number, item in enumerate(comparison.taken):
        top, at = _TOP + number * (_BAR + _GAP), float(_LEFT)
        words.append(Word(x=_LEFT - 10, y=top + _BAR / 2, text=item.where, anchor="end"))
        for name in present:
            width = item.seconds.get(name, 0.0) * scale
            title = f"{item.where}, {name}: {item.seconds.get(name, 0.0):.2f} s"
            boxes.append(Box(x=at, y=top, width=width, height=_BAR, colour=_COLOURS[name], title=title))
            at += width
        words.append(Word(x=at + 8, y=top + _BAR / 2, text=f"{item.total:.2f} s"))
    lines = [line for note in notes(comparison) for line in textwrap.wrap(f"- {note}", _WRAP, subsequent_indent="  ")]
    for number, line in enumerate(lines):
        words.append(Word(x=20, y=bottom + 40 + number * _LINE, text=line, size=13))
    height = round(bottom + 40 + len(lines) * _LINE)
    return Plot(width=WIDTH, height=height, boxes=tuple(boxes), words=tuple(words))


def _ticks(longest: float) -> Iterator[float]:
    """Yield round numbers of seconds from 0 to `longest`."""
    if longest <= 0:
        return
    power = 10.0 ** math.floor(math.log10(longest / _TICKS))
    step = next(power * factor for factor in (1, 2, 5, 10) if longest / (power * factor) <= _TICKS)
    for number in range(math.floor(longest / step) + 1):
        yield round(number * step, 9)


def draw_page(comparison: Comparison, templates: Path) -> str:
    """Return a page of HTML that needs nothing else: the picture as SVG, the figures, the notes."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    head, *figures = rows(comparison)
    return environment.get_template("bench.html.j2").render(
        job=comparison.job,
        simulated=comparison.simulated,
        plot=lay_out(comparison),
        head=head,
        figures=figures,
        meanings={name: MEANINGS[name] for name in (row[0] for row in figures) if name in MEANINGS},
        notes=notes(comparison),
    )


def draw_png(comparison: Comparison) -> bytes:
    """Return the picture as PNG.

    Raises:
        ConfigError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ConfigError(
            "Pillow is not installed; it is required for a PNG", hint="pip install 'cvmtool[plot]'"
        ) from error
    plot = lay_out(comparison)
    image = Image.new("RGB", (plot.width, plot.height), "white")
    draw = ImageDraw.Draw(image)
    for box in plot.boxes:
        if box.width > 0:
            draw.rectangle((box.x, box.y, box.x + max(box.width - 1, 0), box.y + box.height - 1), fill=box.colour)
    anchors = {"start": "lm", "middle": "mm", "end": "rm"}
    for word in plot.words:
        font = ImageFont.load_default(word.size)
        draw.text((word.x, word.y), word.text, fill=_INK, font=font, anchor=anchors[word.anchor])
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
