# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a reader says, and its bounds from both sides. (What YAML may not hold: test_jobfile.py.)"""

import re

import pytest

from cvmtool.errors import ConfigError
from cvmtool.owner.strictyaml import Reader, in_short, is_text, load_yaml


def reader(**value):
    return Reader(value, "the file", page="docs/page.md")


def test_a_document_has_a_mebi_of_characters_at_most():
    assert load_yaml("a: 1\n".ljust(1 << 20), "the file") == {"a": 1}
    with pytest.raises(ConfigError, match=r"^the file has 1048577 characters"):
        load_yaml("a: 1\n".ljust((1 << 20) + 1), "the file")


def test_what_is_not_yaml_is_called_so():
    with pytest.raises(ConfigError, match=r"^the file is not YAML$") as refused:
        load_yaml("a: [", "the file")
    assert "line" in refused.value.detail


@pytest.mark.parametrize("half", ["\\ud800", "\\udbff", "\\udc00", "\\udfff"])
def test_half_a_surrogate_pair_is_refused_with_its_line(half):
    with pytest.raises(ConfigError, match="line 2: half"):
        load_yaml(f'a: 1\nb: "x{half}"', "the file")


def test_the_characters_beside_surrogates_are_characters():
    assert load_yaml('"\\ud7ff\\ue000"', "the file") == "\ud7ff\ue000"


def test_one_known_key_is_suggested():
    with pytest.raises(ConfigError, match="unknown key 'port1'") as refused:
        reader(port1=1).only("port", "ports")
    assert refused.value.hint in {"did you mean 'port'?", "did you mean 'ports'?"}


def test_a_missing_key_has_its_page():
    with pytest.raises(ConfigError, match="the key 'a' is missing") as refused:
        reader().require("a")
    assert refused.value.hint == "docs/page.md shows every key"


@pytest.mark.parametrize(
    ("read", "value", "said"),
    [
        (lambda r: r.text("a"), 5, "a is 5; a string is required"),
        (lambda r: r.number("a", 0, 1, 3), 4, "a is 4; a number from 1 to 3 is required"),
        (lambda r: r.boolean("a", default=True), 1, "a is 1; true or false is required"),
        (lambda r: r.strings("a"), ["x"] * 1025, "a has 1025 entries; at most 1024 are allowed"),
        (lambda r: r.size("a", 1024), "64", "a is '64'; a size such as 64MiB is required"),
        (lambda r: r.size("a", 1024), "2KiB", "a is 2KiB; at most 1024 bytes are allowed"),
        (lambda r: r.mib("a", "1MiB", most=2), "3MiB", "a is 3MiB; at most 2097152 bytes are allowed"),
        (lambda r: r.mib("a", "1MiB"), "1025KiB", "a is '1025KiB'; whole MiB are required"),
        (lambda r: r.seconds("a", "1s"), "1", "a is '1'; a time such as 10m is required"),
        (lambda r: r.seconds("a", "1s", most=60), "61s", "a is 61s; at most 60 seconds are allowed"),
    ],
)
def test_a_refusal_says_what_is_there_and_what_is_required(read, value, said):
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        read(reader(a=value))


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        (lambda r: r.number("a", 0, 1, 3), 3, 3),
        (lambda r: r.strings("a"), ["x"] * 1024, ("x",) * 1024),
        (lambda r: r.size("a", 1024), "1KiB", 1024),
        (lambda r: r.mib("a", "1MiB", most=2), "2048KiB", 2),
        (lambda r: r.seconds("a", "1s", most=60), "1m", 60),
    ],
)
def test_what_just_fits_is_read(read, value, expected):
    assert read(reader(a=value)) == expected


def test_a_text_has_65536_characters_at_most_and_no_nul():
    assert is_text("x" * 65_536)
    assert not is_text("x" * 65_537)
    assert not is_text("\0")


def test_values_are_shown_in_short():
    assert in_short("abc") == "'abc'"
    assert in_short("x" * 300) == "'" + "x" * 199
    assert in_short(list(range(100))) == "[0, 1, 2, 3, 4, 5, ...]"
