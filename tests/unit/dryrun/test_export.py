# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What is exported is decided as it says, from the files alone. (openssl has its say in test_amd.)"""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from cvmtool.cli.attest import app
from cvmtool.dryrun.export import CERTIFICATE_FILES, export_case, export_cases
from cvmtool.dryrun.faults import Fault
from cvmtool.formats.report import parse_report
from cvmtool.formats.tcb import ProductLine
from cvmtool.owner.amdroots import SimulatedRoot
from cvmtool.owner.policy import baseline
from cvmtool.owner.policyfile import encode_policy
from tests import fakes

DATA = bytes(range(64))


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    return {path.name: path for path in export_cases(folder, fakes.fake_amd(), fakes.FACTS, report_data=DATA)}


def decide(case):
    """The verdict of `attest verify` on the files of a case, told what expected.json tells."""
    expected = json.loads((case / "expected.json").read_text())
    policy = replace(
        baseline(
            roots=SimulatedRoot(bytes.fromhex(expected["trusted_root_sha256"])),
            measurements=frozenset({bytes.fromhex(expected["measurement"])}),
            host_data=frozenset({bytes.fromhex(expected["host_data"])}),
        ),
        products=frozenset(ProductLine),
        allow_milan=True,
    )
    (case / "policy.toml").write_text(encode_policy(policy))
    files = [word for name in ("ask.der", "ark.der") for word in ("--chain", str(case / name))]
    files += ["--crl", str(case / "crl.der")] if (case / "crl.der").exists() else []
    arguments = ["verify", str(case / "report.bin"), "--vek", str(case / "vcek.der"), *files]
    arguments += ["--policy", str(case / "policy.toml"), "--report-data", expected["report_data"], "--json"]
    result = CliRunner().invoke(app, arguments)
    failed = [check["code"] for check in json.loads(result.stdout)["checks"] if not check["passed"]]
    return expected, json.loads(result.stdout)["verdict"], result.exit_code, failed


@pytest.mark.parametrize("fault", Fault)
def test_each_case_is_decided_as_it_says(cases, fault):
    expected, verdict, exit_code, failed = decide(cases[f"genoa-v5-{fault}"])
    assert (verdict, exit_code) == (expected["verdict"], expected["exit_code"])
    assert expected["fault"] == fault
    # The host's own HOST_DATA is compared with the policy's here, and with the job's in a run.
    assert [code.removesuffix("-allowed") for code in failed] == ([] if fault is Fault.NONE else [expected["check"]])


@pytest.mark.parametrize("line", ProductLine)
@pytest.mark.parametrize("version", [3, 5])
def test_every_line_and_version_is_accepted(tmp_path, line, version):
    amd = fakes.fake_amd(line)
    case = export_case(tmp_path, amd, fakes.FACTS, Fault.NONE, report_data=DATA, version=version)
    _, verdict, _, failed = decide(case)
    assert (verdict, failed) == ("accepted", [])
    assert parse_report((case / "report.bin").read_bytes()).version == version


def test_a_withheld_list_is_withheld_and_the_rest_is_there(cases):
    names = {path.name for path in cases["genoa-v5-missing-crl"].iterdir()}
    assert "crl.der" not in names
    assert names >= {"report.bin", "expected.json", *CERTIFICATE_FILES.values()} - {"crl.der"}
