# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Decisions kept for later: everything that one was made from, so that it can be made again, offline.

Zone: flows (owner's machine). Needs no host and no libvirt.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cvmtool.config import private_dir, write_atomic
from cvmtool.errors import ConfigError, CvmError, FormatError
from cvmtool.formats.evidence import MAX_EVIDENCE, Evidence, parse_evidence
from cvmtool.formats.wire import members, natural, parse_hex, parse_json, typed
from cvmtool.owner.appraise import VerifiedGuest
from cvmtool.owner.policy import Policy
from cvmtool.owner.policyfile import encode_policy, parse_policy
from cvmtool.owner.session import judge_evidence

# Names in a case's directory.
EVIDENCE_FILE = "evidence.bin"
POLICY_FILE = "policy.toml"
CASE_FILE = "case.json"
CASE_SCHEMA = "cvmtool/case/v1"
MAX_FILE = 1 << 20  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A decision and what it was made from."""

    evidence: Evidence
    policy: Policy
    nonce: bytes
    host_data: bytes
    at: datetime
    exit_code: int
    """Of the refusal as it was recorded; 0: the guest was accepted."""
    message: str

    @property
    def accepted(self) -> bool:
        """Whether the guest was."""
        return self.exit_code == 0

    def decide(self) -> VerifiedGuest:
        """Decide again, as of the time of the case.

        Raises:
            FormatError, VerificationError, FreshnessError, AppraisalError: the refusal.
        """
        return judge_evidence(self.evidence, policy=self.policy, nonce=self.nonce, host_data=self.host_data, at=self.at)

    def is_same(self, error: CvmError) -> bool:
        """Say whether a refusal is the recorded one, word for word."""
        return (error.exit_code, error.message) == (self.exit_code, self.message)


def save_case(
    cases_dir: Path,
    *,
    evidence: Evidence,
    policy: Policy,
    nonce: bytes,
    host_data: bytes,
    at: datetime,
    error: CvmError | None,
) -> Path:
    """Write a case; return its directory. `error`: the refusal; None: the guest was accepted."""
    folder = private_dir(private_dir(cases_dir) / f"{at:%Y%m%d-%H%M%S}-{nonce.hex()[:8]}")
    write_atomic(folder / EVIDENCE_FILE, evidence.encode())
    write_atomic(folder / POLICY_FILE, encode_policy(policy).encode("utf-8"))
    case = {
        "schema": CASE_SCHEMA,
        "at": at.isoformat(),
        "nonce": nonce.hex(),
        "host_data": host_data.hex(),
        "exit_code": 0 if error is None else error.exit_code,
        "message": "accepted" if error is None else error.message,
    }
    write_atomic(folder / CASE_FILE, json.dumps(case, indent=1).encode("utf-8") + b"\n")
    return folder


def read_case(folder: Path) -> Case:
    """Read a case.

    Raises:
        ConfigError: there is none, or its policy cannot be used.
        FormatError: one of its files is malformed.
    """
    value = parse_json(_read(folder / CASE_FILE), what=CASE_FILE, limit=MAX_FILE)
    members(value, what=CASE_FILE, required={"schema", "at", "nonce", "host_data", "exit_code", "message"})
    if value["schema"] != CASE_SCHEMA:
        raise FormatError(f"{CASE_FILE}: schema is {str(value['schema'])[:48]!r}; {CASE_SCHEMA!r} is required")
    try:
        at = datetime.fromisoformat(typed(value, "at", str, what=CASE_FILE))
    except ValueError as error:
        raise FormatError(f"{CASE_FILE}: at is {value['at'][:40]!r}; RFC 3339 is required") from error
    if at.tzinfo is None:
        raise FormatError(f"{CASE_FILE}: at is {value['at'][:40]!r}; a time zone is required")
    evidence = _read(folder / EVIDENCE_FILE)
    if len(evidence) > MAX_EVIDENCE:
        raise FormatError(f"{EVIDENCE_FILE} has {len(evidence)} bytes; at most {MAX_EVIDENCE} are allowed")
    return Case(
        evidence=parse_evidence(evidence),
        policy=parse_policy(_read(folder / POLICY_FILE).decode("utf-8", "replace")),
        nonce=parse_hex(value["nonce"], 32, what=f"{CASE_FILE}: nonce"),
        host_data=parse_hex(value["host_data"], 32, what=f"{CASE_FILE}: host_data"),
        at=at,
        exit_code=natural(value, "exit_code", what=CASE_FILE, most=255),
        message=typed(value, "message", str, what=CASE_FILE),
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE)
    except OSError as error:
        hint = "cvmtool names a case's directory when it refuses"
        raise ConfigError(f"{path} cannot be read", detail=str(error), hint=hint) from error
