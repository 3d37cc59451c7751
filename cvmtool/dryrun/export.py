# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Write simulated launches, honest and faulty, as files for other people's verifiers.

Zone: dryrun (simulated; never confidential). Writes one folder.

A folder a launch: report.bin (1184 bytes), vcek.der, ask.der, ark.der, crl.der (where it is not withheld), and expected.json:
what a verifier that is given this fake root must find, and what it has to be told (time, measurement, host data, report data).
The bytes are AMD's in everything but the root, so a verifier that disagrees has found a fault, in itself or here.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from cvmtool.dryrun.amd import FakeAmd
from cvmtool.dryrun.faults import REFUSALS, Fault
from cvmtool.dryrun.psp import LaunchFacts, SimulatedPsp
from cvmtool.formats.certtable import CertKind, parse_cert_table
from cvmtool.formats.reportmsg import ReportRequest

REPORT_FILE = "report.bin"
EXPECTED_FILE = "expected.json"
README_FILE = "README.txt"
CERTIFICATE_FILES = {
    CertKind.VCEK: "vcek.der",
    CertKind.ASK: "ask.der",
    CertKind.ARK: "ark.der",
    CertKind.CRL: "crl.der",
}
EXPECTED_SCHEMA = "cvmtool/simulated-case/v1"
README = """\
SIMULATED / NOT CONFIDENTIAL

Launches of a guest by a simulated AMD secure processor, for trying verifiers of SEV-SNP attestation reports. Made by
`cvmtool drill export`. No report here was signed by AMD: the roots were made for this folder, their keys were kept
nowhere, and nothing that is endorsed by them is confidential. Never trust them for anything but this test.

A folder a launch, LINE-vVERSION-FAULT: the product line, the version of the report, and what is wrong (none: nothing).

  report.bin      ATTESTATION_REPORT, 1184 bytes as the guest got them
  vcek.der        certificate of the key that signed it, as the host shows it
  ask.der         intermediate, as the host shows it
  ark.der         root, as the host shows it
  crl.der         revocation list of the root; not there where the host withholds it
  expected.json   what is wrong, what a verifier is told, and what it must find

expected.json:

  product, report_version, fault, attack     what the launch is
  trusted_root_sha256                        SHA-256 (DER) of the root to trust; fault unknown-root shows another one
  at                                         verify as of this time: certificates and lists expire
  measurement, host_data, report_data        what the owner expects, hex
  verdict                                    accepted; not-genuine (chain, signature, binding); refused (policy); stale
  exit_code, check                           how cvmtool ends (0, 5, 6, 7) and the check of its that fails

A policy that accepts the honest launches: product lines Milan, Genoa and Turin; the measurement and host data of
expected.json; no debugging, no migration agent; VMPL 0; report version 3 or later; a revocation list is required; the
memory alias check is complete; and floors for the TCB that CVE fixes ask for (fault old-tcb is below all of them).

cvmtool itself:

  cvmtool attest show genoa-v5-none
"""
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
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "trusted_root_sha256": amd.root_fingerprint.hex(),
        "measurement": facts.digest().hex(),
        "host_data": facts.host_data.hex(),
        "report_data": report_data.hex(),
    }
