# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from cvmtool.data import tools
from cvmtool.data.tools import find, run
from cvmtool.errors import BuildError, ConfigError


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A function that makes the program `tool` of a shell script."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setitem(tools._PACKAGES, "tool", "tool-package")

    def make(body):
        path = tmp_path / "tool"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    return make


def test_a_program_gets_its_arguments_and_input_and_gives_its_output(program):
    program('printf "%s|" "$@"; cat')
    assert run(["tool", "a b", "$(id)"], stdin=b"in", what="x") == "a b|$(id)|in"
    assert run(["tool"], stdin=iter([b"one", b"", b"two"]), what="x") == "|onetwo"


def test_a_failure_names_the_step_and_shows_what_was_printed(program):
    program("echo to stdout; echo to stderr >&2; exit 7")
    with pytest.raises(BuildError) as failure:
        run(["tool"], what="making it")
    assert failure.value.message == "making it failed: tool ended with 7"
    assert failure.value.detail == "to stdout\nto stderr"
    assert failure.value.exit_code == 9


def test_a_missing_program_names_its_package(monkeypatch):
    monkeypatch.setitem(tools._PACKAGES, "no-such-tool", "its-package")
    with pytest.raises(ConfigError) as failure:
        find("no-such-tool")
    assert failure.value.hint == "apt-get install its-package"


def test_the_system_directories_count_without_path(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert find("cryptsetup").endswith("/cryptsetup")


def test_the_environment_is_not_passed_on(program, monkeypatch):
    monkeypatch.setenv("CVMTOOL_SECRET", "x")
    program("env")
    printed = run(["tool"], what="x")
    assert "CVMTOOL_SECRET" not in printed
    assert "LC_ALL=C" in printed
    assert "TZ=UTC" in printed


def test_a_program_that_prints_more_than_a_pipe_holds_before_it_reads(program):
    program("head -c 300000 /dev/zero | tr '\\0' x; cat > /dev/null")
    assert len(run(["tool"], stdin=(b"y" * 100_000 for _ in range(5)), what="x")) == 300_000


@pytest.mark.parametrize(("code", "ending"), [(3, pytest.raises(BuildError, match="ended with 3")), (0, None)])
def test_a_program_that_does_not_read_its_input(program, code, ending):
    program(f"exec 0<&-; echo said; exit {code}")
    pieces = (b"y" * 100_000 for _ in range(20))
    if ending is None:
        assert run(["tool"], stdin=pieces, what="x") == "said\n"
    else:
        with ending:
            run(["tool"], stdin=pieces, what="x")


def test_an_input_that_fails_ends_the_program_and_is_the_failure(program, tmp_path):
    program(f"echo $$ > {tmp_path}/pid; cat > /dev/null; sleep 60; touch {tmp_path}/finished")

    def pieces():
        yield b"y" * 200_000
        raise KeyError("the input's own failure")

    with pytest.raises(KeyError):
        run(["tool"], stdin=pieces(), what="x")
    assert not (tmp_path / "finished").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_only_the_descriptors_that_were_named_are_inherited(program):
    program("ls /proc/self/fd")
    memory = os.memfd_create("secret", 0)
    try:
        assert str(memory) not in run(["tool"], what="x").split()
        assert str(memory) in run(["tool"], pass_fds=[memory], what="x").split()
    finally:
        os.close(memory)
