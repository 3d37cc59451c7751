# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Sign what is said of a pack, verify it, and decide whether a job may have the pack.

Zone: owner. Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cvmtool.errors import AppraisalError, ConfigError, Finding, VerificationError
from cvmtool.formats.packheader import PackHeader, Sensitivity
from cvmtool.owner.keystore import OwnerKeys


def sign_header(header: PackHeader, keys: OwnerKeys) -> PackHeader:
    """Return `header` under the owner's key, with its signature."""
    unsigned = replace(header, owner_key=keys.public.hex(), signature="")
    return replace(unsigned, signature=keys.sign(unsigned.signed).hex())


def verify_header(header: PackHeader) -> None:
    """Check that the holder of the key that a header names has signed all of it. Whose key that is, the caller decides.

    Raises:
        VerificationError: the signature is another's, or of something else.
    """
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(header.owner_key))
    try:
        key.verify(bytes.fromhex(header.signature), header.signed)
    except InvalidSignature:
        raise VerificationError(
            f"the header of pack {header.pack.name} is not signed by the key {header.owner_key[:16]}... that it names",
            hint="it was changed, or is no header of cvmtool's; pack the source again",
        ) from None


def refuse_unscrubbed(inputs: Mapping[str, PackHeader | None], waive: Collection[str]) -> tuple[str, ...]:
    """Decide about a job's inputs: one that is marked personal was scrubbed, or the job waives that by name.

    Args:
        inputs: by name; None for what carries no header (a directory that the job itself seals).
        waive: the names that the job waives.

    Returns:
        The names that the waiver let through.

    Raises:
        ConfigError: the job waives what is no input of its, or needs no waiver: a waiver must not lie about.
        AppraisalError: an input was neither scrubbed nor waived; all of them are listed.
    """
    unscrubbed = {
        name: header
        for name, header in inputs.items()
        if header and header.metadata.sensitivity is Sensitivity.PERSONAL and not header.scrubbed
    }
    for name in waive:
        if name not in unscrubbed:
            reason = "needs no waiver" if name in inputs else "is no input of the job"
            raise ConfigError(f"waive names {name[:80]!r}, which {reason}; required: personal and not scrubbed")
    findings = tuple(
        Finding(
            code="unscrubbed-input",
            field=f"inputs.{name}",
            actual="sensitivity personal, never scrubbed",
            required="scrubbed, or named under waive:",
            why="data about people goes into a model as it is, and a model can give it back",
        )
        for name in sorted(unscrubbed.keys() - set(waive))
    )
    if findings:
        raise AppraisalError(
            f"{len(findings)} input(s) of the job are personal and were not scrubbed",
            findings=findings,
            hint="remove what points at people, pack again and say so with --sensitivity; or waive: [NAME] in the job file",
        )
    return tuple(sorted(unscrubbed))
