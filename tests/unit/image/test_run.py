# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The door to other programs: what they see, and how their failures come back."""

from __future__ import annotations

import pytest

from cvmtool.errors import BuildError
from cvmtool.image.run import drain, feed, run


def test_the_environment_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.setenv("PIP_INDEX_URL", "x")
    seen = run(["env"], env={"SOURCE_DATE_EPOCH": "1"}).decode()
    assert "LC_ALL=C.UTF-8\n" in seen
    assert "SOURCE_DATE_EPOCH=1\n" in seen
    for name in ("LANG", "SECRET_TOKEN", "PIP_INDEX_URL"):
        assert f"{name}=" not in seen
    assert "PIP_INDEX_URL=x" in run(["env"], pip=True).decode()


def test_failure_carries_code_and_words() -> None:
    with pytest.raises(BuildError, match="code 3") as caught:
        run(["sh", "-c", "echo because >&2; exit 3"])
    assert caught.value.detail == "because"


def test_a_missing_program_is_a_build_error() -> None:
    for door in (run, lambda argv: drain(argv).__enter__(), lambda argv: feed(argv).__enter__()):
        with pytest.raises(BuildError, match="no-such-program"):
            door(["no-such-program"])


def test_feed_and_drain() -> None:
    with drain(["printf", "abc"]) as pipe:
        assert pipe.read(1) == b"a"  # the rest is drained, so the program does not die of a broken pipe
    with feed(["cat"]) as sink:
        sink.write(b"x" * 200_000)


def test_a_program_that_stops_reading_fails_with_its_own_words() -> None:
    with pytest.raises(BuildError, match="code 4") as caught, feed(["sh", "-c", "echo full >&2; exit 4"]) as sink:
        sink.write(b"x" * 10_000_000)
    assert caught.value.detail == "full"


def test_a_talkative_program_does_not_block() -> None:
    with feed(["sh", "-c", "yes | head -c 1000000 >&2; cat >/dev/null"]) as sink:
        sink.write(b"x" * 1_000_000)


def test_an_error_of_the_caller_ends_the_program() -> None:
    with pytest.raises(ZeroDivisionError), drain(["sleep", "600"]):
        raise ZeroDivisionError
