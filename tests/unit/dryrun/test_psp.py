# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import socket
import struct
import threading
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvmtool.dryrun.faults import Fault
from cvmtool.dryrun.psp import MESSAGE_BYTES, LaunchFacts, SimulatedPsp
from cvmtool.errors import ConfigError, FormatError
from cvmtool.formats.certtable import CertKind, parse_cert_table
from cvmtool.formats.report import parse_report
from cvmtool.formats.reportmsg import KeySelection, ReportRequest, parse_response
from cvmtool.measure.hashes import kernel_hashes
from tests import fakes
from tests.unit.measure.test_ovmf import SECTIONS, firmware, metadata

ID = bytes(range(16))
REQUEST = ReportRequest(report_data=b"D" * 64, vmpl=0)


def message(request=REQUEST, identity=ID):
    return b"PSP1" + identity + (request if isinstance(request, bytes) else request.encode())


def answer(data):
    """Split an answer into id, response, certificate table and what follows."""
    assert data[:4] == b"PSP1"
    (size,) = struct.unpack_from("<I", data, 20)
    response = parse_response(data[24 : 24 + size])
    (length,) = struct.unpack_from("<I", data, 24 + size)
    end = 28 + size + length
    return data[4:20], response, data[28 + size : end], data[end:]


@pytest.fixture(scope="module")
def psp():
    return SimulatedPsp(fakes.fake_amd(), fakes.FACTS)


def test_a_report_is_of_the_launch_and_the_request(psp):
    identity, response, table, rest = answer(psp.respond(message(replace(REQUEST, vmpl=2))))
    report = parse_report(response.report)
    assert (identity, response.status, rest) == (ID, 0, b"")
    assert report.report_data == REQUEST.report_data
    assert report.vmpl == 2
    assert report.measurement == fakes.FACTS.digest()
    assert report.host_data == fakes.HOST_DATA
    assert report.policy.value == fakes.FACTS.policy
    assert report.report_id == fakes.FACTS.report_id
    assert report.version == 5
    assert {kind for kind, _ in parse_cert_table(table).entries} == {
        CertKind.VCEK,
        CertKind.ASK,
        CertKind.ARK,
        CertKind.CRL,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"firmware": firmware(pages=3)},
        {"hash_table": kernel_hashes(b"kernel", b"initrd", "quiet").table()},
        {"hash_table": b""},
        {"vcpus": 3},
        {"cpu": "EPYC-Milan"},
        {"guest_features": 0x21},
    ],
)
def test_the_digest_is_that_of_what_was_launched(changes):
    facts = replace(fakes.FACTS, **changes)
    report = parse_report(SimulatedPsp(fakes.fake_amd(), facts).report(REQUEST))
    assert report.measurement == facts.digest()
    assert report.measurement != fakes.FACTS.digest()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"firmware": b"x"}, FormatError),
        ({"hash_table": bytes(176)}, FormatError),
        ({"firmware": firmware(meta=metadata(SECTIONS[:3]))}, ConfigError),
        ({"cpu": "host"}, ConfigError),
        ({"policy": 0}, FormatError),
        ({"host_data": b"short"}, FormatError),
        ({"report_id": b"short"}, FormatError),
    ],
)
def test_a_launch_that_no_processor_would_accept_is_refused(changes, error):
    with pytest.raises(error):
        SimulatedPsp(fakes.fake_amd(), replace(fakes.FACTS, **changes))


def test_two_reports_have_two_signatures_and_one_content(psp):
    one, two = (parse_report(psp.report(REQUEST)) for _ in range(2))
    assert one.signed == two.signed
    assert one.signature_r != two.signature_r


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (REQUEST.encode()[:-1] + b"\1", 0x16),
        (bytes(64) + b"\4" + bytes(31), 0x16),
        (replace(REQUEST, key=KeySelection.VLEK).encode(), 0x27),
    ],
)
def test_a_request_that_cannot_be_met_gets_a_status_and_no_report(psp, request_bytes, status):
    identity, response, table, _ = answer(psp.respond(message(request_bytes)))
    assert (identity, response.status, response.report, table) == (ID, status, b"", b"")


@pytest.mark.parametrize("data", [b"", message()[:-1], message() + b"\0", b"PSP2" + message()[4:]])
def test_what_is_not_framed_as_a_request_is_refused(psp, data):
    with pytest.raises(FormatError):
        psp.respond(data)


class Script:
    """A stream that gives prepared pieces and keeps what was sent."""

    def __init__(self, *pieces):
        self.pieces = list(pieces)
        self.sent = b""

    def recv(self, size):
        if not self.pieces:
            return b""
        piece, rest = self.pieces[0][:size], self.pieces[0][size:]
        self.pieces[:1] = [rest] if rest else []
        return piece

    def sendall(self, data):
        self.sent += data


def served(psp, *pieces):
    """The ids of the reports that were answered, in order."""
    script = Script(*pieces)
    psp.serve(script)
    ids, data = [], script.sent
    while data:
        identity, response, _, data = answer(data)
        if response.status == 0:
            ids.append(identity)
    return ids


OTHER = bytes(range(16, 32))


@pytest.mark.parametrize(
    ("pieces", "ids"),
    [
        ([], []),
        ([message()], [ID]),
        ([message() + message(identity=OTHER)], [ID, OTHER]),
        ([bytes((byte,)) for byte in message()], [ID]),
        ([b"garbage" + message()], [ID]),
        ([b"PSP" + message()], [ID]),
        ([b"PSP1" + message()], [ID]),
        ([message()[:50], message()], [ID]),
        ([b"x" * 100_000, message()], [ID]),
        ([message() + b"PS", b"P1" + message(identity=OTHER)[4:]], [ID]),
        ([message() + b"PS", message(identity=OTHER)[2:]], [ID, OTHER]),
        ([message()[:-1]], []),
    ],
)
def test_serving_survives_garbage(psp, pieces, ids):
    if pieces and pieces[-1].startswith(b"P1"):
        ids = [ID, OTHER]
    assert served(psp, *pieces) == ids


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=200), max_size=4))
def test_a_request_behind_any_garbage_is_answered(garbage):
    psp = SimulatedPsp(fakes.fake_amd(), fakes.FACTS)
    # The magic cannot be completed across the seam by accident: the padding is longer than a message.
    assert ID in served(psp, *filter(None, garbage), bytes(MESSAGE_BYTES), message())


def test_serving_over_a_socket_ends_with_it(psp):
    host, guest = socket.socketpair()
    thread = threading.Thread(target=psp.serve, args=(host,))
    thread.start()
    guest.sendall(message())
    received = b""
    while len(received) < 28 or len(received) < 28 + 32 + 1184 + len(psp.table):
        received += guest.recv(65536)
    assert answer(received)[0] == ID
    guest.close()
    thread.join(timeout=10)
    assert not thread.is_alive()
    host.close()


def test_a_replay_needs_an_earlier_report():
    psp = SimulatedPsp(fakes.fake_amd(), fakes.FACTS, Fault.REPLAYED_REPORT)
    first, second = (parse_report(psp.report(replace(REQUEST, report_data=bytes((n,)) * 64))) for n in (1, 2))
    assert first.report_data == second.report_data == b"\1" * 64


def test_facts_have_snp_features_by_default():
    assert LaunchFacts.__dataclass_fields__["guest_features"].default == 1
