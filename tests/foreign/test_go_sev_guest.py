# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Dry runs before Google's go-sev-guest 0.15, which is given the fake root and told what a policy says.

What it does not look at, and cvmtool does, stands in `NOT_LOOKED_AT`; what it cannot read is shown to be the same for AMD's own.
"""

import base64
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cvmtool.dryrun.export import export_case
from cvmtool.dryrun.faults import Fault
from cvmtool.formats.tcb import ProductLine
from cvmtool.owner.certificate import split_certificates
from tests import fakes, vectors

pytestmark = [pytest.mark.foreign, pytest.mark.vectors]

PROGRAM = Path(__file__).parents[2] / "build/foreign/verify"
DATA = bytes(range(64))
OURS = [(line, version, Fault.NONE) for line in ProductLine for version in (3, 5)]
FAULTS = [(ProductLine.GENOA, 5, fault) for fault in Fault if fault is not Fault.NONE]

VERIFY = {
    Fault.BAD_SIGNATURE: "signature verification error",
    Fault.OTHER_CHIP: "signature verification error",
    Fault.SWAPPED_CERTIFICATE: "signature verification error",
    Fault.ROLLED_BACK_TCB: "signature verification error",
    Fault.EXPIRED_CERTIFICATE: "certificate has expired",
    Fault.REVOKED_KEY: "ASK was revoked",
    Fault.MISSING_CRL: "could not fetch product CRL",
    Fault.UNKNOWN_ROOT: "certificate signed by unknown authority",
    Fault.OLD_REPORT_VERSION: "unknown product name",  # it knows version 2 of Milan alone
}
VALIDATE = {
    Fault.WRONG_MEASUREMENT: "report field MEASUREMENT",
    Fault.DEBUG_POLICY: "unauthorized debug",
    Fault.MIGRATABLE: "unauthorized migration agent",
    Fault.OLD_TCB: "TCB",
    Fault.VMPL: "report VMPL",
    Fault.HOST_REPORT: "report VMPL",
    Fault.WRONG_HOST_DATA: "report field HOST_DATA",
    Fault.REPLAYED_REPORT: "report field REPORT_DATA",
    Fault.WRONG_NONCE: "report field REPORT_DATA",
    Fault.SWAPPED_CERTIFICATE: "report field CHIP_ID",
    Fault.ROLLED_BACK_TCB: "does not match the TCB of the V[CL]EK certificate",
}
NOT_LOOKED_AT = {Fault.ALIAS_CHECK: "it knows no bit 6 of PLATFORM_INFO, and refuses to look at any where it is set"}

NO_TURIN = "not an AMD KDS OID: 1.3.6.1.4.1.3704.1.3.9"  # fmcSPL, which every Turin's certificate has
NO_SIENA = "could not be verified by any trusted roots"  # CPU model 0xa0 is no Genoa to it


def text(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode("ascii")


def ours(folder: Path, line: ProductLine, version: int, fault: Fault) -> dict:
    amd = fakes.fake_amd(line)
    case = export_case(folder, amd, fakes.FACTS, fault, report_data=DATA, version=version)
    expected = json.loads((case / "expected.json").read_text())
    files = {
        name: text((case / f"{name}.der").read_bytes()) for name in ("ask", "crl") if (case / f"{name}.der").exists()
    }
    return {
        "line": line,
        "report": text((case / "report.bin").read_bytes()),
        "vek": text((case / "vcek.der").read_bytes()),
        **files,
        "ark": text(amd.ark),  # unknown-root brings another
        "checkRevocations": True,
        "at": int(datetime.now(UTC).timestamp()),
        **{name: text(bytes.fromhex(expected[key])) for name, key in TOLD.items()},
        "minimumTcb": {"SnpSpl": 23} if line is ProductLine.GENOA else {},  # AMD-SB-3019
    }


TOLD = {"measurement": "measurement", "hostData": "host_data", "reportData": "report_data"}


def real(vector: vectors.ReportVector) -> dict:
    ask, ark = split_certificates(vector.certificates[1])
    return {
        "line": vector.product,
        "report": text(vector.report),
        "vek": text(vector.vek),
        "ask": text(ask),
        "ark": text(ark),
        "vlek": "SEV-VLEK" in vector.row["vek_info"],
        "at": int(vector.at.timestamp()),
    }


def ask(cases: list[dict]) -> list[dict]:
    if not PROGRAM.exists():
        pytest.skip("no foreign verifier; make foreign fetches and compiles it")
    ran = subprocess.run([PROGRAM], input=json.dumps(cases).encode(), capture_output=True, check=True, timeout=120)
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    rows = OURS + FAULTS
    return dict(zip(rows, ask([ours(folder, *row) for row in rows]), strict=True))


@pytest.mark.parametrize(("line", "version", "fault"), [row for row in OURS if row[0] is not ProductLine.TURIN])
def test_an_honest_dry_run_is_accepted(said, line, version, fault):
    assert said[line, version, fault] == {"verify": "", "validate": ""}


@pytest.mark.parametrize("version", [3, 5])
def test_it_can_read_no_turin_ours_or_amds(said, version):
    (amds,) = ask([real(vectors.report("oak-turin-v5"))])
    assert NO_TURIN in amds["verify"]
    assert said[ProductLine.TURIN, version, Fault.NONE]["verify"] == amds["verify"]


@pytest.mark.parametrize("fault", [row[2] for row in FAULTS])
def test_each_fault_is_refused_where_it_is_its_business(said, fault):
    found = said[ProductLine.GENOA, 5, fault]
    assert VERIFY.get(fault, "") in found["verify"]
    assert bool(found["verify"]) == (fault in VERIFY)
    assert VALIDATE.get(fault, "") in found["validate"]
    assert bool(found["validate"]) == (fault in VALIDATE)
    assert (fault in NOT_LOOKED_AT) != (fault in {*VERIFY, *VALIDATE})


def test_amds_own_reports_get_the_verdict_that_was_published():
    with_key = [vector for vector in vectors.reports() if vector.vek is not None]
    found = dict(zip((vector.name for vector in with_key), ask([real(vector) for vector in with_key]), strict=True))
    assert NO_TURIN in found.pop("oak-turin-v5")["verify"]
    assert NO_SIENA in found.pop("siena-bergamo-genoa-v5")["verify"]
    assert len(found) > 15
    genuine = {vector.name for vector in with_key if vector.genuine} & found.keys()
    assert {name for name, said in found.items() if not said["verify"]} == genuine
