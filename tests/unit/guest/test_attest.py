# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
from concurrent.futures import ThreadPoolExecutor

import pytest

from cvmtool.errors import HostError
from cvmtool.formats.channel import Open, Refusal, answer_to
from cvmtool.formats.control import CLIENT_ADDRESS
from cvmtool.formats.evidence import host_data, report_data
from cvmtool.guest import attest, device
from cvmtool.guest.keys import BootKeys, authorized_key
from cvmtool.guest.shell import Shell
from tests.unit.guest.samples import report

OWNER, MANIFEST, NONCE = b"o" * 32, b"m" * 32, b"n" * 32
LAUNCHED = host_data(owner_key=OWNER, manifest_sha256=MANIFEST)


@pytest.fixture
def attestor(tmp_path, monkeypatch):
    def get_report(data, paths):
        return device.RawReport(report=report(data, LAUNCHED), cert_table=b"table")

    monkeypatch.setattr(device, "get_report", get_report)
    return attest.Attestor(BootKeys(), device.Paths(), tmp_path / "authorized_keys", Shell(allowed=True))


def challenge(**changes):
    return Open(**{"nonce": NONCE, "owner_key": OWNER, "manifest_sha256": MANIFEST, **changes})


def test_evidence_binds_nonce_keys_and_launch(attestor):
    answer = attestor.answer(challenge())
    evidence, end = answer_to(answer.line, NONCE)
    assert answer.ready
    assert end == len(answer.line)
    assert evidence.report[0x50:0x90] == report_data(
        nonce=NONCE,
        ssh_host_key=evidence.ssh_host_key,
        hpke_key=evidence.hpke_key,
        receipt_key=evidence.receipt_key,
        host_data=LAUNCHED,
    )
    assert evidence.cert_table == b"table"
    assert attestor.current.evidence == evidence
    assert attestor.current.report_data == evidence.report[0x50:0x90]


def test_only_the_launch_s_owner_may_log_in(attestor, tmp_path):
    attestor.answer(challenge())
    assert (tmp_path / "authorized_keys").read_bytes() == authorized_key(OWNER)


def test_clients_log_in_at_what_begins_after_they_were_admitted(attestor, tmp_path):
    clients = (b"c" * 32, b"d" * 32)
    attestor.answer(challenge())
    attestor.admit(clients)
    assert (tmp_path / "authorized_keys").read_bytes() == authorized_key(OWNER)
    attestor.answer(challenge(), beside=True)
    lines = [authorized_key(OWNER), *(authorized_key(key, address=CLIENT_ADDRESS) for key in clients)]
    assert (tmp_path / "authorized_keys").read_bytes() == b"".join(lines)


def test_a_session_beside_the_owner_s_is_not_the_one_that_keys_are_sealed_for(attestor):
    attestor.answer(challenge())
    before = attestor.current
    answer = attestor.answer(challenge(nonce=b"p" * 32), beside=True)
    assert answer.ready
    assert attestor.current is before


def test_answers_of_several_ports_do_not_get_in_each_other_s_way(attestor, tmp_path):
    nonces = [bytes([number]) * 32 for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda nonce: attestor.answer(challenge(nonce=nonce), beside=True), nonces))
    for nonce, answer in zip(nonces, answers, strict=True):
        evidence, _ = answer_to(answer.line, nonce)
        assert evidence.report[0x50:0x90] == report_data(
            nonce=nonce,
            ssh_host_key=evidence.ssh_host_key,
            hpke_key=evidence.hpke_key,
            receipt_key=evidence.receipt_key,
            host_data=LAUNCHED,
        )


def test_a_terminal_comes_with_the_shell_and_not_before(attestor, tmp_path):
    attestor._shell.granted = True
    attestor.answer(challenge())
    assert (tmp_path / "authorized_keys").read_bytes() == authorized_key(OWNER, terminal=True)
    assert b",pty " in authorized_key(OWNER, terminal=True)


@pytest.mark.parametrize(
    "changes", [{"owner_key": b"x" * 32}, {"manifest_sha256": b"x" * 32}], ids=["owner", "manifest"]
)
def test_another_owner_or_job_is_refused(attestor, tmp_path, changes):
    answer = attestor.answer(challenge(**changes))
    assert answer_to(answer.line, NONCE)[0] is Refusal.HOST_DATA
    assert not answer.ready
    assert attestor.current is None
    assert not (tmp_path / "authorized_keys").exists()


def test_refusal_leaves_the_earlier_session_s_standing(attestor):
    attestor.answer(challenge())
    before = attestor.current
    attestor.answer(challenge(owner_key=b"x" * 32))
    assert attestor.current is before


def test_no_report_is_said(attestor, monkeypatch):
    def fail(data, paths):
        raise HostError("nothing")

    monkeypatch.setattr(device, "get_report", fail)
    answer = attestor.answer(challenge())
    assert (answer_to(answer.line, NONCE)[0], answer.ready) == (Refusal.NO_REPORT, False)
