# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The receipt's statement: in-toto v1, with SLSA's account of the run and the evidence of the guest that gives it.

Zone: shared. Pure: no I/O. It travels in an envelope (`cvmtool.formats.dsse`).
Spec: docs/protocol.md section 11; docs/reference/receipt.md, field by field; in-toto Statement v1; SLSA Provenance v1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from cvmtool.errors import FormatError
from cvmtool.formats.dsse import MAX_ENVELOPE
from cvmtool.formats.egress import Egress, parse_egress
from cvmtool.formats.evidence import MAX_EVIDENCE, Evidence, parse_evidence
from cvmtool.formats.gpu import MAX_GPUS
from cvmtool.formats.job import OUTPUT_NAME, Network, OutputKind
from cvmtool.formats.pack import NAME, Role
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

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:cvmtool:training-receipt:v2"
BUILD_TYPE = "urn:cvmtool:job:v1"
BUILDERS = {False: "urn:cvmtool:guest:v1", True: "urn:cvmtool:simulated-guest:v1"}
"""By `simulated`: whoever reads the SLSA part alone still tells a dry run from a confidential run."""
ATTESTATION_KIND = "amd-sev-snp"
IMAGE_ENTRY = "guest-image"
CONTAINER_ENTRY = "container-image"
LOG_ENTRY = "log"
VERITY_ROOT = "dmVerityRoot"
LAUNCH_DIGEST = "sevSnpLaunchDigest"
MEASUREMENT_BYTES = 48
IMAGE_ID_BYTES = 16
E = TypeVar("E", bound=StrEnum)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z", re.ASCII)


class Access(StrEnum):
    """What the owner could do in the guest while the job ran, beyond its control service."""

    SHELL = "shell"
    EXEC = "exec"
    TUNNEL = "tunnel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accesses:
    """How often the running container was reached into. Both stand in a statement only if there was any."""

    exec: int = 0
    """Commands that were run in it."""
    tunnels: int = 0
    """Connections to its ports that carried anything, of its owner or a client."""

    def to_json(self) -> JsonObject:
        """Return those that were."""
        return {name: count for name, count in (("exec", self.exec), ("tunnels", self.tunnels)) if count}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDigest:
    """An output as it left the guest, which had parsed it as `kind`."""

    name: str
    kind: OutputKind
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InputDigest:
    """A pack that the guest opened, by its dm-verity root (SHA-256, 64 hex digits)."""

    name: str
    role: Role
    root_hash: str
    owner: str | None = None
    """The Ed25519 key (hex) of the party whose passphrase opened it; None: the job's own owner."""

    def to_json(self) -> JsonObject:
        """Return the pack as a resource descriptor."""
        owner = {} if self.owner is None else {"owner": self.owner}
        return _descriptor(self.name, VERITY_ROOT, self.root_hash, role=self.role.value, **owner)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What the guest says happened. Believe it as far as the report inside it goes (docs/limitations.md)."""

    outputs: tuple[OutputDigest, ...]
    manifest_sha256: bytes
    network: Network
    access: tuple[Access, ...]
    gpus: int
    """How many the job asked for. That they were verified is the owner's doing, and not shown here."""
    container_digest: str
    inputs: tuple[InputDigest, ...]
    """The container's pack included."""
    measurement: bytes
    """The launch digest, 48 bytes, as the report has it."""
    image_id: bytes
    """16 bytes, as the report has it: the first half of the image manifest's SHA-256, or zero if the launch was not signed."""
    started: str
    """RFC 3339, by the guest's clock, which the host sets: a claim."""
    finished: str
    log_sha256: str
    log_size: int
    exit_code: int
    simulated: bool
    """What the guest's measured command line says; a verifier decides by the root that signed the report."""
    nonce: bytes
    owner_key: bytes
    evidence: Evidence
    accesses: Accesses = field(default_factory=Accesses)
    egress: Egress | None = None
    """What went out of the container. None: it had no destinations, or it never ran."""

    def encode(self) -> bytes:
        """Return the in-toto statement as canonical JSON."""
        return canonical_json(
            {
                "_type": STATEMENT_TYPE,
                "subject": [
                    _descriptor(item.name, "sha256", item.sha256, kind=item.kind.value, size=item.size)
                    for item in self.outputs
                ],
                "predicateType": PREDICATE_TYPE,
                "predicate": {
                    "buildDefinition": self._definition(),
                    "runDetails": self._details(),
                    "result": self._result(),
                    "attestation": {
                        "kind": ATTESTATION_KIND,
                        "simulated": self.simulated,
                        "nonce": self.nonce.hex(),
                        "ownerKey": self.owner_key.hex(),
                        "evidence": to_base64(self.evidence.encode()),
                    },
                },
            }
        )

    def _result(self) -> JsonObject:
        accesses = self.accesses.to_json()
        return (
            {"exitCode": self.exit_code}
            | ({"accesses": accesses} if accesses else {})
            | ({"egress": self.egress.to_json()} if self.egress else {})
        )

    def _definition(self) -> JsonObject:
        return {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "manifest": {"digest": {"sha256": self.manifest_sha256.hex()}},
                "network": self.network.value,
                "access": [item.value for item in self.access],
                "gpus": self.gpus,
            },
            "resolvedDependencies": [
                _descriptor(CONTAINER_ENTRY, "sha256", self.container_digest.removeprefix("sha256:")),
                *(item.to_json() for item in self.inputs),
            ],
        }

    def _details(self) -> JsonObject:
        image = _descriptor(IMAGE_ENTRY, LAUNCH_DIGEST, self.measurement.hex(), imageId=self.image_id.hex())
        return {
            "builder": {"id": BUILDERS[self.simulated], "builderDependencies": [image]},
            "metadata": {"startedOn": self.started, "finishedOn": self.finished},
            "byproducts": [_descriptor(LOG_ENTRY, "sha256", self.log_sha256, size=self.log_size)],
        }


def _descriptor(name: str, algorithm: str, digest: str, **annotations: str | int) -> JsonObject:
    """Return one of in-toto's resource descriptors."""
    extra: JsonObject = {"annotations": annotations} if annotations else {}
    return {"name": name, "digest": {algorithm: digest}, **extra}


def parse_statement(payload: bytes) -> Statement:
    """Read the statement in an envelope's payload.

    Raises:
        FormatError: another type, a key missing, unknown or malformed, or two entries of one name.
    """
    value = parse_json(payload, what="statement", limit=MAX_ENVELOPE)
    _require(value, "statement", {"_type": STATEMENT_TYPE, "predicateType": PREDICATE_TYPE}, "subject", "predicate")
    predicate = typed(value, "predicate", dict, what="statement")
    _require(predicate, "predicate", {}, "buildDefinition", "runDetails", "result", "attestation")
    result: JsonObject = typed(predicate, "result", dict, what="predicate")
    members(result, what="result", required={"exitCode"}, optional=frozenset({"accesses", "egress"}))
    attestation = _child(
        predicate, "attestation", "predicate", "simulated", "nonce", "ownerKey", "evidence", kind=ATTESTATION_KIND
    )
    simulated = typed(attestation, "simulated", bool, what="attestation")
    definition = _read_definition(predicate)
    egress = parse_egress(result["egress"]) if "egress" in result else None
    if egress and definition["network"] is not Network.ALLOW:
        raise FormatError(
            f"result.egress is there, and the network is {definition['network']}; 'allow' is required then"
        )
    return Statement(
        outputs=_outputs(typed(value, "subject", list, what="statement")),
        exit_code=natural(result, "exitCode", what="result", most=255),
        accesses=_accesses(result["accesses"]) if "accesses" in result else Accesses(),
        egress=egress,
        simulated=simulated,
        nonce=parse_hex(attestation["nonce"], 32, what="attestation.nonce"),
        owner_key=parse_hex(attestation["ownerKey"], 32, what="attestation.ownerKey"),
        evidence=parse_evidence(parse_base64(attestation["evidence"], what="attestation.evidence", limit=MAX_EVIDENCE)),
        **definition,
        **_read_details(predicate, simulated=simulated),
    )


def _accesses(value: object) -> Accesses:
    what = "result.accesses"
    counts: JsonObject = value if isinstance(value, dict) else {}
    members(counts, what=what, required=set(), optional=frozenset({"exec", "tunnels"}))
    if not counts:
        raise FormatError(f"{what} counts nothing; then the key must be absent")
    return Accesses(**{name: natural(counts, name, what=what, least=1) for name in counts})


def _read_definition(predicate: JsonObject) -> dict[str, Any]:
    what = "buildDefinition"
    definition = _child(
        predicate, what, "predicate", "externalParameters", "resolvedDependencies", buildType=BUILD_TYPE
    )
    given = _child(definition, "externalParameters", what, "manifest", "network", "access", "gpus")
    manifest = _child(given, "manifest", "externalParameters", "digest")
    digest = _child(manifest, "digest", "manifest", "sha256")
    access = [_member(item, Access, "externalParameters.access") for item in _list(given, "access")]
    if access != sorted(set(access)):
        raise FormatError("externalParameters.access is not sorted, or names something twice")
    entries = _list(definition, "resolvedDependencies")
    name, container, _ = _read_descriptor(entries[0] if entries else None, "resolvedDependencies", "sha256", 32)
    if name != CONTAINER_ENTRY:
        raise FormatError(f"resolvedDependencies begins with {name[:64]!r}; {CONTAINER_ENTRY!r} is required")
    return {
        "manifest_sha256": parse_hex(digest["sha256"], 32, what="manifest.digest.sha256"),
        "network": _member(given["network"], Network, "externalParameters.network"),
        "access": tuple(access),
        "gpus": natural(given, "gpus", what="externalParameters", most=MAX_GPUS),
        "container_digest": f"sha256:{container}",
        "inputs": _inputs(entries[1:]),
    }


def _read_details(predicate: JsonObject, *, simulated: bool) -> dict[str, Any]:
    what = "runDetails"
    details = _child(predicate, what, "predicate", "builder", "metadata", "byproducts")
    builder = _child(details, "builder", what, "builderDependencies", id=BUILDERS[simulated])
    name, measurement, notes = _only(builder, "builderDependencies", LAUNCH_DIGEST, MEASUREMENT_BYTES, "imageId")
    if name != IMAGE_ENTRY:
        raise FormatError(f"builderDependencies holds {name[:64]!r}; {IMAGE_ENTRY!r} is required")
    metadata = _child(details, "metadata", what, "startedOn", "finishedOn")
    for key in ("startedOn", "finishedOn"):
        if not _TIME.fullmatch(typed(metadata, key, str, what="metadata")):
            raise FormatError(f"metadata.{key} is {metadata[key][:48]!r}; a time in UTC (RFC 3339) is required")
    log, log_digest, log_notes = _only(details, "byproducts", "sha256", 32, "size")
    if log != LOG_ENTRY:
        raise FormatError(f"byproducts holds {log[:64]!r}; {LOG_ENTRY!r} is required")
    return {
        "measurement": bytes.fromhex(measurement),
        "image_id": parse_hex(notes["imageId"], IMAGE_ID_BYTES, what="builderDependencies.annotations.imageId"),
        "started": metadata["startedOn"],
        "finished": metadata["finishedOn"],
        "log_sha256": log_digest,
        "log_size": natural(log_notes, "size", what="byproducts.annotations"),
    }


def _outputs(entries: list[object]) -> tuple[OutputDigest, ...]:
    outputs = []
    for entry in entries:
        name, digest, notes = _read_descriptor(entry, "subject", "sha256", 32, "kind", "size")
        if not OUTPUT_NAME.fullmatch(name):
            raise FormatError(f"subject.name is {name[:64]!r}; a relative path of plain names is required")
        kind = _member(notes["kind"], OutputKind, "subject.annotations.kind")
        size = natural(notes, "size", what="subject.annotations")
        outputs.append(OutputDigest(name=name, kind=kind, size=size, sha256=digest))
    _require_distinct([item.name for item in outputs], "subject")
    return tuple(outputs)


def _inputs(entries: list[object]) -> tuple[InputDigest, ...]:
    inputs = []
    for entry in entries:
        said = entry.get("annotations") if isinstance(entry, dict) else None
        owned = isinstance(said, dict) and "owner" in said
        annotations = ("role", "owner") if owned else ("role",)
        name, root, notes = _read_descriptor(entry, "resolvedDependencies", VERITY_ROOT, 32, *annotations)
        if not NAME.fullmatch(name):
            raise FormatError(f"resolvedDependencies.name is {name[:64]!r}; the name of a pack is required")
        role = _member(notes["role"], Role, "resolvedDependencies.annotations.role")
        owner = parse_hex(notes["owner"], 32, what="resolvedDependencies.annotations.owner").hex() if owned else None
        inputs.append(InputDigest(name=name, role=role, root_hash=root, owner=owner))
    _require_distinct([item.name for item in inputs], "resolvedDependencies")
    return tuple(inputs)


def _read_descriptor(
    entry: object, what: str, algorithm: str, size: int, *annotations: str
) -> tuple[str, str, JsonObject]:
    """Return name, digest (hex) and annotations of a resource descriptor that has these and nothing else."""
    if not isinstance(entry, dict):
        raise FormatError(f"{what} holds a {type(entry).__name__}; a resource descriptor is required")
    _require(entry, what, {}, "name", "digest", *(["annotations"] if annotations else []))
    digest = _child(entry, "digest", what, algorithm)
    parse_hex(digest[algorithm], size, what=f"{what}.digest.{algorithm}")
    notes = _child(entry, "annotations", what, *annotations) if annotations else {}
    return typed(entry, "name", str, what=what), digest[algorithm], notes


def _only(parent: JsonObject, key: str, algorithm: str, size: int, *annotations: str) -> tuple[str, str, JsonObject]:
    entries = _list(parent, key)
    if len(entries) != 1:
        raise FormatError(f"{key} has {len(entries)} entries; exactly one is required")
    return _read_descriptor(entries[0], key, algorithm, size, *annotations)


def _list(parent: JsonObject, key: str) -> list[object]:
    return typed(parent, key, list, what="predicate")


def _child(parent: JsonObject, key: str, parent_name: str, *free: str, **fixed: str) -> JsonObject:
    """Return the object below `key`, which has exactly the keys `free`, and those of `fixed` with their values."""
    value: JsonObject = typed(parent, key, dict, what=parent_name)
    _require(value, key, fixed, *free)
    return value


def _require(value: JsonObject, what: str, fixed: Mapping[str, str], *free: str) -> None:
    members(value, what=what, required={*fixed, *free})
    for key, required in fixed.items():
        if value[key] != required:
            raise FormatError(f"{what}.{key} is {str(value[key])[:64]!r}; {required!r} is required")


def _require_distinct(names: list[str], what: str) -> None:
    if len(set(names)) != len(names):
        raise FormatError(f"{what} names one thing twice")


def _member(value: object, kind: type[E], what: str) -> E:
    try:
        return kind(str(value))
    except ValueError as error:
        raise FormatError(f"{what} is {str(value)[:32]!r}; one of {', '.join(kind)} is required") from error
