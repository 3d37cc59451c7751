# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A host may answer anything, or nothing: there are facts all the same, and a diagnosis that promises nothing."""

import errno
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvmtool.host.doctor.checks import diagnose
from cvmtool.host.doctor.facts import Seen
from cvmtool.host.doctor.probe import DMESG, JOURNAL, account, probe
from cvmtool.host.doctor.source import FileKind, FileStat
from tests.unit.host.doctor.recorded import OWNER_CLOCK, RecordedHost, seen

HEALTHY = seen(RecordedHost("genoa"))
ERRORS = [FileNotFoundError, PermissionError, TimeoutError, ConnectionError, NotADirectoryError]
# Such as a host would give, cut, mixed up and changed: bytes at random would rarely get past the first check.
ANSWERS = [
    RecordedHost("genoa-gpu").read(path, limit=1 << 16)
    for path in (
        "/proc/cpuinfo",
        "/proc/meminfo",
        "/proc/bus/pci/devices",
        "/proc/1234/limits",
        "/sys/fs/cgroup/misc.capacity",
    )
] + [
    (RecordedHost("genoa")._file(f"run/{name}")).read_bytes() for name in ("dmesg", "df", "date", "qemu-system-x86_64")
]
answer = st.sampled_from(ANSWERS) | st.binary(max_size=64) | st.builds(
    lambda data, at, piece: data[:at] + piece + data[at:], st.sampled_from(ANSWERS), st.integers(0, 900), st.binary(max_size=9)
)  # fmt: skip
stat = st.builds(
    FileStat,
    kind=st.sampled_from(FileKind),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 1 << 32),
    gid=st.integers(0, 1 << 32),
)


class HostileHost:
    """Answers with whatever is drawn."""

    def __init__(self, data):
        self._data = data

    def _draw(self, answers):
        drawn = self._data.draw(answers | st.sampled_from(ERRORS))
        if isinstance(drawn, type):
            raise drawn(errno.EIO, "hostile \x1b[2J")
        return drawn

    def read(self, path, *, limit, offset=0):
        return self._draw(answer)

    def list(self, path):
        return self._draw(
            st.lists(st.text(max_size=9) | st.sampled_from(["sev", "sev_snp", "x.slice", "kvm_amd"]), max_size=5)
        )

    def stat(self, path):
        return self._draw(stat)

    def run(self, command):
        return self._draw(answer)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_any_answers_give_facts_and_a_diagnosis(data):
    facts = probe(HostileHost(data), store="/var/lib/x/y", clock=lambda: OWNER_CLOCK)
    found = diagnose(Seen(host=facts, trials=HEALTHY.trials, owner=HEALTHY.owner))
    assert len(found.lines) > 30
    assert all(line.outcome.evidence for line in found.lines)


@given(st.data())
def test_any_account_is_numbers_or_an_error(data):
    try:
        uid, groups = account(HostileHost(data))
    except OSError:
        return
    assert all(isinstance(number, int) for number in (uid, *groups))


@pytest.mark.parametrize(
    ("user", "groups", "known"),
    [
        (b"0\n", b"0 27\n", (0, {0, 27})),
        (b"1000", b"", (1000, frozenset())),
        (b"", b"0", None),
        (b"-1", b"0", None),
        (b"0x0", b"0", None),
        (b"1", b"wheel", None),
        (b"1" * 12, b"0", None),
    ],
)
def test_who_we_are(user, groups, known):
    class Host:
        def run(self, command):
            return user if command.argv[1] == "-u" else groups

    if known is None:
        with pytest.raises(OSError, match="something else than numbers"):
            account(Host())
    else:
        assert account(Host()) == known


@pytest.mark.parametrize(
    ("ring", "journal", "source", "whole"),
    [
        (b"Linux version 6.12", b"Linux version 6.12", "dmesg", True),
        (b"late", b"Linux version 6.12", "journalctl -k", True),
        (b"late", b"later", "dmesg", False),
        (b"late", None, "dmesg", False),
        (None, b"Linux version 6.12", "journalctl -k", True),
    ],
)
def test_the_journal_helps_where_the_ring_has_lost_the_boot(ring, journal, source, whole):
    class Host(RecordedHost):
        def run(self, command):
            said = {DMESG: ring, JOURNAL: journal}.get(command, b"")
            if said is None:
                raise PermissionError
            return said

    log = probe(Host("genoa"), store="/x").log
    assert (log.source, log.value.whole) == (source, whole)


def test_a_store_that_is_not_there_yet_is_measured_where_it_will_be():
    asked = []

    class Host(RecordedHost):
        def run(self, command):
            asked.append(command.argv)
            return super().run(command)

    probe(Host("genoa"), store="/var/lib/cvmtool/machines/deep/down")
    assert ("df", "-Pk", "--", "/var/lib/cvmtool") in asked


def test_nothing_is_a_diagnosis_too():
    class Nothing:
        def __getattr__(self, name):
            def refuse(*args, **named):
                raise PermissionError(errno.EACCES, "Permission denied")

            return refuse

    facts = probe(Nothing(), store="/x/y")
    found = diagnose(replace(HEALTHY, host=facts))
    assert found.best is None
    assert not any(line.outcome.verdict.value == "fail" for line in found.lines)
