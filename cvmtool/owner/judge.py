# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Compare an authentic report with a policy: every check, none skipped for another's sake.

Zone: owner (trusted). Pure: no I/O, no clock.
Spec: AMD 56860 SEV-SNP Firmware ABI, ATTESTATION_REPORT, GUEST_POLICY, PLATFORM_INFO.

Q1 measurement · Q3 host data · Q4 guest policy and ABI floor · Q5 VMPL · Q6 platform · Q7 TCB floors · Q8 firmware ·
Q9 mitigations · Q10 ID block · Q11 chip and provider · Q12 report version · Q14 product; and whose root, revocation,
migration agent. Q2, freshness, is `appraise`'s. Nothing here decides: a list comes out, and `appraise` decides.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator

from cvmtool.formats.policybits import PLATFORM_BITS, POLICY_BITS
from cvmtool.formats.report import Report, SigningKey
from cvmtool.formats.tcb import ProductLine, Tcb
from cvmtool.owner.chain import Revocation
from cvmtool.owner.checks import Check
from cvmtool.owner.floors import Floor, applicable, shortfalls
from cvmtool.owner.policy import IdBlock, Policy, RevocationRule, RootKind, Rule
from cvmtool.owner.verify import AuthenticReport

_NO_MIGRATION_AGENT = b"\xff" * 32


def judge(authentic: AuthenticReport, policy: Policy, *, host_data: bytes | None = None) -> tuple[Check, ...]:
    """Return every check that `policy` asks for, passed or not; with `host_data` (32 bytes) also that it is this."""
    report = authentic.report
    return (
        *_origin(authentic, policy),
        *_measurement(authentic, policy),
        *_identity(report, policy, host_data),
        *_guest_policy(report, policy),
        *_platform(report, policy),
        *_versions(authentic, policy),
        *_id_block(report, policy.id_block),
    )


def _origin(authentic: AuthenticReport, policy: Policy) -> Iterator[Check]:
    """Whose processor: root, revocation, product, kind of key, chip, provider."""
    report = authentic.report
    roots = policy.trusted_roots()
    kind = RootKind.SIMULATED if authentic.simulated else RootKind.AMD
    yield Check(
        "roots",
        f"{kind} {authentic.root_fingerprint.hex()}",
        roots.describe(authentic.line),
        passed=authentic.simulated == roots.simulated and roots.accepts(authentic.line, authentic.root_fingerprint),
        why="a simulated processor keeps no secret; a real one must not pass for a dry run",
    )
    yield Check(
        "revocation-checked",
        authentic.revocation,
        Revocation.CHECKED if policy.revocation is RevocationRule.REQUIRED else "checked or not",
        passed=authentic.revocation is Revocation.CHECKED or policy.revocation is RevocationRule.REPORT,
        why="without AMD's list an intermediate that AMD withdrew still counts",
    )
    yield Check(
        "product-allowed",
        authentic.line,
        _any_of(policy.products),
        passed=authentic.line in policy.products,
        why="chip keys of Milan can be extracted in software by whoever owns the chip: it counts for listed chips, or because "
        "the policy says allow_milan"
        if authentic.line is ProductLine.MILAN
        else "lines differ in what their owners can do to them",
    )
    key = authentic.vek.kind.name.lower()
    yield Check(
        "key-kind-allowed",
        key,
        _any_of(policy.signing_keys),
        passed=key in policy.signing_keys,
        why="a provider's key does not say which chip signed",
    )
    if policy.chips is not None:
        hwid = authentic.vek.hwid
        yield Check(
            "chip-allowed",
            "masked" if hwid is None else hwid.hex(),
            f"one of {len(policy.chips)} listed chips",
            passed=hwid is not None and hwid in policy.chips,
            why="a report can be relayed from a machine that the attacker owns",
        )
    if policy.providers is not None and authentic.vek.kind is SigningKey.VLEK:
        yield Check(
            "provider-allowed",
            authentic.vek.csp_id or "none",
            _any_of(policy.providers),
            passed=authentic.vek.csp_id in policy.providers,
            why="each provider has its own key; another's chips are not this one's",
        )
    yield Check(
        "report-version",
        str(report.version),
        f"{policy.min_report_version} or later",
        passed=report.version >= policy.min_report_version,
        why="older reports hide processor and platform state",
    )


def _measurement(authentic: AuthenticReport, policy: Policy) -> Iterator[Check]:
    """Q1, as of the time of verification: a digest that is accepted at any time, or by a set that holds now."""
    value, at = authentic.report.measurement, authentic.verified_at
    named = [entry for entry in policy.measurement_sets if value in entry.digests]
    held = (entry.digests for entry in policy.measurement_sets if entry.holds(at))
    accepted = policy.measurements.union(*held)
    of = ", ".join(f"{entry.name} {entry.period}".rstrip() for entry in named)
    yield Check(
        "measurement",
        f"{value.hex()} (set {of})" if of else value.hex(),
        _any_of(digest.hex() for digest in accepted)
        if len(accepted) == 1
        else f"one of {len(accepted)} launch digests" + (f" that hold at {at.isoformat()}" if named else ""),
        passed=value in accepted,
        why="firmware, kernel, initrd, command line and CPU state are what the image's owner built",
    )
    if policy.revoked_measurements:
        revoked = value in policy.revoked_measurements
        yield Check(
            "measurement-revoked",
            "revoked" if revoked else "not revoked",
            f"none of {len(policy.revoked_measurements)} withdrawn launch digests",
            passed=not revoked,
            why="the image's owner withdrew it, perhaps for a hole that was found in it",
        )


def _identity(report: Report, policy: Policy, host_data: bytes | None) -> Iterator[Check]:
    """For whom it was launched, who in the guest speaks, and what a signer calls it."""
    if host_data is not None:
        yield Check(
            "host-data",
            report.host_data.hex(),
            host_data.hex(),
            passed=hmac.compare_digest(report.host_data, host_data),
            why="the launch is for this owner and this job",
        )
    if policy.host_data is not None:
        yield Check(
            "host-data-allowed",
            report.host_data.hex(),
            _any_of(value.hex() for value in policy.host_data),
            passed=report.host_data in policy.host_data,
            why="the launch is for an owner and a job that the policy names",
        )
    yield Check(
        "vmpl",
        str(report.vmpl),
        _any_of(map(str, policy.vmpl)),
        passed=report.vmpl in policy.vmpl,
        why="less privileged software in the guest must not speak for the whole guest",
    )
    for code, value, wanted in (
        ("family-id", report.family_id, policy.family_ids),
        ("image-id", report.image_id, policy.image_ids),
    ):
        if wanted is not None:
            yield Check(
                code,
                value.hex(),
                _any_of(name.hex() for name in wanted),
                passed=value in wanted,
                why="whoever signed the launch named the image it is for",
            )


def _guest_policy(report: Report, policy: Policy) -> Iterator[Check]:
    for name in POLICY_BITS:
        rule = policy.guest_policy[name]
        if rule is not Rule.ANY:
            yield _bit(f"policy-{name}", rule, present=report.policy.has(name), why=_POLICY_WHY[name])
    abi = (report.policy.abi_major, report.policy.abi_minor)
    yield Check(
        "policy-abi",
        f"{abi[0]}.{abi[1]}",
        f"{policy.min_abi[0]}.{policy.min_abi[1]} or later",
        passed=abi >= policy.min_abi,
        why="the guest refuses to start on firmware that is older than this",
    )
    if policy.guest_policy["migrate-ma"] is Rule.FORBIDDEN:
        yield Check(
            "migration-agent",
            "none" if report.report_id_ma == _NO_MIGRATION_AGENT else report.report_id_ma.hex(),
            "none",
            passed=report.report_id_ma == _NO_MIGRATION_AGENT,
            why="a migration agent can take the guest's memory elsewhere",
        )


def _platform(report: Report, policy: Policy) -> Iterator[Check]:
    for name in PLATFORM_BITS:
        rule = policy.platform_info[name]
        if rule is not Rule.ANY:
            yield _bit(f"platform-{name}", rule, present=report.platform_info.has(name), why=_PLATFORM_WHY[name])
    unknown = report.platform_info.unknown
    yield Check(
        "platform-unknown",
        f"{unknown:#x}" if unknown else "none",
        "any" if policy.unknown_platform_info is Rule.ANY else "none",
        passed=policy.unknown_platform_info.allows(present=bool(unknown)),
        why="a bit that this cvmtool does not know may switch a protection off",
    )


def _versions(authentic: AuthenticReport, policy: Policy) -> Iterator[Check]:
    report = authentic.report
    if policy.tcb_floors is not None:
        yield _tcb(authentic, policy.tcb_floors)
    if policy.min_firmware is not None:
        versions = (report.current_firmware, report.committed_firmware)
        yield Check(
            "firmware",
            f"current {versions[0]}, committed {versions[1]}",
            f"{policy.min_firmware} or later",
            passed=all(version.key() >= policy.min_firmware.key() for version in versions),
            why="older firmware has holes that the floors do not name",
        )
    yield Check(
        "provisional-firmware",
        f"current {report.current_firmware}, committed {report.committed_firmware}",
        "any" if policy.provisional_firmware is Rule.ANY else "equal",
        passed=policy.provisional_firmware.allows(present=report.current_firmware != report.committed_firmware),
        why="the host can still go back from firmware that it has not committed",
    )
    if policy.mitigations is not None:
        vectors = report.mitigations
        yield Check(
            "mitigations",
            "not reported" if vectors is None else f"launch {vectors[0]:#x}, current {vectors[1]:#x}",
            f"all of {policy.mitigations:#x}",
            passed=vectors is not None and not any(policy.mitigations & ~vector for vector in vectors),
            why="each bit is a hole that was closed before the guest started",
        )


def _tcb(authentic: AuthenticReport, floors: tuple[Floor, ...]) -> Check:
    """Q7. A processor for which no floor is known is refused: nothing is known of its holes, either."""
    held = applicable(authentic.line, authentic.silicon, floors)
    if not held:
        return Check(
            "tcb",
            f"no floor known for {authentic.silicon or authentic.line}",
            "one or more",
            passed=False,
            why=_TCB_WHY,
        )
    tcbs = authentic.tcbs
    named: tuple[tuple[str, Tcb], ...] = (
        ("current", tcbs.current),
        ("committed", tcbs.committed),
        ("reported", tcbs.reported),
        ("launch", tcbs.launch),
    )
    # The four are mostly equal: each different one is compared once.
    below = {tcb: shortfalls(tcb, authentic.silicon, held) for tcb in {tcb for _, tcb in named}}
    if not any(below.values()):
        every = f"every floor of {authentic.silicon or authentic.line}"
        return Check("tcb", str(tcbs.reported), every, passed=True, why=_TCB_WHY)
    short = [(name, s) for name, tcb in named for s in below[tcb]]
    actual = ", ".join(dict.fromkeys(f"{name} {s.floor.component}={s.actual}" for name, s in short))
    required = ", ".join(dict.fromkeys(f"{s.floor.component}>={s.floor.value} ({s.floor.bulletin})" for _, s in short))
    return Check("tcb", actual, required, passed=False, why=_TCB_WHY)


def _id_block(report: Report, block: IdBlock | None) -> Iterator[Check]:
    """Q10. The firmware verified the ID block at launch: digests suffice. A trusted author vouches for any ID key."""
    if block is None:
        return
    by_author = report.author_key_en and report.author_key_digest in block.author_keys
    yield Check(
        "id-block",
        f"id key {report.id_key_digest.hex()}, author key "
        + (report.author_key_digest.hex() if report.author_key_en else "none"),
        f"one of {len(block.id_keys)} id keys or {len(block.author_keys)} author keys",
        passed=by_author or report.id_key_digest in block.id_keys,
        why="somebody whom the owner trusts signed this launch",
    )
    yield Check(
        "guest-svn",
        str(report.guest_svn),
        f"{block.min_guest_svn} or higher",
        passed=report.guest_svn >= block.min_guest_svn,
        why="the signer withdrew older versions",
    )


_TCB_WHY = "each floor is the version in which a published hole was closed"

_POLICY_WHY = {
    "smt": "a sibling thread shares the core with the guest's",
    "migrate-ma": "a migration agent can take the guest's memory elsewhere",
    "debug": "the host can read and write the memory of a guest that allows debugging",
    "single-socket": "memory traffic between sockets can be observed",
    "cxl-allow": "memory on a CXL device is outside the processor's package",
    "mem-aes-256-xts": "the weaker memory cipher is not used",
    "rapl-dis": "power readings leak what a guest computes",
    "ciphertext-hiding-dram": "a host that sees ciphertext change can follow a guest",
    "page-swap-disable": "a host that moves pages can follow and confuse a guest",
}

_PLATFORM_WHY = {
    "smt-en": "a sibling thread shares the core with the guest's",
    "tsme-en": "all memory is encrypted with a key that guests do not share",
    "ecc-en": "flipped bits in memory are found",
    "rapl-dis": "power readings leak what a guest computes",
    "ciphertext-hiding-dram-en": "a host that sees ciphertext change can follow a guest",
    "alias-check-complete": "memory modules that lie about their size let a host read and replay memory",
    "iommu-write-safe": "devices cannot write to the table that guards the guest's memory",
    "tio-en": "a device that may be trusted with guest memory is one more thing to attest",
}


def _bit(code: str, rule: Rule, *, present: bool, why: str) -> Check:
    return Check(code, "set" if present else "clear", rule, passed=rule.allows(present=present), why=why)


def _any_of(values: Iterable[str]) -> str:
    return " or ".join(sorted(values))
