# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Verify a cvmtool receipt without cvmtool: written from docs/protocol.md and AMD's documents, for a second opinion.

Nothing here comes from the package: DSSE is securesystemslib's, the statement in-toto's, certificates and signatures
cryptography's. It knows no policy file: what a reader must bring is the root's fingerprint and the expected launch digest.

    python verify_receipt.py receipt.json --root SHA256 --measurement HEX [--at RFC3339] [--manifest manifest.json]

Prints one JSON document and ends with 0, or says on standard error what does not hold and ends with 1.

AMD 56860 SEV-SNP Firmware ABI (report), AMD 57230 VCEK and KDS (certificates).
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import struct
import sys
import uuid
import warnings
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils
from cryptography.utils import CryptographyDeprecationWarning
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement_pb2 import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError as DsseError
from securesystemslib.signer import SSlibKey

VCEK = "63da758d-e664-4564-adc5-f4b93be8accd"
ASK = "4ab7b379-bbac-4fe4-a02f-05aef327c782"
ARK = "c0b406a4-a803-4952-9743-3fb6014cd0ae"
CRL = "92f81bc3-5811-4d3d-97ff-d19f88dc67ea"
AMD_ARC = "1.3.6.1.4.1.3704.1."
AMD_ROOTS = {
    bytes.fromhex("69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd"),  # ARK-Milan
    bytes.fromhex("4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1"),  # ARK-Genoa
    bytes.fromhex("1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a"),  # ARK-Turin
}
DEBUG, MIGRATE = 1 << 19, 1 << 18
LINES = {(0x19, 0x0): "Milan", (0x19, 0x1): "Genoa", (0x19, 0xA): "Genoa", (0x1A, 0x0): "Turin", (0x1A, 0x1): "Turin"}
MILAN_TCB = {0: "3.1", 1: "3.2", 6: "3.3", 7: "3.8"}
TURIN_TCB = {0: "3.9", 1: "3.1", 2: "3.2", 3: "3.3", 7: "3.8"}


class RefusedError(Exception):
    """Something does not hold."""


def require(condition: bool, what: str) -> None:
    if not condition:
        raise RefusedError(what)


def unlp(data: bytes) -> list[bytes]:
    """Fields behind their lengths, 4 bytes big-endian each (docs/protocol.md)."""
    fields = []
    while data:
        require(len(data) >= 4, "a length is cut short")
        size = int.from_bytes(data[:4], "big")
        require(len(data) >= 4 + size, "a field is cut short")
        fields.append(data[4 : 4 + size])
        data = data[4 + size :]
    return fields


def lp(*fields: bytes) -> bytes:
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def certificate_table(data: bytes) -> dict[str, bytes]:
    """AMD 56421 GHCB: entries of GUID, offset and length, up to an entry of zeros."""
    table = {}
    for at in range(0, len(data), 24):
        guid, offset, length = struct.unpack_from("<16sII", data, at)
        if not any(guid):
            return table
        require(offset + length <= len(data), "a certificate lies outside its table")
        table[str(uuid.UUID(bytes=guid))] = data[offset : offset + length]
    raise RefusedError("the certificate table has no end")


def check_chain(table: dict[str, bytes], root: bytes, at: datetime) -> x509.Certificate:
    """Root by its fingerprint, then link by link; the root's list withdraws none of them. Returns the chip's certificate."""
    for guid, name in ((VCEK, "vcek"), (ASK, "ask"), (ARK, "ark"), (CRL, "crl")):
        require(guid in table, f"the receipt has no {name}")
    require(hashlib.sha256(table[ARK]).digest() == root, "the root is another one")
    with warnings.catch_warnings():
        # AMD numbers every chip's certificate 0.
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        vcek, ask, ark = (x509.load_der_x509_certificate(table[guid]) for guid in (VCEK, ASK, ARK))
        crl = x509.load_der_x509_crl(table[CRL])
        ark.verify_directly_issued_by(ark)
        ask.verify_directly_issued_by(ark)
        vcek.verify_directly_issued_by(ask)
        require(crl.is_signature_valid(ark.public_key()), "the revocation list is not the root's")
        require(crl.issuer == ark.subject, "the revocation list is another issuer's")
        for certificate in (vcek, ask, ark):
            within = certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc
            require(within, f"{certificate.subject.rfc4514_string()} is not valid at {at}")
        until = crl.next_update_utc
        require(until is not None and crl.last_update_utc <= at <= until, f"the revocation list is not valid at {at}")
        require(crl.get_revoked_certificate_by_serial_number(ask.serial_number) is None, "the intermediate was revoked")
    return vcek


def extension(certificate: x509.Certificate, suffix: str) -> bytes:
    oid = x509.ObjectIdentifier(AMD_ARC + suffix)
    value = certificate.extensions.get_extension_for_oid(oid).value
    require(isinstance(value, x509.UnrecognizedExtension), f"extension {suffix} has another form")
    return value.value


def check_report(report: bytes, vcek: x509.Certificate) -> dict[str, bytes]:
    """AMD 56860: who signed it, for which chip at which versions; then the fields that a receipt binds."""
    version, _svn, policy = struct.unpack_from("<IIQ", report)
    require(3 <= version <= 5, f"report version is {version}")
    require(policy & (DEBUG | MIGRATE) == 0, f"policy is {policy:#x}: debugging or migration is allowed")
    require(int.from_bytes(report[0x30:0x34], "little") == 0, "another VMPL than 0 asked")
    require(int.from_bytes(report[0x34:0x38], "little") == 1, "not ECDSA P-384 with SHA-384")
    require(report[0x48] >> 2 & 7 == 0, "another key than the chip's own signed")
    line = LINES.get((report[0x188], report[0x189] >> 4))
    require(line is not None, "an unknown processor")
    issuer = vcek.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
    require(issuer == f"SEV-{line}", f"{issuer} does not issue for {line}")
    hwid, size = extension(vcek, "4"), 8 if line == "Turin" else 64
    require(len(hwid) == size and report[0x1A0:0x1E0] == hwid.ljust(64, b"\0"), "the certificate is another chip's")
    reported = report[0x180:0x188]
    for offset, suffix in (TURIN_TCB if line == "Turin" else MILAN_TCB).items():
        number = extension(vcek, suffix)  # DER: INTEGER
        require(number[0] == 2 and number[1] == len(number) - 2, f"extension {suffix} is no integer")
        require(
            int.from_bytes(number[2:], "big") == reported[offset],
            f"REPORTED_TCB byte {offset} is not the certificate's",
        )
    r, s = (int.from_bytes(report[at : at + 72], "little") for at in (0x2A0, 0x2E8))
    key = vcek.public_key()
    require(isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp384r1", "the chip's key is not P-384")
    key.verify(utils.encode_dss_signature(r, s), report[:0x2A0], ec.ECDSA(hashes.SHA384()))
    return {
        "image_id": report[0x20:0x30],
        "report_data": report[0x50:0x90],
        "measurement": report[0x90:0xC0],
        "host_data": report[0xC0:0xE0],
    }


def check_statement(payload: bytes) -> dict:
    """in-toto's own reader, then SLSA's for the part that is SLSA's; neither takes a name that it does not know."""
    statement = json_format.Parse(payload, Statement())
    require(statement.type == "https://in-toto.io/Statement/v1", f"_type is {statement.type}")
    require(
        statement.predicate_type == "urn:cvmtool:training-receipt:v2", f"predicateType is {statement.predicate_type}"
    )
    for subject in statement.subject:
        ResourceDescriptor.copy_from_pb(subject).validate()
        require("sha256" in subject.digest, f"{subject.name} has no SHA-256")
    predicate = json.loads(payload)["predicate"]
    require(
        predicate.keys() == {"buildDefinition", "runDetails", "result", "attestation"},
        f"predicate has {set(predicate)}",
    )
    slsa = {key: predicate[key] for key in ("buildDefinition", "runDetails")}
    provenance = json_format.ParseDict(slsa, Provenance())
    for item in provenance.build_definition.resolved_dependencies:
        ResourceDescriptor.copy_from_pb(item).validate()
    return json.loads(payload)


def check_envelope(data: bytes, receipt_key: bytes) -> None:
    """Signed by the key that the report vouches for, and named after it."""
    document = json.loads(data)
    envelope = Envelope.from_dict(document)
    require(len(document["signatures"]) == 1, "there is not exactly one signature")
    require(envelope.payload_type == "application/vnd.in-toto+json", f"payloadType is {envelope.payload_type}")
    key_id = hashlib.sha256(receipt_key).hexdigest()
    public = ed25519.Ed25519PublicKey.from_public_bytes(receipt_key)
    envelope.verify([SSlibKey.from_crypto(public, keyid=key_id)], 1)


def verify(data: bytes, *, root: bytes, measurement: bytes, at: datetime, manifest: bytes | None = None) -> dict:
    """Return the statement of a receipt that holds.

    Raises:
        RefusedError: it does not.
    """
    try:
        payload = Envelope.from_dict(json.loads(data)).payload
        statement = check_statement(payload)
        attestation = statement["predicate"]["attestation"]
        evidence = unlp(base64.b64decode(attestation["evidence"], validate=True))
        require(len(evidence) == 6 and evidence[0] == b"cvmtool/v1/evidence", "this is not evidence")
        _, report, table, ssh_host_key, hpke_key, receipt_key = evidence
        require(len(report) == 1184, f"the report has {len(report)} bytes")
        fields = check_report(report, check_chain(certificate_table(table), root, at))

        given = statement["predicate"]["buildDefinition"]["externalParameters"]
        manifest_digest = bytes.fromhex(given["manifest"]["digest"]["sha256"])
        host_data = hashlib.sha256(
            lp(b"cvmtool/v1/host-data", bytes.fromhex(attestation["ownerKey"]), manifest_digest)
        ).digest()
        require(fields["host_data"] == host_data, "HOST_DATA is not that of the owner and the manifest")
        bound = lp(
            b"cvmtool/v1/report-data",
            bytes.fromhex(attestation["nonce"]), ssh_host_key, hpke_key, receipt_key, host_data,
        )  # fmt: skip
        require(
            fields["report_data"] == hashlib.sha512(bound).digest(), "REPORT_DATA is not over this nonce and these keys"
        )
        require(fields["measurement"] == measurement, "another program was launched")
        check_envelope(data, receipt_key)

        (image,) = statement["predicate"]["runDetails"]["builder"]["builderDependencies"]
        require(image["digest"]["sevSnpLaunchDigest"] == fields["measurement"].hex(), "it names another launch digest")
        require(image["annotations"]["imageId"] == fields["image_id"].hex(), "it names another image")
        simulated = "simulated" in statement["predicate"]["runDetails"]["builder"]["id"]
        require(attestation["simulated"] is simulated, "it contradicts itself about the simulation")
        require(simulated is (root not in AMD_ROOTS), "its word about the simulation is not that of its root")
        if manifest is not None:
            require(hashlib.sha256(manifest).digest() == manifest_digest, "it is another job's")
    except (
        InvalidSignature, DsseError, json_format.ParseError, x509.ExtensionNotFound, struct.error,
        ValueError, KeyError, TypeError, IndexError, AttributeError,
    ) as error:  # fmt: skip
        raise RefusedError(f"{type(error).__name__}: {error}") from error
    return statement


def main() -> int:
    parser = argparse.ArgumentParser(description="verify a cvmtool receipt without cvmtool")
    parser.add_argument("receipt", type=Path)
    parser.add_argument("--root", required=True, type=bytes.fromhex, help="SHA-256 of the root certificate's DER")
    parser.add_argument("--measurement", required=True, type=bytes.fromhex, help="the expected launch digest")
    parser.add_argument("--at", type=datetime.fromisoformat, default=datetime.now(UTC))
    parser.add_argument("--manifest", type=Path)
    given = parser.parse_args()
    manifest = given.manifest.read_bytes() if given.manifest else None
    try:
        statement = verify(
            given.receipt.read_bytes(), root=given.root, measurement=given.measurement, at=given.at, manifest=manifest
        )
    except RefusedError as refusal:
        print(f"refused: {refusal}", file=sys.stderr)
        return 1
    builder = statement["predicate"]["runDetails"]["builder"]["id"]
    print(json.dumps({"holds": True, "builder": builder, "subject": statement["subject"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
