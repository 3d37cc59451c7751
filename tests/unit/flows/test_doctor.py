# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What the owner adds to a diagnosis: firmware, floors, libvirt, and which machine it is."""

import dataclasses
import hashlib
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cvmtool.config import load_settings
from cvmtool.errors import ConfigError, HostError
from cvmtool.flows import doctor
from cvmtool.flows.hosts import Host
from cvmtool.formats.manifest import Artefact
from cvmtool.formats.tcb import Cpuid
from cvmtool.host.capabilities import HostCapabilities
from cvmtool.host.doctor.texts import parse_platform_status
from cvmtool.host.files import LocalFiles
from cvmtool.host.store import Store
from cvmtool.image.bundle import MANIFEST_FILE
from tests.unit.formats.test_manifest import MANIFEST
from tests.unit.measure.test_ovmf import SECTIONS, firmware, metadata

GENOA = Cpuid(family=0x19, model=0x11, stepping=1)
GOOD_TCB = bytes([10, 0, 0, 0, 0, 0, 27, 88])


class Libvirt:
    """The libvirt of a host, with or without KVM."""

    def __init__(self, security=frozenset({"sev", "sev-snp"})):
        self._security = security
        self.closed = 0

    def version(self):
        return (11, 3, 0)

    def capabilities(self, *, virt_type):
        assert virt_type == "kvm"
        if self._security is None:
            raise HostError("no KVM")
        return HostCapabilities(
            emulator="/usr/bin/qemu-system-x86_64",
            machine="pc-q35-10.0",
            cpus=frozenset(),
            launch_security=self._security,
            cbitpos=51,
            reduced_phys_bits=1,
            max_es_guests=99,
        )

    def close(self):
        self.closed += 1


def host(libvirt, tmp_path, *, local):
    files = LocalFiles()
    return Host(
        name="h",
        uri="qemu:///system" if local else "qemu+ssh://h/system",
        hypervisor=libvirt,
        files=files,
        machines=str(tmp_path),
        store=Store(files, str(tmp_path), uploader="u", locks=tmp_path),
        local=local,
    )


def examine(reach, *, named=None, dry_run=True):
    settings = dataclasses.replace(load_settings(), host=named)
    return doctor.examine(settings, dry_run=dry_run, step=lambda text: None, reach=reach)


def lines(found):
    return {line.code: line for line in found.lines}


def test_libvirt_is_asked_what_it_starts_under_kvm(tmp_path):
    libvirt = Libvirt()
    answer = doctor._ask_libvirt(host(libvirt, tmp_path, local=True))
    assert (answer.version, answer.launch_security) == ((11, 3, 0), {"sev", "sev-snp"})


def test_a_libvirt_without_kvm_offers_no_launch_security(tmp_path):
    assert doctor._ask_libvirt(host(Libvirt(None), tmp_path, local=True)).launch_security == frozenset()


def test_a_missing_binding_says_how_it_is_installed(tmp_path):
    def nothing(settings):
        raise ConfigError("libvirt-python is not installed", hint="pip install 'cvmtool[host]'")

    evidence = lines(examine(nothing))["libvirt"].evidence
    assert evidence == "libvirt: libvirt-python is not installed; pip install 'cvmtool[host]'"


def test_the_connection_is_closed(tmp_path):
    libvirt = Libvirt()
    assert lines(examine(lambda settings: host(libvirt, tmp_path, local=True)))["libvirt"].verdict == "ok"
    assert libvirt.closed == 1


def test_a_host_whose_files_are_nowhere_is_an_error_and_let_go(tmp_path):
    libvirt = Libvirt()
    with pytest.raises(HostError, match="cannot be looked at"):
        examine(lambda settings: host(libvirt, tmp_path, local=False))
    assert libvirt.closed == 1


def test_this_machine_without_libvirt_is_still_read(tmp_path):
    def nothing(settings):
        raise HostError("libvirt does not answer", detail="Failed to connect socket")

    found = examine(nothing)
    told = lines(found)
    assert told["libvirt"].verdict == "fail"
    assert "Failed to connect socket" in told["libvirt"].evidence
    assert found.best is None
    assert found.obstacles["dry-run-tcg"].code == "libvirt"
    assert told["libvirt"].remedy
    assert told["memory"].verdict == "ok"


@pytest.mark.parametrize("error", [HostError("nothing answers"), ConfigError("no host of that name")])
def test_another_machine_that_cannot_be_reached_is_an_error(error):
    def nothing(settings):
        raise error

    with pytest.raises(type(error)):
        examine(nothing, named="far-away")


def bundle(folder, data):
    folder.mkdir(parents=True)
    part = Artefact(file="OVMF.fd", sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    (folder / MANIFEST_FILE).write_bytes(dataclasses.replace(MANIFEST, firmware=part).encode())
    (folder / "OVMF.fd").write_bytes(data)


WITHOUT_HASHES = firmware(meta=metadata(SECTIONS[:3]), table=None)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (firmware(), ""),
        (WITHOUT_HASHES, "no measured page for kernel hashes"),
        (bytes(8192), "firmware has no"),
    ],
)
def test_the_firmware_of_an_image_is_looked_at(tmp_path, data, problem):
    bundle(tmp_path / "base", data)
    (found,) = doctor.image_firmware(tmp_path)
    assert found.path == str(tmp_path / "base/OVMF.fd")
    assert found.problem == problem or (problem and found.problem.startswith(problem))


def test_an_image_that_is_damaged_and_none_at_all(tmp_path):
    assert doctor.image_firmware(tmp_path) == ()
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / MANIFEST_FILE).write_bytes(b"{}")
    assert doctor.image_firmware(tmp_path)[0].problem
    bundle(tmp_path / "gone", firmware())
    (tmp_path / "gone/OVMF.fd").unlink()
    assert [bool(item.problem) for item in doctor.image_firmware(tmp_path)] == [True, True]


def status(current, reported):
    return parse_platform_status(struct.pack("<BBBBIII8s8s", 1, 55, 1, 1, 40, 0, 0, current, reported))


def test_floors():
    old = bytes([9, 0, 0, 0, 0, 0, 23, 88])
    assert doctor.tcb_shortfalls(status(GOOD_TCB, GOOD_TCB), GENOA) == ()
    (short,) = doctor.tcb_shortfalls(status(GOOD_TCB, old), GENOA)
    assert short.startswith("reported snp is 23, AMD-SB-3020 requires 27")
    assert doctor.tcb_shortfalls(status(old, old), GENOA) == (short,)


@pytest.mark.parametrize(
    ("found", "cpuid"),
    [
        (None, GENOA),
        (status(GOOD_TCB, GOOD_TCB), None),
        (status(GOOD_TCB, GOOD_TCB), Cpuid(family=6, model=143, stepping=8)),
        (status(bytes([1] * 8), GOOD_TCB), GENOA),  # reserved bytes that are not zero
    ],
)
def test_no_floors_without_a_tcb_that_is_understood(found, cpuid):
    assert doctor.tcb_shortfalls(found, cpuid) is None


class KeyService(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path.endswith("/cert_chain") else 404)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"chain")

    def log_message(self, *args):
        pass


def test_the_key_service_is_asked_once(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), KeyService)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    real = doctor.KeyService
    monkeypatch.setattr(doctor, "KeyService", lambda **named: real(f"http://127.0.0.1:{server.server_port}", **named))
    assert doctor._ask_key_service().value == "answers (5 bytes of certificates)"
    server.shutdown()
    server.server_close()
    claim = doctor._ask_key_service()
    assert claim.value is None
    assert "not reachable from here" in claim.problem
