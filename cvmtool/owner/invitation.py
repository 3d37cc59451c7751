# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What the owner of a running job gives its clients: how to find it, and by what to judge it. Nothing in it is secret.

Zone: owner. Pure: no I/O. Whoever takes one judges the guest alone: the manifest is checked against the guest's report, and the
policy is the inviter's word unless the client has one of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from cvmtool.errors import ConfigError, FormatError
from cvmtool.formats.job import MAX_MANIFEST, JobManifest, parse_job_manifest
from cvmtool.formats.wire import JsonObject, canonical_json, members, parse_base64, parse_json, to_base64, typed
from cvmtool.owner.policy import Policy
from cvmtool.owner.policyfile import encode_policy, parse_policy

SCHEMA = "cvmtool/invitation/v1"
MAX_INVITATION = 1 << 20  # bytes
_MAX_TEXT = 4_096  # characters of a name or a URI


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """A way to a running job."""

    machine: str
    """Its name on its host."""
    uri: str
    """The libvirt URI at which its owner reaches that host; a client may need another."""
    manifest: JobManifest
    policy: Policy

    def encode(self) -> bytes:
        """Return the invitation as a file's content: JSON."""
        return canonical_json(
            {
                "schema": SCHEMA,
                "machine": self.machine,
                "uri": self.uri,
                "manifest": to_base64(self.manifest.encode()),
                "policy": encode_policy(self.policy),
            }
        )


def parse_invitation(data: bytes) -> Invitation:
    """Read an invitation.

    Raises:
        FormatError: it is none, or its manifest or policy cannot be used.
    """
    what = "invitation"
    value = parse_json(data, what=what, limit=MAX_INVITATION)
    members(value, what=what, required={"schema", "machine", "uri", "manifest", "policy"})
    if value["schema"] != SCHEMA:
        raise FormatError(f"{what}.schema is {str(value['schema'])[:48]!r}; {SCHEMA!r} is required")
    return Invitation(
        machine=_text(value, "machine"),
        uri=_text(value, "uri"),
        manifest=parse_job_manifest(parse_base64(value["manifest"], what=f"{what}.manifest", limit=MAX_MANIFEST)),
        policy=_policy(typed(value, "policy", str, what=what)),
    )


def _text(value: JsonObject, key: str) -> str:
    text = typed(value, key, str, what="invitation")
    if len(text) > _MAX_TEXT:
        raise FormatError(f"invitation.{key} has {len(text)} characters; at most {_MAX_TEXT} are allowed")
    return text


def _policy(text: str) -> Policy:
    try:
        return parse_policy(text)
    except ConfigError as error:
        raise FormatError(f"invitation.policy: {error.message}", detail=error.detail) from error
