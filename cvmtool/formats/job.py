# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The job manifest: everything a launch commits to, in one canonical document.

Zone: shared. Pure: no I/O.
Spec: docs/protocol.md section 1. What a user writes is job.yaml (`cvmtool.owner.jobfile`); this is what it becomes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

from cvmtool.errors import FormatError
from cvmtool.formats.evidence import host_data
from cvmtool.formats.gpu import MAX_GPUS
from cvmtool.formats.jobterms import (
    NO_ACCESS,
    Access,
    Checkpoint,
    Destination,
    parse_access,
    parse_checkpoint,
    parse_destinations,
    parse_recipients,
)
from cvmtool.formats.pack import NAME, PackDescriptor, Role, parse_pack_descriptor
from cvmtool.formats.parties import Party, check_pooled, parse_parties
from cvmtool.formats.wire import (
    JsonObject,
    canonical_json,
    members,
    natural,
    parse_canonical_json,
    parse_hex,
    typed,
)

SCHEMA = "cvmtool/job/v1"
MAX_MANIFEST = 262_144  # bytes
MAX_ARGUMENTS = 1_024
MAX_OUTPUTS = 256
MAX_FILES = 512  # that leave, those of directories counted one by one
MAX_FILE_NAMES = 65_536  # characters of all their names
MAX_PACKS = 16  # disks
MAX_TEXT = 65_536  # characters of an argument or an environment value
MAX_OUTPUT_BYTES = 1 << 40  # of one output
MAX_MIB = 1 << 24  # of memory, scratch or outputs
MAX_LOG_MIB = 1 << 16
MAX_SECONDS = 1 << 31
MIN_MEMORY_MIB = 256  # of a machine
OUTPUT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,127}){0,7}")
RECEIPT_NAME = "receipt.json"  # stands beside the outputs, so none may have its name
_TERMS = frozenset({"kind", "destinations", "access", "checkpoint", "recipients", "parties"})
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


class OutputKind(StrEnum):
    """What an output must parse as before it may leave the guest."""

    SAFETENSORS = "safetensors"
    JSON = "json"
    CSV = "csv"
    LOG = "log"
    FILE = "file"
    DIRECTORY = "directory"
    """Every file below a directory, each of them an output of its own then."""


class Kind(StrEnum):
    """What a job is for."""

    TRAIN = "train"
    """It ends by itself, and its outputs are what it was run for."""
    SERVE = "serve"
    """It answers requests through tunnels until it is stopped or its time is over."""


class Network(StrEnum):
    """What the container may reach."""

    NONE = "none"
    ALLOW = "allow"
    """What `JobManifest.destinations` names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One file that may leave the guest, by its path below /outputs."""

    name: str
    kind: OutputKind
    max_bytes: int

    def to_json(self) -> JsonObject:
        """Return the output as a manifest has it."""
        return {"name": self.name, "kind": self.kind.value, "max_bytes": self.max_bytes}


def file_below(directory: Output, path: str) -> Output:
    """Return a file below a declared directory as an output of its own: what its name promises, or no pickle at least."""
    ending = path.rpartition(".")[2]
    kind = OutputKind(ending) if ending in {OutputKind.SAFETENSORS, OutputKind.JSON} else OutputKind.FILE
    return replace(directory, name=path, kind=kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the container may use."""

    memory_mib: int
    pids: int
    scratch_mib: int
    outputs_mib: int
    log_mib: int
    seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """The shape of the virtual machine. vCPU count and model are measured."""

    vcpus: int
    memory_mib: int
    cpu: str
    gpus: int = 0
    """In a manifest only if there are any. Not measured: each GPU vouches for itself (docs/protocol.md section 14)."""

    def to_json(self) -> JsonObject:
        """Return what a manifest says of it."""
        return {name: value for name, value in asdict(self).items() if name != "gpus" or value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """What runs. The digest is the owner's statement of which OCI image its pack was made from."""

    oci_digest: str
    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    workdir: str

    def to_json(self) -> JsonObject:
        """Return what runs, as a manifest has it."""
        return asdict(self) | {"args": list(self.args), "env": dict(self.env)}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobManifest:
    """A job, complete. The same bytes at owner and guest; their digest is in every report of the launch."""

    name: str
    salt: str
    """32 random bytes as hex: nobody confirms a guess of the manifest from HOST_DATA."""
    owner_key: str
    """The owner's Ed25519 SSH key, 32 bytes as hex."""
    container: Container
    packs: tuple[PackDescriptor, ...]
    outputs: tuple[Output, ...]
    resources: Resources
    limits: Limits
    network: Network
    # From here on: in a manifest only if there is any.
    kind: Kind = Kind.TRAIN
    destinations: tuple[Destination, ...] = ()
    """With `Network.ALLOW`, and only then."""
    access: Access = NO_ACCESS
    checkpoint: Checkpoint | None = None
    recipients: tuple[str, ...] = ()
    """Outputs leave the guest sealed to these X25519 keys; none: as they are, through the attested channel."""
    parties: tuple[Party, ...] = ()
    """Who else owns packs."""

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return canonical_json(
            self._terms()
            | {
                "schema": SCHEMA,
                "name": self.name,
                "salt": self.salt,
                "owner_key": self.owner_key,
                "container": self.container.to_json(),
                "packs": [pack.to_json() for pack in self.packs],
                "outputs": [output.to_json() for output in self.outputs],
                "resources": self.resources.to_json(),
                "limits": asdict(self.limits),
                "network": self.network.value,
            }
        )

    def _terms(self) -> JsonObject:
        """Return the keys that only some manifests have."""
        terms: JsonObject = {}
        if self.kind is not Kind.TRAIN:
            terms["kind"] = self.kind.value
        if self.destinations:
            terms["destinations"] = [destination.to_json() for destination in self.destinations]
        if self.access != NO_ACCESS:
            terms["access"] = self.access.to_json()
        if self.checkpoint is not None:
            terms["checkpoint"] = self.checkpoint.to_json()
        if self.recipients:
            terms["recipients"] = list(self.recipients)
        if self.parties:
            terms["parties"] = [party.to_json() for party in self.parties]
        return terms

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the canonical bytes, 32 bytes."""
        return hashlib.sha256(self.encode()).digest()

    @property
    def host_data(self) -> bytes:
        """HOST_DATA of every launch of this job, 32 bytes."""
        return host_data(owner_key=bytes.fromhex(self.owner_key), manifest_sha256=self.sha256)

    @property
    def container_pack(self) -> PackDescriptor:
        """The pack that holds the container's root file system."""
        return next(pack for pack in self.packs if pack.role is Role.CONTAINER)

    def allowing(self, name: str) -> Output | None:
        """Return what a file of that name must be to leave the guest; None if nothing declares it.

        Of a file below a declared directory: its own path and kind, and the size that the directory may have in all.
        """
        for output in self.outputs:
            if output.name == name and output.kind is not OutputKind.DIRECTORY:
                return output
            if output.kind is OutputKind.DIRECTORY and name.startswith(f"{output.name}/"):
                return file_below(output, name) if OUTPUT_NAME.fullmatch(name) else None
        return None

    def party_of(self, pack: PackDescriptor) -> str | None:
        """Return the key (hex) of the party that owns a pack; None: the manifest's owner does."""
        return next((party.owner_key for party in self.parties if pack.name in party.packs), None)

    @property
    def own_packs(self) -> tuple[PackDescriptor, ...]:
        """The packs of the manifest's owner: those that no party is named for."""
        return tuple(pack for pack in self.packs if self.party_of(pack) is None)

    @property
    def inputs(self) -> tuple[PackDescriptor, ...]:
        """The packs that appear below /inputs."""
        return tuple(pack for pack in self.packs if pack.role is Role.INPUT)


def parse_job_manifest(data: bytes) -> JobManifest:
    """Read a manifest from its canonical bytes.

    Raises:
        FormatError: not canonical, a key missing, unknown or out of range, or two things of one name.
    """
    what = "manifest"
    value = parse_canonical_json(data, what=what, limit=MAX_MANIFEST)
    members(
        value,
        what=what,
        required={
            "schema",
            "name",
            "salt",
            "owner_key",
            "container",
            "packs",
            "outputs",
            "resources",
            "limits",
            "network",
        },
        optional=_TERMS,
    )
    if value["schema"] != SCHEMA:
        raise FormatError(f"manifest.schema is {str(value['schema'])[:48]!r}; {SCHEMA!r} is required")
    name = typed(value, "name", str, what=what)
    if not NAME.fullmatch(name):
        raise FormatError(f"manifest.name is {name[:64]!r}; lower-case letters, digits, '.', '_' and '-' are required")
    parse_hex(value["salt"], 32, what="manifest.salt")
    parse_hex(value["owner_key"], 32, what="manifest.owner_key")
    packs = tuple(parse_pack_descriptor(_object(item, "pack")) for item in _list(value, "packs", MAX_PACKS))
    if sum(pack.role is Role.CONTAINER for pack in packs) != 1:
        raise FormatError("manifest.packs does not hold exactly one pack of role container")
    outputs = tuple(
        read_output(_object(item, "output"), what="manifest.outputs") for item in _list(value, "outputs", MAX_OUTPUTS)
    )
    require_distinct([pack.name for pack in packs], "manifest.packs")
    require_distinct([pack.root_hash for pack in packs], "manifest.packs")
    require_distinct([output.name for output in outputs], "manifest.outputs")
    refuse_clash([output.name for output in outputs], what="manifest.outputs")
    try:
        network = Network(typed(value, "network", str, what=what))
    except ValueError as error:
        raise FormatError(f"manifest.network is {value['network'][:32]!r}; 'none' or 'allow' is required") from error
    if (network is Network.ALLOW) != ("destinations" in value):
        raise FormatError(f"manifest.network is {network.value!r}; destinations belong to 'allow', and to it alone")
    parties = parse_parties(value["parties"]) if "parties" in value else ()
    resources = parse_resources(typed(value, "resources", dict, what=what))
    if parties:
        check_pooled(value, parties, {pack.name for pack in packs})
    return JobManifest(
        name=name,
        salt=value["salt"],
        owner_key=value["owner_key"],
        container=read_container(typed(value, "container", dict, what=what), what="manifest.container"),
        packs=packs,
        outputs=outputs,
        resources=resources,
        limits=_parse_limits(typed(value, "limits", dict, what=what)),
        network=network,
        kind=_parse_kind(value),
        destinations=parse_destinations(value["destinations"]) if "destinations" in value else (),
        access=parse_access(value["access"]) if "access" in value else NO_ACCESS,
        checkpoint=parse_checkpoint(value["checkpoint"]) if "checkpoint" in value else None,
        recipients=parse_recipients(value["recipients"]) if "recipients" in value else (),
        parties=parties,
    )


def _parse_kind(value: JsonObject) -> Kind:
    if "kind" not in value:
        return Kind.TRAIN
    if value["kind"] != Kind.SERVE:
        raise FormatError(f"manifest.kind is {str(value['kind'])[:32]!r}; 'serve', or no such key, is required")
    access = value.get("access")
    if not isinstance(access, dict) or not access.get("tunnels"):
        raise FormatError("manifest.kind is 'serve', and access names no tunnel to it")
    return Kind.SERVE


def refuse_clash(names: Sequence[str], *, what: str) -> None:
    """Check that outputs of these names can lie in one directory, with the receipt beside them.

    Raises:
        FormatError: one has the receipt's name, or is the directory of another.
    """
    taken = {*names, RECEIPT_NAME}
    for name in names:
        if name == RECEIPT_NAME:
            raise FormatError(f"{what} names {name!r}; that is the receipt's name")
        folder = name.rpartition("/")[0]
        while folder:
            if folder in taken:
                raise FormatError(f"{what} names {name!r} below {folder!r}, which is a file")
            folder = folder.rpartition("/")[0]


def read_container(value: JsonObject, *, what: str) -> Container:
    """Read what runs. A FormatError names what is wrong, here and below."""
    members(value, what=what, required={"oci_digest", "args", "env", "workdir"})
    digest = typed(value, "oci_digest", str, what=what)
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise FormatError(f"{what}.oci_digest is {digest[:80]!r}; sha256 and 64 hex digits are required")
    args = tuple(_text(item, f"{what}.args") for item in _list(value, "args", MAX_ARGUMENTS))
    if not args:
        raise FormatError(f"{what}.args is empty; at least the program is required")
    env = []
    for key, item in sorted(typed(value, "env", dict, what=what).items()):
        if not ENV_NAME.fullmatch(key):
            raise FormatError(f"{what}.env has the name {key[:64]!r}; letters, digits and '_' are required")
        env.append((key, _text(item, f"{what}.env.{key}")))
    workdir = typed(value, "workdir", str, what=what)
    if not workdir.startswith("/") or "\0" in workdir:
        raise FormatError(f"{what}.workdir is {workdir[:64]!r}; an absolute path is required")
    return Container(oci_digest=digest, args=args, env=tuple(env), workdir=workdir)


def read_output(value: JsonObject, *, what: str) -> Output:
    """Read what may leave."""
    members(value, what=what, required={"name", "kind", "max_bytes"})
    name = typed(value, "name", str, what=what)
    if not OUTPUT_NAME.fullmatch(name):
        raise FormatError(f"{what}.name is {name[:64]!r}; a relative path of plain names is required")
    try:
        kind = OutputKind(typed(value, "kind", str, what=what))
    except ValueError as error:
        kinds = ", ".join(OutputKind)
        raise FormatError(f"{what}.kind is {value['kind'][:32]!r}; one of {kinds} is required") from error
    return Output(
        name=name, kind=kind, max_bytes=natural(value, "max_bytes", what=what, most=MAX_OUTPUT_BYTES, least=1)
    )


def parse_resources(value: JsonObject) -> Resources:
    """Read the shape of a machine.

    Raises:
        FormatError: a key is missing, unknown or out of range.
    """
    what = "manifest.resources"
    members(value, what=what, required=set(Resources.__slots__) - {"gpus"}, optional=frozenset({"gpus"}))
    return Resources(
        vcpus=natural(value, "vcpus", what=what, most=512, least=1),
        memory_mib=natural(value, "memory_mib", what=what, most=MAX_MIB, least=MIN_MEMORY_MIB),
        cpu=_text(value["cpu"], f"{what}.cpu"),
        gpus=natural(value, "gpus", what=what, most=MAX_GPUS, least=1) if "gpus" in value else 0,
    )


def _parse_limits(value: JsonObject) -> Limits:
    what = "manifest.limits"
    members(value, what=what, required=set(Limits.__slots__))
    return Limits(
        memory_mib=natural(value, "memory_mib", what=what, most=MAX_MIB, least=16),
        pids=natural(value, "pids", what=what, most=1 << 22, least=1),
        scratch_mib=natural(value, "scratch_mib", what=what, most=MAX_MIB),
        outputs_mib=natural(value, "outputs_mib", what=what, most=MAX_MIB, least=1),
        log_mib=natural(value, "log_mib", what=what, most=MAX_LOG_MIB, least=1),
        seconds=natural(value, "seconds", what=what, most=MAX_SECONDS, least=1),
    )


def _list(value: JsonObject, key: str, most: int) -> list[object]:
    items = typed(value, key, list, what="manifest")
    if len(items) > most:
        raise FormatError(f"manifest.{key} has {len(items)} entries; at most {most} are allowed")
    return items


def _object(value: object, what: str) -> JsonObject:
    if not isinstance(value, dict):
        raise FormatError(f"{what} is a {type(value).__name__}; an object is required")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or "\0" in value or len(value) > MAX_TEXT:
        raise FormatError(f"{what} is not a string without NUL of at most {MAX_TEXT} characters")
    return value


def require_distinct(names: list[str], what: str) -> None:
    """Check that no name stands twice in a list.

    Raises:
        FormatError: one does.
    """
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise FormatError(f"{what} names {twice!r} twice")
