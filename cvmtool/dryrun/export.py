# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Write simulated launches, honest and faulty, as files for other people's verifiers.

Zone: dryrun (simulated; never confidential). Writes one folder.

A folder a fault: report.bin (1184 bytes), vcek.der, ask.der, ark.der, crl.der (where it is not withheld), and expected.json:
what a verifier that is given this fake root must find, and what it has to be told (measurement, host data, report data).
The bytes are AMD's in everything but the root, so a verifier that disagrees has found a fault, in itself or here.
"""

from __future__ import annotations

import json
from pathlib import Path

from cvmtool.dryrun.amd import FakeAmd
from cvmtool.dryrun.faults import REFUSALS, Fault
from cvmtool.dryrun.psp import LaunchFacts, SimulatedPsp
from cvmtool.formats.certtable import CertKind, parse_cert_table
from cvmtool.formats.reportmsg import ReportRequest

REPORT_FILE = "report.bin"
EXPECTED_FILE = "expected.json"
CERTIFICATE_FILES = {
    CertKind.VCEK: "vcek.der",
    CertKind.ASK: "ask.der",
    CertKind.ARK: "ark.der",
    CertKind.CRL: "crl.der",
}
EXPECTED_SCHEMA = "cvmtool/simulated-case/v1"
_EARLIER = b"\x01" * 64
_VERDICTS = {5: "not-genuine", 6: "refused", 7: "stale"}


def export_case(
    folder: Path, amd: FakeAmd, facts: LaunchFacts, fault: Fault, *, report_data: bytes, version: int = 5
) -> Path:
    """Write one launch with `fault` over `report_data` (64 bytes) below `folder`; return its folder.

    Raises:
        FormatError, ConfigError: as `SimulatedPsp`.
        OSError: the folder cannot be written.
    """
    psp = SimulatedPsp(amd, facts, fault, version=version)
    if fault is Fault.REPLAYED_REPORT:
        psp.report(ReportRequest(report_data=_EARLIER))
    report = psp.report(ReportRequest(report_data=report_data))
    case = folder / f"{amd.line.lower()}-v{version}-{fault}"
    case.mkdir(parents=True, exist_ok=True)
    (case / REPORT_FILE).write_bytes(report)
    table = parse_cert_table(psp.table)
    for kind, name in CERTIFICATE_FILES.items():
        blob = table.get(kind)
        if blob is not None:
            (case / name).write_bytes(blob)
    expected = _expected(amd, facts, fault, report_data=report_data, version=version)
    (case / EXPECTED_FILE).write_text(json.dumps(expected, indent=1) + "\n", "utf-8")
    return case


def export_cases(
    folder: Path, amd: FakeAmd, facts: LaunchFacts, *, report_data: bytes, version: int = 5
) -> tuple[Path, ...]:
    """Write a launch for each fault and an honest one; return their folders.

    Raises:
        FormatError, ConfigError, OSError: as `export_case`.
    """
    return tuple(export_case(folder, amd, facts, fault, report_data=report_data, version=version) for fault in Fault)


def _expected(
    amd: FakeAmd, facts: LaunchFacts, fault: Fault, *, report_data: bytes, version: int
) -> dict[str, str | int | bool]:
    """Return what the case is and must meet. The trusted root is the one to be given; `unknown-root` shows another."""
    refusal = REFUSALS.get(fault)
    return {
        "schema": EXPECTED_SCHEMA,
        "simulated": True,
        "product": str(amd.line),
        "report_version": version,
        "fault": str(fault),
        "attack": "none" if refusal is None else refusal.attack,
        "verdict": "accepted" if refusal is None else _VERDICTS[refusal.exit_code],
        "exit_code": 0 if refusal is None else refusal.exit_code,
        "check": "" if refusal is None else refusal.code,
        "trusted_root_sha256": amd.root_fingerprint.hex(),
        "measurement": facts.digest().hex(),
        "host_data": facts.host_data.hex(),
        "report_data": report_data.hex(),
    }
