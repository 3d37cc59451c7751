# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A verdict in plain words: who could read the data in this run, and why not.

Zone: owner (trusted). Pure: no I/O. Says what the checks found and decides nothing: the verdict is the checks'.

Each check answers one question that somebody without the specification would ask. A question whose checks all passed is
answered "no"; one of whose checks failed, "perhaps"; one that no check looked at, "nobody looked".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from cvmtool.owner.checks import Check


class Answer(StrEnum):
    """The answer to "could they?"."""

    NO = "no"
    PERHAPS = "perhaps"
    UNKNOWN = "nobody looked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A question, its answer, and the reasons: what passed (NO), what failed (PERHAPS), what would be needed (UNKNOWN)."""

    question: str
    answer: Answer
    reason: str

    def sentence(self) -> str:
        """Return all three on one line."""
        return f"{self.question} {self.answer}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """`codes`: the checks that answer it; one that ends in a dash stands for every code that starts so."""

    text: str
    no: str
    unknown: str
    codes: tuple[str, ...]

    def asks(self, code: str) -> bool:
        return any(code == own or (own.endswith("-") and code.startswith(own)) for own in self.codes)


QUESTIONS: tuple[_Question, ...] = (
    _Question(
        text="could somebody have made this report up?",
        no="a processor's key signed it, and AMD's pinned root vouches for that key",
        unknown="nothing was verified",
        codes=(
            "requester", "signing-key", "root-pinned", "chain", "certificate-profile", "certificate-validity", "key-kind",
            "signature", "roots", "product", "chip", "tcb-binding", "tcb-order", "claims", "revocation", "revocation-checked",
        ),
    ),
    _Question(
        text="could it be an old report, or another machine's?",
        no="it answers this very challenge and names the keys of this connection",
        unknown="give the challenge that was sent (--report-data)",
        codes=("report-data",),
    ),
    _Question(
        text="could another program than the expected one be running?",
        no="the processor measured firmware, kernel and command line at the start, and they are the expected ones",
        unknown="the policy names no measurement",
        codes=("measurement", "measurement-revoked", "vmpl", "id-block", "guest-svn", "family-id", "image-id"),
    ),
    _Question(
        text="could the machine have been started for somebody else's job?",
        no="owner and job are sealed into the launch",
        unknown="state host_data in the policy",
        codes=("host-data", "host-data-allowed"),
    ),
    _Question(
        text="could the provider's staff read its memory?",
        no="memory is encrypted with a key that never leaves the processor, and debugging and migration are off",
        unknown="the policy states no rule for guest or platform",
        codes=("policy-", "migration-agent", "platform-", "report-version"),
    ),
    _Question(
        text="could a known hole in the processor's firmware help them?",
        no="every version is at or above the one in which the listed holes were closed",
        unknown="state tcb_floors in the policy",
        codes=("tcb", "firmware", "provisional-firmware", "mitigations"),
    ),
    _Question(
        text="could this be a machine that an attacker owns and has opened?",
        no="its processor is of a kind and in a place that the policy names",
        unknown="state products and chips in the policy",
        codes=("product-allowed", "key-kind-allowed", "chip-allowed", "provider-allowed"),
    ),
)  # fmt: skip

GPU_QUESTIONS: tuple[_Question, ...] = (
    _Question(
        text="could a GPU be none of NVIDIA's, or another machine's?",
        no="each answered this very challenge with a key that NVIDIA's pinned root vouches for; they are as many as wanted",
        unknown="nothing was verified",
        codes=("gpu-signature", "gpu-nonce", "gpu-firmware-id", "gpu-count", "gpu-identity", "gpu-revocation"),
    ),
    _Question(
        text="could a GPU let somebody look on?",
        no="its firmware measures as NVIDIA has signed it, and it is in the mode that encrypts what crosses the bus",
        unknown="nothing was measured",
        codes=(
            "gpu-chip", "gpu-driver", "gpu-driver-manifest", "gpu-vbios", "gpu-vbios-manifest", "gpu-mode", "gpu-protected-pcie",
            "gpu-measurements",
        ),
    ),
    _Question(
        text="could it be a GPU that an attacker owns and has opened?",
        no="each is one that the policy names",
        unknown="state devices in the GPU policy",
        codes=("gpu-device",),
    ),
)  # fmt: skip
"""Asked where a guest has GPUs."""

NOT_VISIBLE = (
    "no report can show: probes on the memory bus, side channels, holes that nobody has published, "
    "or what the measured program itself does with the data"
)


def explain(checks: Iterable[Check], *, unchecked: Iterable[str], simulated: bool) -> tuple[Statement, ...]:
    """Return an answer to each question, in a fixed order.

    `unchecked` are the policy's: a chip that nobody listed leaves the last question open, for instance. A dry run is
    confidential to nobody, whatever its checks say.
    """
    found, skipped = tuple(checks), frozenset(unchecked)
    with_gpus = any(check.code.startswith("gpu-") for check in found)
    questions = (*QUESTIONS, *(GPU_QUESTIONS if with_gpus else ()))
    statements = tuple(_answer(question, found, skipped) for question in questions)
    if not simulated:
        return statements
    reason = "this is a dry run: nothing is encrypted, and whoever runs the host can read everything"
    return (
        Statement(question="could the host read the data?", answer=Answer.PERHAPS, reason=reason),
        *statements,
    )


_OPEN = {
    "chips": ("chip-allowed", "any chip of its kind would do; state chips in the policy"),
    "gpu-revocation": ("gpu-revocation", "whether NVIDIA has withdrawn a key; require revocation in the GPU policy"),
}
"""A name in `unchecked` that leaves a question open although others of its checks passed."""


def _answer(question: _Question, checks: tuple[Check, ...], skipped: frozenset[str]) -> Statement:
    asked = [check for check in checks if question.asks(check.code)]
    failed = [check for check in asked if not check.passed]
    if failed:
        reason = "; ".join(f"{check.sentence()} ({check.why})" for check in failed)
        return Statement(question=question.text, answer=Answer.PERHAPS, reason=reason)
    if not asked:
        return Statement(question=question.text, answer=Answer.UNKNOWN, reason=question.unknown)
    for name, (code, reason) in _OPEN.items():
        if name in skipped and question.asks(code):
            return Statement(question=question.text, answer=Answer.UNKNOWN, reason=reason)
    return Statement(question=question.text, answer=Answer.NO, reason=question.no)
