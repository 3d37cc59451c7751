# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a plain VM says, from a socket; what it is started from. (The machine itself: tests/scenario/test_bench.py.)"""

import base64
import json
import socket
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvmtool.config import load_settings
from cvmtool.errors import ConfigError, CvmError, FormatError, HostError, JobError
from cvmtool.flows import benchplain
from cvmtool.flows.benchplain import run_plain
from cvmtool.formats.control import LogRecord, Stream
from cvmtool.image.initrd import list_cpio
from tests.unit.flows.runs import prepared_job

RECORD = LogRecord(stream=Stream.STDOUT, microseconds=7, data=b'{"phase": "compute"}\n')


def line(**fields: object) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def listened(said: bytes, *, boot_seconds=5.0):
    """Have a machine answer the first knock with `said` and end."""
    here, there = socket.socketpair()

    def speak() -> None:
        with there:
            there.recv(1)
            there.sendall(said)

    machine = threading.Thread(target=speak)
    machine.start()
    try:
        with here:
            return benchplain._listen(here, time.monotonic(), boot_seconds)
    finally:
        machine.join()


def test_a_run_is_told_line_by_line():
    log = base64.b64encode(RECORD.encode()).decode()
    file = [line(file="model"), line(data="AAAA")]
    watch = listened(b"".join([line(started=True), line(log=log), line(ended=0), *file, line(done=True)]))
    assert watch.records == (RECORD,)
    assert watch.start >= 0
    assert watch.run >= 0
    assert watch.export >= 0


def test_a_container_that_fails_is_an_error_with_what_it_said():
    log = base64.b64encode(LogRecord(stream=Stream.STDERR, microseconds=7, data=b"no data\n").encode()).decode()
    with pytest.raises(JobError, match="ended with 3 in a plain VM") as failed:
        listened(line(started=True) + line(log=log) + line(ended=3))
    assert "no data" in failed.value.detail


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"", HostError),
        (line(started=True), HostError),
        (b"no json\n", FormatError),
        (b"[1]\n", FormatError),
        (b"[" * 100_000 + b"\n", FormatError),
        (line(log="%"), FormatError),
        (b"x" * (1 << 20 | 1), FormatError),
    ],
)
def test_what_is_no_run(said, error):
    with pytest.raises(error):
        listened(said)


@given(st.binary(max_size=200))
@settings(max_examples=50)
def test_any_bytes_end_in_a_deliberate_error(said):
    with pytest.raises(CvmError):
        listened(said)


def test_a_machine_that_says_nothing_is_given_up():
    here, there = socket.socketpair()
    with here, there, pytest.raises(HostError, match="said nothing"):
        list(benchplain._lines(here, 0.3, 1.0))


def test_another_init_lies_behind_the_image_s_own_initrd(tmp_path):
    prepared = prepared_job(tmp_path, load_settings())
    own = prepared.bundle.initrd.read_bytes()
    prepared.bundle.initrd.write_bytes(own + b"x" * (1 - len(own) % 4))
    own = prepared.bundle.initrd.read_bytes()
    made = benchplain._initrd(prepared)
    start = -(-len(own) // 4) * 4
    assert (made[: len(own)], set(made[len(own) : start])) == (own, {0} if start > len(own) else set())
    assert list_cpio(made[start:]).keys() >= {"init", "plain.py", "manifest.json"}


def test_another_host_sees_nothing_in_clear(tmp_path, monkeypatch):
    settings = load_settings()

    class Elsewhere:
        local, name = False, "lab"
        closed = False

        def close(self) -> None:
            Elsewhere.closed = True

    monkeypatch.setattr(benchplain, "open_host", lambda _settings: Elsewhere())
    with pytest.raises(ConfigError, match="host is lab; this machine is required"):
        run_plain(prepared_job(tmp_path, settings), "bench-1", settings)
    assert Elsewhere.closed
