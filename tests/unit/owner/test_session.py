# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cvmtool.dryrun.faults import REFUSALS, Fault
from cvmtool.errors import AppraisalError, CvmError, FormatError, FreshnessError, VerificationError
from cvmtool.formats.channel import find_last_open
from cvmtool.owner.policy import RootKind
from cvmtool.owner.session import judge_evidence
from tests import fakes
from tests.fakes.guest import OWNER, FakeGuest

NOW = datetime.now(UTC)


@pytest.fixture
def guest(tmp_path):
    return FakeGuest(tmp_path)


def answered(guest, session):
    found = find_last_open(session.challenge())
    return guest.answer(found[0])


def test_an_honest_guest_is_verified(guest):
    session = guest.session()
    verified = session.judge(answered(guest, session), NOW)
    assert verified.simulated
    assert verified.hpke_key == guest.keys.hpke_key
    assert verified.ssh_host_key == guest.keys.ssh_host_key
    assert verified.receipt_key == guest.keys.receipt_key
    assert verified.host_data == guest.manifest.host_data


def test_the_challenge_names_nonce_owner_and_job(guest):
    challenge, _ = find_last_open(guest.session().challenge())
    assert challenge.nonce == fakes.NONCE
    assert challenge.owner_key == OWNER.public
    assert challenge.manifest_sha256 == guest.manifest.sha256


def test_a_nonce_has_32_bytes(guest):
    for size in (0, 31, 33):
        with pytest.raises(ValueError, match="32"):
            guest.session(bytes(size))


def test_out_of_order_is_a_bug_and_no_decision(guest):
    session = guest.session()
    with pytest.raises(RuntimeError):
        session.judge(guest.answer(find_last_open(guest.session().challenge())[0]), NOW)
    evidence = answered(guest, session)
    with pytest.raises(RuntimeError):
        session.challenge()
    session.judge(evidence, NOW)
    with pytest.raises(RuntimeError):
        session.judge(evidence, NOW)


def test_a_refused_session_does_not_judge_again(guest):
    session = guest.session()
    evidence = answered(guest, session)
    with pytest.raises(FreshnessError):
        session.judge(answered(guest, guest.session(b"o" * 32)), NOW)
    with pytest.raises(RuntimeError):
        session.judge(evidence, NOW)


def test_evidence_of_another_session_is_stale(guest):
    old = answered(guest, guest.session(b"o" * 32))
    session = guest.session()
    session.challenge()
    with pytest.raises(FreshnessError) as refusal:
        session.judge(old, NOW)
    assert refusal.value.exit_code == 7


@pytest.mark.parametrize("key", ["ssh_host_key", "hpke_key", "receipt_key"])
def test_a_key_that_the_report_does_not_bind_is_stale(guest, key):
    session = guest.session()
    with pytest.raises(FreshnessError):
        session.judge(replace(answered(guest, session), **{key: b"m" * 32}), NOW)


def test_a_guest_of_another_job_is_refused(guest, tmp_path):
    other = FakeGuest(tmp_path / "other", manifest=replace(guest.manifest, salt="99" * 32))
    session = guest.session()
    with pytest.raises(AppraisalError) as refusal:
        session.judge(answered(other, session), NOW)
    assert "host-data" in {finding.code for finding in refusal.value.findings}


def test_a_policy_for_hardware_refuses_a_simulated_guest(guest):
    session = guest.session(policy=guest.policy(roots=RootKind.AMD, simulated_root=None))
    with pytest.raises(VerificationError) as refusal:
        session.judge(answered(guest, session), NOW)
    assert refusal.value.exit_code == 5


def test_the_time_decides_about_certificates(guest):
    session = guest.session()
    with pytest.raises(VerificationError):
        session.judge(answered(guest, session), NOW + timedelta(days=365 * 40))


@pytest.mark.parametrize("fault", REFUSALS)
def test_every_fault_of_the_processor_meets_its_refusal(tmp_path, fault):
    guest = FakeGuest(tmp_path, fault=fault)
    if fault is Fault.REPLAYED_REPORT:
        answered(guest, guest.session(b"o" * 32))
    session = guest.session()
    with pytest.raises(CvmError) as refusal:
        session.judge(answered(guest, session), NOW)
    assert refusal.value.exit_code == REFUSALS[fault].exit_code


def test_a_damaged_certificate_table_is_a_format_error(guest):
    session = guest.session()
    evidence = answered(guest, session)
    with pytest.raises(FormatError):
        session.judge(replace(evidence, cert_table=evidence.cert_table[:40]), NOW)


def test_no_certificates_at_all_is_not_genuine(guest):
    session = guest.session()
    with pytest.raises((VerificationError, AppraisalError)):
        session.judge(replace(answered(guest, session), cert_table=b""), NOW)


def test_a_saved_case_is_decided_the_same_again(guest):
    session = guest.session()
    evidence = answered(guest, session)
    first = session.judge(evidence, NOW)
    bound = {"policy": guest.policy(), "nonce": fakes.NONCE, "host_data": guest.manifest.host_data}
    assert judge_evidence(evidence, at=NOW, **bound).checks == first.checks
    with pytest.raises(FreshnessError):
        judge_evidence(evidence, at=NOW, **{**bound, "nonce": b"o" * 32})
