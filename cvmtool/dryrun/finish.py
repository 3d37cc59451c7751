# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The end of a launch: the firmware compares what was started with what its owner signed.

Zone: dryrun. Pure.
Spec: AMD 56860 SEV-SNP Firmware ABI, SNP_LAUNCH_FINISH. On hardware QEMU reports the firmware's status and the machine never
runs; a simulated launch runs already when its processor comes to look at it, and gets no report.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from cvmtool.errors import AppraisalError, Finding
from cvmtool.formats.idblock import LaunchIdentity, P384Key, Signature
from cvmtool.formats.policybits import GuestPolicy

_WHY = "the firmware itself refuses a launch that is not the one its owner signed"


def finish_launch(identity: LaunchIdentity, *, digest: bytes, policy: GuestPolicy) -> None:
    """Refuse a launch whose `digest` (48 bytes) or `policy` is not the ID block's, or whose signatures do not hold.

    Raises:
        AppraisalError: the refusal, with the firmware's name for it.
    """
    block, auth = identity.block, identity.auth
    if block.digest != digest:
        raise _refusal("BAD_MEASUREMENT", "launch digest", digest.hex(), block.digest.hex())
    if block.policy != policy:
        raise _refusal("POLICY_FAILURE", "policy", f"{policy.value:#x}", f"{block.policy.value:#x}")
    author = auth.author
    signed = _holds(auth.key, auth.signature, block.encode())
    if not signed or (author is not None and not _holds(author.key, author.signature, auth.key.encode())):
        raise _refusal("BAD_SIGNATURE", "signature of the id block", "invalid", "one by its id key, and its author's")


def _holds(key: P384Key, signature: Signature, data: bytes) -> bool:
    public = ec.EllipticCurvePublicNumbers(key.x, key.y, ec.SECP384R1()).public_key()
    try:
        public.verify(utils.encode_dss_signature(signature.r, signature.s), data, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True


def _refusal(status: str, field: str, actual: str, required: str) -> AppraisalError:
    finding = Finding(code="launch-identity", field=field, actual=actual, required=required, why=_WHY)
    return AppraisalError(
        f"the firmware refused the launch ({status}): {field} is {actual}, the owner signed {required}",
        findings=(finding,),
        hint="the host started something else than the image, or its copy is damaged; nothing was released to it",
    )
