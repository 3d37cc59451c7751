# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A genuine simulated receipt, made by the guest's code; then every part of it changed."""

import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvmtool.errors import AppraisalError, CvmError, FormatError, FreshnessError, VerificationError
from cvmtool.formats.channel import find_last_open
from cvmtool.formats.control import Stage
from cvmtool.formats.receipt import Envelope, OutputDigest, Statement, key_id, pae, parse_envelope, parse_statement
from cvmtool.formats.release import Secrets
from cvmtool.formats.wire import canonical_json
from cvmtool.guest.keys import BootKeys
from cvmtool.owner.policy import RootKind
from cvmtool.owner.receipts import verify_receipt
from cvmtool.owner.seal import seal
from tests.fakes.guest import FakeGuest

NOW = datetime.now(UTC)


class Receipt:
    """A receipt as the guest signed it, and the means to forge others."""

    def __init__(self, folder):
        self.guest = FakeGuest(folder)
        session = self.guest.session()
        evidence = self.guest.answer(find_last_open(session.challenge())[0])
        held = session.judge(evidence, NOW)
        job = self.guest.job
        job.configure(self.guest.manifest.encode(), certificates=evidence.cert_table)
        packs = {pack.root_hash: b"p" * 32 for pack in self.guest.manifest.packs}
        job.release(seal(held, Secrets(packs=packs), manifest=self.guest.manifest))
        job.run()
        while job.status()["stage"] != Stage.DONE:
            time.sleep(0.01)
        self.results = job.results()
        self.data = canonical_json(self.results["receipt"])
        self.envelope = parse_envelope(self.data)
        self.statement = parse_statement(self.envelope.payload)

    def signed(self, statement: Statement, keys: BootKeys | None = None) -> bytes:
        """What a guest with `keys` (this one's own) would sign."""
        keys = keys or self.guest.keys
        payload = statement.encode()
        return Envelope(
            payload=payload, keyid=key_id(keys.receipt_key), signature=keys.receipt.sign(pae(payload))
        ).encode()

    def verify(self, data=None, at=NOW, **policy):
        return verify_receipt(self.data if data is None else data, self.guest.policy(**policy), at)


@pytest.fixture(scope="module")
def receipt(tmp_path_factory):
    return Receipt(tmp_path_factory.mktemp("receipt"))


def test_a_genuine_receipt_holds_and_says_simulated(receipt):
    verified = receipt.verify()
    assert verified.statement == receipt.statement
    assert verified.guest.simulated
    assert verified.statement.simulated
    assert {(item.name, item.size, item.sha256) for item in verified.statement.outputs} == {
        (item["name"], item["size"], item["sha256"]) for item in receipt.results["outputs"]
    }
    assert verified.statement.log_sha256 == receipt.results["log"]["sha256"]


def test_white_space_around_the_envelope_changes_nothing(receipt):
    assert receipt.verify(json.dumps(json.loads(receipt.data), indent=2).encode()).statement == receipt.statement


CHANGES = {
    "outputs": (OutputDigest(name="model.safetensors", size=1, sha256="00" * 32),),
    "simulated": False,
    "nonce": b"o" * 32,
    "manifest_sha256": b"o" * 32,
    "owner_key": b"o" * 32,
    "container_digest": "sha256:" + "00" * 32,
    "inputs": (("data", "00" * 32),),
    "log_sha256": "00" * 32,
    "log_size": 1,
    "exit_code": 1,
    "started": "2020-01-01T00:00:00Z",
    "finished": "2020-01-01T00:00:00Z",
}


def test_no_field_of_a_statement_is_forgotten_here():
    assert {*CHANGES, "evidence"} == set(Statement.__dataclass_fields__)


@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_field_under_the_old_signature_is_refused(receipt, field):
    changed = replace(receipt.statement, **{field: CHANGES[field]})
    with pytest.raises(CvmError) as refusal:
        receipt.verify(replace(receipt.envelope, payload=changed.encode()).encode())
    assert refusal.value.exit_code in {5, 6, 7}


@pytest.mark.parametrize(
    ("field", "error"),
    [
        ("nonce", FreshnessError),
        ("manifest_sha256", AppraisalError),
        ("owner_key", AppraisalError),
        ("simulated", VerificationError),
    ],
)
def test_what_the_report_binds_cannot_be_changed_even_by_the_guest(receipt, field, error):
    changed = replace(receipt.statement, **{field: CHANGES[field]})
    with pytest.raises(error):
        receipt.verify(receipt.signed(changed))


@pytest.mark.parametrize("key", ["ssh_host_key", "hpke_key", "receipt_key"])
def test_evidence_with_another_key_is_refused(receipt, key):
    forger = BootKeys()
    evidence = replace(receipt.statement.evidence, **{key: getattr(forger, key)})
    with pytest.raises(FreshnessError):
        receipt.verify(receipt.signed(replace(receipt.statement, evidence=evidence), forger))


def test_a_signature_by_another_key_is_refused(receipt):
    with pytest.raises(VerificationError, match="keyid"):
        receipt.verify(receipt.signed(receipt.statement, BootKeys()))
    forged = parse_envelope(receipt.signed(receipt.statement, BootKeys()))
    with pytest.raises(VerificationError, match="signature"):
        receipt.verify(replace(forged, keyid=receipt.envelope.keyid).encode())


@pytest.mark.parametrize("at", [0, 31, 32, 63])
def test_a_flipped_bit_of_the_signature_is_refused(receipt, at):
    signature = bytearray(receipt.envelope.signature)
    signature[at] ^= 1
    with pytest.raises(VerificationError, match="signature"):
        receipt.verify(replace(receipt.envelope, signature=bytes(signature)).encode())


def test_the_signature_is_over_the_type_too(receipt):
    payload = receipt.envelope.payload
    bare = receipt.guest.keys.receipt.sign(payload)
    with pytest.raises(VerificationError, match="signature"):
        receipt.verify(replace(receipt.envelope, signature=bare).encode())


def test_a_policy_for_hardware_refuses_it(receipt):
    with pytest.raises(VerificationError):
        receipt.verify(roots=RootKind.AMD, simulated_root=None)


def test_a_policy_for_another_image_or_job_refuses_it(receipt):
    for changes, code in (
        ({"measurements": frozenset({b"o" * 48})}, "measurement"),
        ({"host_data": frozenset({b"o" * 32})}, "host-data-allowed"),
    ):
        with pytest.raises(AppraisalError) as refusal:
            receipt.verify(**changes)
        assert code in {finding.code for finding in refusal.value.findings}


def test_the_time_is_an_argument(receipt):
    receipt.verify(at=NOW + timedelta(days=1))
    with pytest.raises(VerificationError):
        receipt.verify(at=NOW + timedelta(days=365 * 40))


def test_another_report_of_the_same_guest_does_not_fit(receipt):
    later = receipt.guest.answer(find_last_open(receipt.guest.session(b"l" * 32).challenge())[0])
    with pytest.raises(FreshnessError):
        receipt.verify(receipt.signed(replace(receipt.statement, evidence=later)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_flipped_byte_is_refused(receipt, data):
    at = data.draw(st.integers(0, len(receipt.data) - 1))
    changed = bytearray(receipt.data)
    changed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CvmError) as refusal:
        receipt.verify(bytes(changed))
    assert refusal.value.exit_code in {4, 5, 6, 7}


@given(st.binary(max_size=100))
def test_any_bytes_are_a_format_error(receipt, data):
    with pytest.raises(FormatError):
        receipt.verify(data)
