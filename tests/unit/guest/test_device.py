# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import ctypes
import errno
import os
import struct
import threading
import tty

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError, FreshnessError, HostError
from cvmtool.formats.certtable import CertKind, parse_cert_table
from cvmtool.formats.report import parse_report
from cvmtool.guest import device
from tests.fakes.tsm import ABSENT, FakeTsm, fails
from tests.unit.guest.samples import REPORT_BYTES, report
from tests.vectors import need, read

DATA = bytes(range(64))
HOST = b"h" * 32
PORT = "org.cvmtool.psp.0"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(device, "_PAUSE_SECONDS", 0.0)


@pytest.fixture
def paths(tmp_path):
    """A machine without any attestation device."""
    for name in ("ports", "dev"):
        (tmp_path / name).mkdir()
    (tmp_path / "cmdline").write_text("console=ttyS0 quiet\n")
    return device.Paths(
        tsm=tmp_path / "tsm",
        sev_guest=tmp_path / "dev/sev-guest",
        cmdline=tmp_path / "cmdline",
        ports=tmp_path / "ports",
        dev=tmp_path / "dev",
    )


def use(paths, **changes):
    fields = {name: getattr(paths, name) for name in device.Paths.__slots__}
    return device.Paths(**{**fields, **changes})


def test_configfs_gives_report_and_certificates(paths):
    tsm = FakeTsm(auxblob=b"table")
    raw = device.get_report(DATA, use(paths, tsm=tsm))
    assert (raw.report_data, raw.host_data, raw.cert_table) == (DATA, HOST, b"table")
    assert (tsm.entries, tsm.made, tsm.reports) == ({}, 1, 1)


@pytest.mark.parametrize("auxblob", [ABSENT, b"", b"x" * 32_769], ids=["absent", "empty", "too much"])
def test_certificates_are_a_convenience(paths, auxblob):
    assert device.get_report(DATA, use(paths, tsm=FakeTsm(auxblob=auxblob))).cert_table == b""


def test_each_request_has_a_directory_of_its_own(paths):
    names = set()
    tsm = FakeTsm(before=lambda entry, attribute, verb: names.add(entry.name))
    for _ in range(3):
        device.get_report(DATA, use(paths, tsm=tsm))
    assert len(names) == 3


def once(attribute, verb, act):
    """Do something ahead of the first such access."""
    left = [act]

    def before(entry, name, how):
        if left and (name, how) == (attribute, verb):
            left.pop()(entry)

    return before


def failing(code):
    def act(_entry):
        raise fails(code)

    return act


OTHERS = bytes(64)


@pytest.mark.parametrize(
    ("attribute", "verb"),
    [("inblob", "write"), ("outblob", "read"), ("auxblob", "read")],
    ids=["between our writes", "between write and read", "between the two blobs"],
)
@pytest.mark.parametrize("data", [DATA, OTHERS], ids=["the same", "another"])
def test_what_another_writer_may_have_changed_is_asked_for_again(paths, attribute, verb, data):
    """The generation tells, even where the report itself would not."""
    tsm = FakeTsm(before=once(attribute, verb, lambda entry: entry.write("inblob", data)))
    assert device.get_report(DATA, use(paths, tsm=tsm)).report_data == DATA
    assert (tsm.made, tsm.entries) == (2, {})


def test_a_writer_who_never_rests_ends_it(paths):
    def rival(entry, attribute, verb):
        if (attribute, verb) == ("outblob", "read"):
            entry.write("inblob", OTHERS)

    tsm = FakeTsm(before=rival)
    with pytest.raises(HostError) as caught:
        device.get_report(DATA, use(paths, tsm=tsm))
    assert "generation went from 0 to 3; 2 is required" in caught.value.detail
    assert (tsm.made, tsm.entries) == (5, {})


@pytest.mark.parametrize(
    ("attribute", "verb", "code"),
    [
        ("", "mkdir", errno.EEXIST),
        ("provider", "read", errno.EIO),
        ("privlevel", "write", errno.EBUSY),
        ("inblob", "write", errno.EBUSY),
        ("inblob", "write", errno.EINTR),
        ("outblob", "read", errno.EWOULDBLOCK),
        ("outblob", "read", errno.EIO),
        ("outblob", "read", errno.ENOTTY),
        ("generation", "read", errno.EIO),
    ],
)
def test_a_failure_is_tried_again_and_a_lasting_one_given_up(paths, attribute, verb, code):
    passing = FakeTsm(before=once(attribute, verb, failing(code)))
    assert device.get_report(DATA, use(paths, tsm=passing)).report_data == DATA
    assert passing.entries == {}

    def always(entry, name, how):
        if (name, how) == (attribute, verb):
            raise fails(code)

    lasting = FakeTsm(before=always)
    with pytest.raises(HostError) as caught:
        device.get_report(DATA, use(paths, tsm=lasting))
    assert os.strerror(code) in caught.value.detail
    assert lasting.entries == {}, "no instance is left in the kernel"


def test_certificates_that_fail_to_come_cost_nothing(paths):
    tsm = FakeTsm(auxblob=b"table", before=once("auxblob", "read", failing(errno.EIO)))
    assert device.get_report(DATA, use(paths, tsm=tsm)).cert_table == b""
    assert tsm.made == 1


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"provider": "tdx_guest"}, HostError),
        ({"provider": "sev_guest2"}, HostError),
        ({"floor": 1}, HostError),
        ({"make": lambda _: report(OTHERS, HOST)}, FreshnessError),
        ({"make": lambda _: b"short"}, HostError),
        ({"make": lambda inblob: report(inblob, HOST) + b"x"}, HostError),
    ],
    ids=["another processor", "no provider of ours", "privilege floor", "another's report", "too short", "too long"],
)
def test_configfs_that_does_not_answer_is_given_up_after_five_attempts(paths, changes, error):
    tsm = FakeTsm(**changes)
    with pytest.raises(error):
        device.get_report(DATA, use(paths, tsm=tsm))
    assert (tsm.made, tsm.entries) == (5, {})


def test_the_fake_keeps_the_kernels_rules():
    """So that the tests above are about the guest, and not about a double that lets everything pass."""
    tsm = FakeTsm()
    entry = tsm / "x"
    entry.mkdir()
    with pytest.raises(OSError, match=os.strerror(errno.EEXIST)):
        (tsm / "x").mkdir()
    for attribute, data in (("inblob", b""), ("inblob", bytes(65)), ("privlevel", b"4")):
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            (entry / attribute).write_bytes(data)
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        (entry / "outblob").read_bytes()
    assert (entry / "generation").read_text("ascii") == "0\n"
    (entry / "inblob").write_bytes(DATA)
    first = (entry / "outblob").read_bytes()
    assert (entry / "outblob").read_bytes() == first
    assert tsm.reports == 1
    (entry / "privlevel").write_text("0", "ascii")
    assert (entry / "outblob").read_bytes() == first
    assert (tsm.reports, (entry / "generation").read_text("ascii")) == (2, "2\n")


def test_configfs_that_fails_is_never_replaced_by_the_simulated_port(paths):
    paths.cmdline.write_text("console=ttyS0 cvmtool.dryrun=1\n")
    with pytest.raises(HostError), Psp(paths) as psp:
        device.get_report(DATA, use(paths, tsm=FakeTsm(provider="tdx_guest")))
    assert psp.requests == []


@pytest.mark.vectors
def test_real_configfs_blobs(paths):
    """A processor's own answer to the one question that it answers, with the certificates that its host gave."""
    need()
    outblob, auxblob = read("veraison/tsm-outblob.bin"), read("veraison/tsm-auxblob-certtable.bin")
    asked = outblob[0x50:0x90]
    tsm = FakeTsm(auxblob=auxblob, make=lambda inblob: outblob if inblob == asked else report(inblob, HOST))
    raw = device.get_report(asked, use(paths, tsm=tsm))
    assert (raw.report, raw.cert_table) == (outblob, auxblob)
    assert parse_report(raw.report).report_data == asked
    assert parse_cert_table(raw.cert_table).get(CertKind.VCEK) is not None
    padded = auxblob.ljust(16_384, b"\0")
    assert device._trim_table(padded) == auxblob

    replayed = FakeTsm(make=lambda _: outblob)
    with pytest.raises(FreshnessError):
        device.get_report(DATA, use(paths, tsm=replayed))
    assert replayed.entries == {}


class FakeDriver:
    """/dev/sev-guest: `ioctl` reads and writes the caller's memory as the kernel would."""

    def __init__(self, *, certs=b"", extended=True, status=0):
        self.certs, self.extended, self.status, self.calls = certs, extended, status, []

    def __call__(self, file, number, argument, mutate):
        assert mutate
        version, request, response, _ = struct.unpack("<B7xQQQ", argument)
        assert version == 1
        self.calls.append(number)
        if number == 0xC020_5302:
            if not self.extended:
                raise OSError(errno.EIO, "no extended report")
            data = ctypes.string_at(request, 112)
            address, size = struct.unpack_from("<QI", data, 96)
            assert size % 4096 == 0
            ctypes.memmove(address, self.certs, len(self.certs))
        else:
            assert number == 0xC020_5300
            data = ctypes.string_at(request, 96)
        user_data, vmpl = struct.unpack_from("<64sI", data)
        assert vmpl == 0
        body = struct.pack("<II24x", self.status, REPORT_BYTES) + report(user_data, HOST)
        if self.status:
            body = struct.pack("<II24x", self.status, 0)
        ctypes.memmove(response, body.ljust(4000, b"\0"), 4000)
        return 0


TABLE = struct.pack(">16s", b"G" * 16) + struct.pack("<II", 48, 5) + bytes(24) + b"certs"


@pytest.mark.parametrize(
    ("driver", "table", "calls"),
    [
        (FakeDriver(certs=TABLE), TABLE, [0xC020_5302]),
        (FakeDriver(), b"", [0xC020_5302]),
        (FakeDriver(extended=False), b"", [0xC020_5302, 0xC020_5300]),
    ],
    ids=["with certificates", "no certificates", "no extended report"],
)
def test_driver_gives_a_report(paths, monkeypatch, driver, table, calls):
    paths.sev_guest.touch()
    monkeypatch.setattr(device.fcntl, "ioctl", driver)
    raw = device.get_report(DATA, paths)
    assert (raw.report_data, raw.host_data, raw.cert_table, driver.calls) == (DATA, HOST, table, calls)


def test_driver_error_status_is_no_report(paths, monkeypatch):
    paths.sev_guest.touch()
    monkeypatch.setattr(device.fcntl, "ioctl", FakeDriver(status=0x16))
    with pytest.raises(HostError) as caught:
        device.get_report(DATA, paths)
    assert "0x16" in caught.value.detail


@given(st.binary(max_size=400))
def test_table_is_cut_without_losing_a_byte_of_it(data):
    trimmed = device._trim_table(data)
    assert trimmed in {b"", data[: len(trimmed)]}


class Psp:
    """The host's end of the simulated port: a pseudo-terminal, as raw as a virtio port."""

    def __init__(self, paths, *, before=b"", answer=None):
        self.paths, self.before, self.answer = paths, before, answer or self.genuine
        self.requests = []

    def genuine(self, tag, data):
        message = struct.pack("<II24x", 0, REPORT_BYTES) + report(data, HOST)
        return tag + struct.pack("<I", len(message)) + message + struct.pack("<I", 5) + b"certs"

    def __enter__(self):
        self.host, guest = os.openpty()
        for end in (self.host, guest):
            tty.setraw(end)
        self.guest = guest
        (self.paths.ports / "vport0p2").mkdir()
        (self.paths.ports / "vport0p2/name").write_text(PORT + "\n")
        (self.paths.dev / "vport0p2").symlink_to(os.ttyname(guest))
        if self.before:
            os.write(self.host, self.before)
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(self, *_):
        os.close(self.guest)

    def serve(self):
        buffer = b""
        while True:
            try:
                buffer += os.read(self.host, 4096)
            except OSError:
                return
            while len(buffer) >= 116:
                request, buffer = buffer[:116], buffer[116:]
                self.requests.append(request)
                os.write(self.host, self.answer(request[:20], request[20:84]))


@pytest.fixture
def dry_run(paths):
    paths.cmdline.write_text("console=ttyS0 cvmtool.dryrun=1\n")
    return paths


def test_dry_run_asks_the_simulated_port(dry_run):
    with Psp(dry_run) as psp:
        raw = device.get_report(DATA, dry_run)
    assert (raw.report_data, raw.host_data, raw.cert_table) == (DATA, HOST, b"certs")
    assert psp.requests[0][:4] == b"PSP1"
    assert psp.requests[0][20:] == DATA + bytes(32)


def test_answers_to_earlier_requests_are_skipped(dry_run):
    stale = b"PSP1" + b"s" * 16 + struct.pack("<I", 40) + bytes(40) + struct.pack("<I", 0)
    with Psp(dry_run, before=stale + b"noise PSP1"):
        assert device.get_report(DATA, dry_run).report_data == DATA


@pytest.mark.parametrize("word", ["", "cvmtool.dryrun=0", "xcvmtool.dryrun=1", "cvmtool.dryrun=11"])
def test_without_the_measured_word_the_simulated_port_is_never_opened(paths, word):
    paths.cmdline.write_text(f"console=ttyS0 {word}\n")
    with Psp(paths) as psp, pytest.raises(HostError):
        device.get_report(DATA, paths)
    assert psp.requests == []


@pytest.mark.parametrize(
    "answer",
    [
        lambda tag, data: tag + struct.pack("<I", 0x7FFF_FFFF),
        lambda tag, data: tag + struct.pack("<I", 32) + struct.pack("<II24x", 0x16, 0) + bytes(4),
        lambda tag, data: tag + struct.pack("<I", 32) + struct.pack("<II24x", 0, 0x7FFF_FFFF) + bytes(4),
    ],
    ids=["huge field", "error status", "huge report"],
)
def test_malformed_answer_of_the_simulated_processor(dry_run, answer):
    with Psp(dry_run, answer=answer) as psp, pytest.raises(HostError):
        device.get_report(DATA, dry_run)
    assert len(psp.requests) == 5


def test_silent_simulated_processor_is_given_up(dry_run, monkeypatch):
    monkeypatch.setattr(device, "_PSP_SECONDS", 0.05)
    with Psp(dry_run, answer=lambda tag, data: b""), pytest.raises(HostError) as caught:
        device.get_report(DATA, dry_run)
    assert "does not answer" in caught.value.detail


def test_no_device_at_all(paths):
    with pytest.raises(HostError):
        device.get_report(DATA, paths)


def test_wrong_size_of_report_data_is_our_bug(paths):
    with pytest.raises(ValueError, match="63"):
        device.get_report(DATA[:-1], paths)


def test_raw_report_has_one_size():
    with pytest.raises(FormatError):
        device._raw(bytes(REPORT_BYTES + 1), b"")
