# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A simulated launch on a fake AMD, and evidence that an honest guest would show of it."""

import secrets
from datetime import UTC, datetime

import pytest

from cvmtool.dryrun.amd import FakeAmd
from cvmtool.dryrun.faults import Fault
from cvmtool.dryrun.psp import LaunchFacts, SimulatedPsp
from cvmtool.formats.certtable import CertKind, parse_cert_table
from cvmtool.formats.evidence import Evidence, report_data
from cvmtool.formats.reportmsg import ReportRequest
from cvmtool.formats.tcb import ProductLine
from cvmtool.measure.hashes import kernel_hashes
from cvmtool.owner.amdroots import SimulatedRoot
from cvmtool.owner.verify import certificates_of, verify_report
from tests.unit.measure.test_ovmf import firmware

HOST_DATA = b"H" * 32
NONCE = b"N" * 32
KEYS = {"ssh_host_key": b"S" * 32, "hpke_key": b"P" * 32, "receipt_key": b"R" * 32}
FACTS = LaunchFacts(
    firmware=firmware(pages=2),
    hash_table=kernel_hashes(b"kernel", b"initrd", "quiet cvmtool.dryrun=1").table(),
    vcpus=2,
    cpu="EPYC-Genoa",
    host_data=HOST_DATA,
    policy=0x30000,
    report_id=b"I" * 32,
)

_MADE: dict[ProductLine, FakeAmd] = {}


def fake_amd(line: ProductLine = ProductLine.GENOA) -> FakeAmd:
    """One a line for the whole run: two RSA-4096 keys take a second."""
    if line not in _MADE:
        _MADE[line] = FakeAmd.temporary(line)
    return _MADE[line]


@pytest.fixture(scope="session", params=ProductLine)
def amd(request) -> FakeAmd:
    return fake_amd(request.param)


@pytest.fixture(scope="session")
def genoa() -> FakeAmd:
    return fake_amd()


def evidence(psp: SimulatedPsp, nonce: bytes = NONCE) -> Evidence:
    """What an agent shows that believes whatever report it gets; the real one checks first."""
    data = report_data(nonce=nonce, host_data=HOST_DATA, **KEYS)
    return Evidence(report=psp.report(ReportRequest(report_data=data)), cert_table=psp.table, **KEYS)


def verified(amd: FakeAmd, shown: Evidence):
    table = parse_cert_table(shown.cert_table)
    root = SimulatedRoot(amd.root_fingerprint)
    return verify_report(shown.report, certificates_of(table), root, datetime.now(UTC), table.get(CertKind.CRL))


def launch(amd: FakeAmd, fault: Fault = Fault.NONE, **facts) -> Evidence:
    from dataclasses import replace

    psp = SimulatedPsp(amd, replace(FACTS, **facts), fault)
    if fault is Fault.REPLAYED_REPORT:
        evidence(psp, secrets.token_bytes(32))
    return evidence(psp)
