# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The packages lock: one form, every field bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.image.lock import HEADER, MAX_LOCK, parse_lock
from tests.unit.image.parts import make_lock, make_package

LOCK = make_lock(make_package("busybox", roles=frozenset({"initrd", "rootfs"})), make_package("apt"))


def test_round_trip() -> None:
    assert parse_lock(LOCK.encode()) == LOCK
    assert LOCK.encode().startswith(HEADER.encode())


def test_roles_select_packages() -> None:
    assert [package.name for package in LOCK.role("initrd")] == ["busybox"]
    assert [package.name for package in LOCK.role("rootfs")] == ["apt", "busybox"]
    assert LOCK.role("kernel") == ()


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("request " + "ab" * 32, "request abc", "request"),
        ("deb apt", "rpm apt", "kind"),
        ("deb apt", "deb a/pt", "name"),
        (" 5 ", " 0 ", "size"),
        (" 5 ", " 99999999999 ", "size"),
        (" pool/main/a", " ../main/a", "path"),
        (" pool/main/a", " /pool/main/a", "path"),
        (" trixie rootfs ", " trixie rootfs, ", "roles"),
        (" trixie ", " ", "fields"),
    ],
)
def test_mutation_is_refused(old: str, new: str, field: str) -> None:
    text = LOCK.encode().decode()
    assert old in text
    with pytest.raises(FormatError, match=field):
        parse_lock(text.replace(old, new, 1).encode())


def test_short_sha256_is_refused() -> None:
    digest = LOCK.packages[0].sha256
    with pytest.raises(FormatError, match="sha256"):
        parse_lock(LOCK.encode().replace(digest.encode(), digest[:-1].encode(), 1))


def test_unsorted_and_double_lines_are_refused() -> None:
    lines = LOCK.encode().decode().splitlines()
    for wrong in ([*lines[:2], *reversed(lines[2:])], [*lines, lines[-1]]):
        with pytest.raises(FormatError, match="one form"):
            parse_lock("\n".join(wrong).encode())


def test_too_long_is_refused() -> None:
    with pytest.raises(FormatError, match=str(MAX_LOCK)):
        parse_lock(b"#" * (MAX_LOCK + 1))


@given(st.one_of(st.binary(max_size=400), st.text(max_size=400).map(str.encode)))
def test_any_bytes_are_a_lock_or_a_format_error(data: bytes) -> None:
    try:
        parse_lock(data)
    except FormatError:
        return
    raise AssertionError("random bytes hold no 64 hex digits of a request")
