# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A genuine simulated receipt, made by the guest's code; then every part of it changed."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvmtool.errors import AppraisalError, CvmError, FormatError, FreshnessError, VerificationError
from cvmtool.formats.job import Network
from cvmtool.formats.parties import Party
from cvmtool.formats.receipt import Statement
from cvmtool.owner.amdroots import AmdRoots, SimulatedRoot
from cvmtool.owner.policy import RootKind
from cvmtool.owner.receipts import authenticate_receipt, require_manifest
from tests import samples
from tests.receipts import BOUND, CHANGES, NOW, TAMPERINGS, Receipt
from tests.unit.formats.test_egress import EGRESS


@pytest.fixture(scope="module")
def receipt(tmp_path_factory):
    return Receipt(tmp_path_factory.mktemp("receipt"))


def test_a_genuine_receipt_holds_and_says_simulated(receipt):
    verified = receipt.verify()
    assert verified.statement == receipt.statement
    assert verified.guest.simulated
    assert verified.statement.simulated
    assert {(item.name, item.kind.value, item.size, item.sha256) for item in verified.statement.outputs} == {
        (item["name"], item["kind"], item["size"], item["sha256"]) for item in receipt.results["outputs"]
    }
    assert verified.statement.log_sha256 == receipt.results["log"]["sha256"]
    assert verified.statement.measurement == receipt.guest.facts.digest()


def test_white_space_around_the_envelope_changes_nothing(receipt):
    assert receipt.verify(json.dumps(json.loads(receipt.data), indent=2).encode()).statement == receipt.statement


def test_no_field_of_a_statement_is_forgotten():
    assert {*CHANGES, "evidence"} == set(Statement.__dataclass_fields__)


@pytest.mark.parametrize("name", TAMPERINGS)
def test_a_forgery_is_refused(receipt, name):
    forged = TAMPERINGS[name](receipt)
    assert forged != receipt.data
    with pytest.raises(CvmError) as refusal:
        receipt.verify(forged)
    assert refusal.value.exit_code in {4, 5, 6, 7}
    if name != "no revocation list":  # which a policy asks for; without one it is said, not refused
        with pytest.raises(CvmError) as refusal:
            authenticate_receipt(forged, SimulatedRoot(receipt.root), NOW)
        assert refusal.value.exit_code in {4, 5, 7}


@pytest.mark.parametrize(
    ("field", "error", "named"),
    [
        ("nonce", FreshnessError, None),
        ("manifest_sha256", AppraisalError, None),
        ("owner_key", AppraisalError, None),
        ("simulated", VerificationError, "says simulated"),
        ("measurement", VerificationError, "says launch digest "),
        ("image_id", VerificationError, "says image id "),
    ],
)
def test_what_the_report_binds_cannot_be_changed_even_by_the_guest(receipt, field, error, named):
    assert field in BOUND
    with pytest.raises(error, match=named):
        receipt.verify(receipt.signed(replace(receipt.statement, **{field: CHANGES[field]})))


@pytest.mark.parametrize("at", [0, 31, 32, 63])
def test_a_flipped_bit_of_the_signature_is_refused(receipt, at):
    signature = bytearray(receipt.envelope.signature)
    signature[at] ^= 1
    with pytest.raises(VerificationError, match="signature"):
        receipt.verify(replace(receipt.envelope, signature=bytes(signature)).encode())


def test_a_signature_by_another_key_is_refused(receipt):
    with pytest.raises(VerificationError, match="keyid"):
        receipt.verify(TAMPERINGS["signed by another key"](receipt))
    with pytest.raises(VerificationError, match="signature"):
        receipt.verify(TAMPERINGS["signed by another key under the attested one's name"](receipt))


def test_without_a_policy_a_receipt_is_genuine_and_no_more(receipt):
    genuine = authenticate_receipt(receipt.data, SimulatedRoot(receipt.root), NOW)
    assert genuine.statement == receipt.statement
    assert genuine.authentic.simulated
    with pytest.raises(VerificationError):
        authenticate_receipt(receipt.data, AmdRoots(), NOW)
    forged = TAMPERINGS["the guest lies about manifest_sha256"](receipt)
    with pytest.raises(VerificationError, match="host data"):
        authenticate_receipt(forged, SimulatedRoot(receipt.root), NOW)


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


@settings(max_examples=60)
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


def test_a_receipt_says_what_its_manifest_says(receipt):
    manifest = receipt.guest.manifest
    assert require_manifest(receipt.statement, manifest.encode()) == manifest
    with pytest.raises(FormatError):
        require_manifest(receipt.statement, manifest.encode() + b" ")
    with pytest.raises(VerificationError, match="manifest"):
        require_manifest(receipt.statement, samples.manifest(salt="77" * 32).encode())
    with pytest.raises(VerificationError, match="the receipt is of sha256:"):
        require_manifest(receipt.statement, replace(manifest, salt="77" * 32).encode())


@pytest.mark.parametrize(
    ("field", "named"),
    [
        ("owner_key", "says owner key "),
        ("container_digest", "says container "),
        ("gpus", "says gpus "),
        ("inputs", "says inputs "),
        ("outputs", "names output "),
    ],
)
def test_a_guest_that_did_something_else_than_its_manifest_says(receipt, field, named):
    changed = replace(receipt.statement, **{field: CHANGES[field]})
    with pytest.raises(VerificationError, match=named):
        require_manifest(changed, receipt.guest.manifest.encode())


def test_a_receipt_names_the_destinations_of_its_manifest_and_no_others(receipt):
    places = tuple(flow.destination for flow in EGRESS.flows)
    manifest = replace(receipt.guest.manifest, network=Network.ALLOW, destinations=places)
    statement = replace(receipt.statement, network=Network.ALLOW, egress=EGRESS, manifest_sha256=manifest.sha256)
    assert require_manifest(statement, manifest.encode()) == manifest
    other = replace(EGRESS, flows=EGRESS.flows[:1])
    with pytest.raises(VerificationError, match="says destinations "):
        require_manifest(replace(statement, egress=other), manifest.encode())


def test_an_output_may_have_all_the_bytes_that_its_manifest_allows(receipt):
    manifest = receipt.guest.manifest
    most = {output.name: output.max_bytes for output in manifest.outputs}
    outputs = tuple(replace(item, size=most[item.name]) for item in receipt.statement.outputs)
    assert require_manifest(replace(receipt.statement, outputs=outputs), manifest.encode()) == manifest
    more = (replace(outputs[0], size=outputs[0].size + 1), *outputs[1:])
    with pytest.raises(VerificationError, match="of at most"):
        require_manifest(replace(receipt.statement, outputs=more), manifest.encode())


@pytest.mark.parametrize("change", [{"size": 1 << 40}, {"kind": "file"}, {"name": "diary"}])
def test_an_output_that_the_manifest_does_not_allow(receipt, change):
    output = replace(receipt.statement.outputs[0], **change)
    with pytest.raises(VerificationError, match="output"):
        require_manifest(replace(receipt.statement, outputs=(output,)), receipt.guest.manifest.encode())


def test_a_receipt_names_the_owner_of_each_pack_as_its_manifest_does(receipt):
    ours = receipt.guest.manifest
    party = Party(owner_key="77" * 32, packs=("data",))
    manifest = replace(ours, parties=(party,), recipients=("55" * 32,))
    inputs = tuple(
        replace(item, owner=party.owner_key if item.name == "data" else None) for item in receipt.statement.inputs
    )
    statement = replace(receipt.statement, manifest_sha256=manifest.sha256, inputs=inputs)
    assert require_manifest(statement, manifest.encode()) == manifest
    with pytest.raises(VerificationError, match="says inputs "):
        require_manifest(replace(statement, inputs=receipt.statement.inputs), manifest.encode())
