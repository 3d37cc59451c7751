# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A saved refusal is decided again, the same way; an edited one is not mistaken for it."""

import json
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from cvmtool.cli.attest import app
from cvmtool.dryrun.amd import FakeAmd
from cvmtool.dryrun.faults import Fault
from cvmtool.dryrun.psp import SimulatedPsp
from cvmtool.errors import ConfigError, CvmError, FormatError
from cvmtool.flows.cases import CASE_FILE, EVIDENCE_FILE, read_case, save_case
from cvmtool.formats.evidence import Evidence, report_data
from cvmtool.formats.reportmsg import ReportRequest
from cvmtool.owner.amdroots import SimulatedRoot
from cvmtool.owner.policy import baseline
from cvmtool.owner.session import judge_evidence
from tests import fakes

NONCE = bytes(range(32))
KEYS = {name: bytes([number]) * 32 for number, name in enumerate(("ssh_host_key", "hpke_key", "receipt_key"), 1)}


@pytest.fixture(scope="module")
def amd():
    return FakeAmd.temporary()


@pytest.fixture
def refused(amd, tmp_path):
    psp = SimulatedPsp(amd, fakes.FACTS, Fault.DEBUG_POLICY)
    host_data = fakes.FACTS.host_data
    report = psp.report(ReportRequest(report_data=report_data(nonce=NONCE, host_data=host_data, **KEYS)))
    evidence = Evidence(report=report, cert_table=psp.table, **KEYS)
    policy = baseline(
        roots=SimulatedRoot(amd.root_fingerprint),
        measurements=frozenset({fakes.FACTS.digest()}),
        host_data=frozenset({host_data}),
    )
    at = datetime.now(UTC)
    with pytest.raises(CvmError) as error:
        judge_evidence(evidence, policy=policy, nonce=NONCE, host_data=host_data, at=at)
    return save_case(
        tmp_path, evidence=evidence, policy=policy, nonce=NONCE, host_data=host_data, at=at, error=error.value
    )


def test_a_saved_refusal_is_decided_the_same(refused):
    case = read_case(refused)
    with pytest.raises(CvmError) as again:
        case.decide()
    assert case.is_same(again.value)
    assert again.value.exit_code == 6


def test_the_command_ends_with_the_refusals_code(refused):
    result = CliRunner().invoke(app, ["replay", str(refused), "--json"])
    document = json.loads(result.stdout)
    assert (result.exit_code, document["verdict"], document["same_as_recorded"]) == (6, "refused", True)


def test_another_measurement_has_the_hint_to_explain_it(refused):
    hint = json.loads(CliRunner().invoke(app, ["replay", str(refused), "--json"]).stdout)["hint"]
    assert hint is None
    policy = refused / "policy.toml"
    policy.write_text(policy.read_text().replace(fakes.FACTS.digest().hex(), "ab" * 48))
    hint = json.loads(CliRunner().invoke(app, ["replay", str(refused), "--json"]).stdout)["hint"]
    assert f"cvmtool measure explain BUNDLE --report {refused} " in hint


def test_an_accepted_case_is_no_success(refused):
    # Without the policy's rule the evidence is fine: somebody edited the case, and the command must not end in 0.
    policy = refused / "policy.toml"
    policy.write_text(policy.read_text().replace('debug = "forbidden"', 'debug = "any"'))
    result = CliRunner().invoke(app, ["replay", str(refused), "--json"])
    assert result.exit_code == 5
    assert json.loads(result.stdout)["same_as_recorded"] is False


@pytest.mark.parametrize("change", [{"nonce": "00" * 32}, {"message": "another"}, {"exit_code": 5}])
def test_an_edited_case_is_told_apart(refused, change):
    path = refused / CASE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    case = read_case(refused)
    with pytest.raises(CvmError) as again:
        case.decide()
    assert not case.is_same(again.value)


@pytest.mark.parametrize(
    "change", [{"schema": "x"}, {"at": "yesterday"}, {"at": "2026-01-01T00:00:00"}, {"nonce": "0"}, {"more": 1}]
)
def test_a_malformed_case_is_a_format_error(refused, change):
    path = refused / CASE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FormatError):
        read_case(refused)


def test_damaged_evidence_is_a_format_error(refused):
    (refused / EVIDENCE_FILE).write_bytes(b"short")
    with pytest.raises(FormatError):
        read_case(refused)


def test_a_missing_case_says_where_it_would_be(tmp_path):
    with pytest.raises(ConfigError) as missing:
        read_case(tmp_path / "none")
    assert missing.value.hint
