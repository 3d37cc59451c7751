# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The machine manifest: what a launch commits to when there is no job, and an operator works in the guest instead.

Zone: shared. Pure: no I/O.
Spec: docs/protocol.md sections 1 and 12.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cvmtool.errors import FormatError
from cvmtool.formats.evidence import host_data
from cvmtool.formats.job import (
    MAX_MANIFEST,
    JobManifest,
    Resources,
    parse_job_manifest,
    parse_resources,
    require_distinct,
)
from cvmtool.formats.job import SCHEMA as JOB_SCHEMA
from cvmtool.formats.pack import NAME
from cvmtool.formats.volume import Volume, parse_volume
from cvmtool.formats.wire import canonical_json, members, parse_canonical_json, parse_hex, parse_json, typed

SCHEMA = "cvmtool/machine/v1"
MAX_VOLUMES = 16  # disks
SHELL_WORD = "cvmtool.shell=1"
"""On the measured command line of an image whose guests may give their owner a shell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineManifest:
    """A machine without a job. The same bytes at owner and guest; their digest is in every report of the launch."""

    name: str
    salt: str
    """32 random bytes as hex: nobody confirms a guess of the manifest from HOST_DATA."""
    owner_key: str
    """The owner's Ed25519 SSH key, 32 bytes as hex."""
    volumes: tuple[Volume, ...]
    shell: bool
    """Whether the owner's key also opens a shell. Only an image whose measured command line says so allows it."""
    resources: Resources

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return canonical_json(
            {
                "schema": SCHEMA,
                "name": self.name,
                "salt": self.salt,
                "owner_key": self.owner_key,
                "volumes": [volume.to_json() for volume in self.volumes],
                "shell": self.shell,
                "resources": self.resources.to_json(),
            }
        )

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the canonical bytes, 32 bytes."""
        return hashlib.sha256(self.encode()).digest()

    @property
    def host_data(self) -> bytes:
        """HOST_DATA of every launch of this machine, 32 bytes."""
        return host_data(owner_key=bytes.fromhex(self.owner_key), manifest_sha256=self.sha256)


Manifest = JobManifest | MachineManifest
"""What a launch can commit to."""


def parse_machine_manifest(data: bytes) -> MachineManifest:
    """Read a machine manifest from its canonical bytes.

    Raises:
        FormatError: not canonical, a key missing, unknown or out of range, or two volumes of one name or UUID.
    """
    what = "manifest"
    value = parse_canonical_json(data, what=what, limit=MAX_MANIFEST)
    members(value, what=what, required={"schema", *MachineManifest.__slots__})
    if value["schema"] != SCHEMA:
        raise FormatError(f"manifest.schema is {str(value['schema'])[:48]!r}; {SCHEMA!r} is required")
    name = typed(value, "name", str, what=what)
    if not NAME.fullmatch(name):
        raise FormatError(f"manifest.name is {name[:64]!r}; lower-case letters, digits, '.', '_' and '-' are required")
    parse_hex(value["salt"], 32, what="manifest.salt")
    parse_hex(value["owner_key"], 32, what="manifest.owner_key")
    listed = typed(value, "volumes", list, what=what)
    if len(listed) > MAX_VOLUMES or not all(isinstance(item, dict) for item in listed):
        raise FormatError(f"manifest.volumes has {len(listed)} entries; at most {MAX_VOLUMES} objects are required")
    volumes = tuple(parse_volume(item) for item in listed)
    require_distinct([volume.name for volume in volumes], "manifest.volumes")
    # Not the UUID, whose beginning finds the disk.
    require_distinct([volume.serial for volume in volumes], "manifest.volumes")
    return MachineManifest(
        name=name,
        salt=value["salt"],
        owner_key=value["owner_key"],
        volumes=volumes,
        shell=typed(value, "shell", bool, what=what),
        resources=parse_resources(typed(value, "resources", dict, what=what)),
    )


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest of either kind, told by its schema.

    Raises:
        FormatError: another schema, or as the reader of its kind.
    """
    schema = parse_json(data, what="manifest", limit=MAX_MANIFEST).get("schema")
    if schema == JOB_SCHEMA:
        return parse_job_manifest(data)
    if schema == SCHEMA:
        return parse_machine_manifest(data)
    raise FormatError(f"manifest.schema is {str(schema)[:48]!r}; {JOB_SCHEMA!r} or {SCHEMA!r} is required")
