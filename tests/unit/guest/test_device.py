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
from cvmtool.guest import device
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


class FakeTsm:
    """/sys/kernel/config/tsm/report, as Documentation/ABI/testing/configfs-tsm-report describes it."""

    def __init__(self, *, auxblob=b"", provider="sev_guest", floor=0, outblob=None):
        self.auxblob, self.provider, self.floor, self.outblob = auxblob, provider, floor, outblob
        self.entries = {}
        self.made = 0
        self.other_writer = lambda entry: None

    def is_dir(self):
        return True

    def __truediv__(self, name):
        return FakeEntry(self, name)


class FakeEntry:
    def __init__(self, tsm, name):
        self.tsm, self.name = tsm, name
        self.generation, self.inblob = 0, b""

    def mkdir(self):
        assert self.name not in self.tsm.entries
        self.tsm.entries[self.name] = self
        self.tsm.made += 1

    def rmdir(self):
        del self.tsm.entries[self.name]

    def __truediv__(self, attribute):
        assert self.name in self.tsm.entries
        return FakeAttribute(self, attribute)


class FakeAttribute:
    def __init__(self, entry, name):
        self.entry, self.name = entry, name

    def write_text(self, text, encoding):
        self.write_bytes(text.encode(encoding))

    def write_bytes(self, data):
        entry = self.entry
        if self.name == "privlevel":
            if int(data) < entry.tsm.floor:
                raise OSError(errno.EINVAL, "privlevel below the floor")
        elif self.name == "inblob":
            assert len(data) == 64
            entry.inblob = data
        else:
            raise PermissionError(self.name)
        entry.generation += 1

    def read_text(self, encoding):
        return {"generation": f"{self.entry.generation}\n", "provider": f"{self.entry.tsm.provider}\n"}[self.name]

    def read_bytes(self):
        tsm = self.entry.tsm
        if self.name == "auxblob":
            if tsm.auxblob is None:
                raise FileNotFoundError(self.name)
            return tsm.auxblob
        tsm.other_writer(self.entry)
        return tsm.outblob or report(self.entry.inblob, HOST)


def use(paths, **changes):
    fields = {name: getattr(paths, name) for name in device.Paths.__slots__}
    return device.Paths(**{**fields, **changes})


def test_configfs_gives_report_and_certificates(paths):
    tsm = FakeTsm(auxblob=b"table")
    raw = device.get_report(DATA, use(paths, tsm=tsm))
    assert (raw.report_data, raw.host_data, raw.cert_table) == (DATA, HOST, b"table")
    assert tsm.entries == {}


@pytest.mark.parametrize("auxblob", [None, b"", b"x" * 32_769], ids=["absent", "empty", "too much"])
def test_certificates_are_a_convenience(paths, auxblob):
    assert device.get_report(DATA, use(paths, tsm=FakeTsm(auxblob=auxblob))).cert_table == b""


def test_each_request_has_a_directory_of_its_own(paths):
    tsm = FakeTsm()
    names = []
    tsm.other_writer = lambda entry: names.append(entry.name)
    device.get_report(DATA, use(paths, tsm=tsm))
    device.get_report(DATA, use(paths, tsm=tsm))
    assert len(set(names)) == 2


def test_report_that_another_writer_may_have_changed_is_asked_for_again(paths):
    tsm = FakeTsm()

    def interfere_once(entry):
        if tsm.made == 1:
            entry.generation += 1

    tsm.other_writer = interfere_once
    assert device.get_report(DATA, use(paths, tsm=tsm)).report_data == DATA
    assert tsm.made == 2


@pytest.mark.parametrize(
    "changes",
    [{"provider": "tdx_guest"}, {"floor": 1}, {"outblob": report(bytes(64), HOST)}, {"outblob": b"short"}],
    ids=["another processor", "privilege floor", "another request's report", "another size"],
)
def test_configfs_that_does_not_answer_is_given_up_after_five_attempts(paths, changes):
    tsm = FakeTsm(**changes)
    with pytest.raises(FreshnessError if changes.get("outblob") == report(bytes(64), HOST) else HostError):
        device.get_report(DATA, use(paths, tsm=tsm))
    assert (tsm.made, tsm.entries) == (5, {})


def test_configfs_that_fails_is_never_replaced_by_the_simulated_port(paths):
    paths.cmdline.write_text("console=ttyS0 cvmtool.dryrun=1\n")
    with pytest.raises(HostError), Psp(paths) as psp:
        device.get_report(DATA, use(paths, tsm=FakeTsm(provider="tdx_guest")))
    assert psp.requests == []


@pytest.mark.vectors
def test_real_configfs_blobs(paths):
    need()
    outblob, auxblob = read("veraison/tsm-outblob.bin"), read("veraison/tsm-auxblob-certtable.bin")
    raw = device.get_report(outblob[0x50:0x90], use(paths, tsm=FakeTsm(outblob=outblob, auxblob=auxblob)))
    assert (raw.report, raw.cert_table) == (outblob, auxblob)
    padded = auxblob.ljust(16_384, b"\0")
    assert device._trim_table(padded) == auxblob


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
