# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The receipt: an in-toto statement in a DSSE envelope, and nothing that needs a key.

Zone: shared. Pure: no I/O. The guest signs (`cvmtool.guest.receipt`), the owner verifies (`cvmtool.owner.receipts`).
Spec: docs/protocol.md section 11; in-toto Statement v1; DSSE v1 (pre-authentication encoding, "PAE").
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cvmtool.errors import FormatError
from cvmtool.formats.evidence import MAX_EVIDENCE, Evidence, parse_evidence
from cvmtool.formats.job import OUTPUT_NAME
from cvmtool.formats.wire import (
    JsonObject,
    canonical_json,
    members,
    natural,
    parse_base64,
    parse_hex,
    parse_json,
    to_base64,
    typed,
)

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:cvmtool:training-receipt:v1"
MAX_RECEIPT = 1 << 20  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDigest:
    """An output as it left the guest."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What the guest says happened. Believe it as far as the report inside it goes (docs/limitations.md)."""

    outputs: tuple[OutputDigest, ...]
    simulated: bool
    """What the guest's measured command line says; a verifier decides by the root that signed the report."""
    nonce: bytes
    evidence: Evidence
    manifest_sha256: bytes
    owner_key: bytes
    container_digest: str
    inputs: tuple[tuple[str, str], ...]
    """(pack name, dm-verity root hash), the container's included."""
    log_sha256: str
    log_size: int
    exit_code: int
    started: str
    """RFC 3339, by the guest's clock, which the host sets: a claim."""
    finished: str

    def encode(self) -> bytes:
        """Return the in-toto statement as canonical JSON."""
        return canonical_json(
            {
                "_type": STATEMENT_TYPE,
                "predicateType": PREDICATE_TYPE,
                "subject": [{"name": item.name, "digest": {"sha256": item.sha256}} for item in self.outputs],
                "predicate": {
                    "simulated": self.simulated,
                    "nonce": self.nonce.hex(),
                    "evidence": to_base64(self.evidence.encode()),
                    "manifest_sha256": self.manifest_sha256.hex(),
                    "owner_key": self.owner_key.hex(),
                    "container_digest": self.container_digest,
                    "inputs": [{"name": name, "root_hash": root} for name, root in self.inputs],
                    "output_sizes": {item.name: item.size for item in self.outputs},
                    "log": {"sha256": self.log_sha256, "size": self.log_size},
                    "exit_code": self.exit_code,
                    "started": self.started,
                    "finished": self.finished,
                },
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A DSSE envelope with one signature, not yet checked."""

    payload: bytes
    keyid: str
    signature: bytes

    def to_json(self) -> JsonObject:
        """Return the envelope as DSSE spells it."""
        return {
            "payloadType": PAYLOAD_TYPE,
            "payload": to_base64(self.payload),
            "signatures": [{"keyid": self.keyid, "sig": to_base64(self.signature)}],
        }

    def encode(self) -> bytes:
        """Return the envelope as canonical JSON."""
        return canonical_json(self.to_json())


def pae(payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding: the bytes that are signed."""
    kind = PAYLOAD_TYPE.encode("ascii")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def key_id(receipt_key: bytes) -> str:
    """Return the keyid of a raw Ed25519 public key: its SHA-256 as hex."""
    return hashlib.sha256(receipt_key).hexdigest()


def parse_envelope(data: bytes) -> Envelope:
    """Read an envelope. White space between JSON tokens is allowed: the payload is what is signed.

    Raises:
        FormatError: another payload type, not exactly one signature, or a malformed field.
    """
    value = parse_json(data, what="receipt", limit=MAX_RECEIPT)
    members(value, what="receipt", required={"payloadType", "payload", "signatures"})
    if value["payloadType"] != PAYLOAD_TYPE:
        raise FormatError(f"receipt.payloadType is {str(value['payloadType'])[:64]!r}; {PAYLOAD_TYPE!r} is required")
    signatures = typed(value, "signatures", list, what="receipt")
    if len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise FormatError(f"receipt.signatures has {len(signatures)} entries; exactly one is required")
    members(signatures[0], what="receipt.signatures[0]", required={"keyid", "sig"})
    keyid = typed(signatures[0], "keyid", str, what="receipt.signatures[0]")
    parse_hex(keyid, 32, what="receipt.signatures[0].keyid")
    signature = parse_base64(signatures[0]["sig"], what="receipt.signatures[0].sig", limit=64)
    if len(signature) != 64:
        raise FormatError(f"receipt.signatures[0].sig has {len(signature)} bytes; 64 are required")
    payload = parse_base64(value["payload"], what="receipt.payload", limit=MAX_RECEIPT)
    return Envelope(payload=payload, keyid=keyid, signature=signature)


def parse_statement(payload: bytes) -> Statement:
    """Read the statement in an envelope's payload.

    Raises:
        FormatError: another type, a key missing, unknown or malformed.
    """
    value = parse_json(payload, what="statement", limit=MAX_RECEIPT)
    members(value, what="statement", required={"_type", "predicateType", "subject", "predicate"})
    for key, required in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        if value[key] != required:
            raise FormatError(f"statement.{key} is {str(value[key])[:64]!r}; {required!r} is required")
    what = "statement.predicate"
    predicate = typed(value, "predicate", dict, what="statement")
    members(
        predicate,
        what=what,
        required={
            "simulated", "nonce", "evidence", "manifest_sha256", "owner_key", "container_digest", "inputs", "output_sizes",
            "log", "exit_code", "started", "finished",
        },
    )  # fmt: skip
    log = typed(predicate, "log", dict, what=what)
    members(log, what=f"{what}.log", required={"sha256", "size"})
    parse_hex(log["sha256"], 32, what=f"{what}.log.sha256")
    inputs = []
    for item in typed(predicate, "inputs", list, what=what):
        if not isinstance(item, dict):
            raise FormatError(f"{what}.inputs holds a {type(item).__name__}; an object is required")
        members(item, what=f"{what}.inputs", required={"name", "root_hash"})
        parse_hex(item["root_hash"], 32, what=f"{what}.inputs.root_hash")
        inputs.append((typed(item, "name", str, what=f"{what}.inputs"), item["root_hash"]))
    sizes = typed(predicate, "output_sizes", dict, what=what)
    return Statement(
        outputs=_parse_subjects(typed(value, "subject", list, what="statement"), sizes),
        simulated=typed(predicate, "simulated", bool, what=what),
        nonce=parse_hex(predicate["nonce"], 32, what=f"{what}.nonce"),
        evidence=parse_evidence(parse_base64(predicate["evidence"], what=f"{what}.evidence", limit=MAX_EVIDENCE)),
        manifest_sha256=parse_hex(predicate["manifest_sha256"], 32, what=f"{what}.manifest_sha256"),
        owner_key=parse_hex(predicate["owner_key"], 32, what=f"{what}.owner_key"),
        container_digest=typed(predicate, "container_digest", str, what=what),
        inputs=tuple(inputs),
        log_sha256=log["sha256"],
        log_size=natural(log, "size", what=f"{what}.log"),
        exit_code=natural(predicate, "exit_code", what=what, most=255),
        started=typed(predicate, "started", str, what=what),
        finished=typed(predicate, "finished", str, what=what),
    )


def _parse_subjects(subjects: list[object], sizes: JsonObject) -> tuple[OutputDigest, ...]:
    outputs = []
    for item in subjects:
        if not isinstance(item, dict):
            raise FormatError(f"statement.subject holds a {type(item).__name__}; an object is required")
        members(item, what="statement.subject", required={"name", "digest"})
        name = typed(item, "name", str, what="statement.subject")
        if not OUTPUT_NAME.fullmatch(name):
            raise FormatError(f"statement.subject.name is {name[:64]!r}; a relative path of plain names is required")
        digest = typed(item, "digest", dict, what="statement.subject")
        members(digest, what="statement.subject.digest", required={"sha256"})
        parse_hex(digest["sha256"], 32, what="statement.subject.digest.sha256")
        size = natural(sizes, name, what="statement.predicate.output_sizes")
        outputs.append(OutputDigest(name=name, size=size, sha256=digest["sha256"]))
    if {item.name for item in outputs} != set(sizes) or len(outputs) != len(sizes):
        raise FormatError("statement.subject and statement.predicate.output_sizes name different outputs")
    return tuple(outputs)
