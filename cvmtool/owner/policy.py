# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What the owner accepts: a genuine report is judged against this, and nothing is accepted that is not stated here.

Zone: owner (trusted). Pure: no I/O.
Spec: AMD 56860 SEV-SNP Firmware ABI, ATTESTATION_REPORT (the names are AMD's).

No field has a default. What shall not be checked is spelled out in `unchecked`, and shown at each run; a field that is
neither stated nor unchecked is an error, and so is one that is both. Measurements are never optional.

FAMILY_ID and IMAGE_ID are what a signer wrote into the ID block, and zero without one: they can be asked for with `id_block`
alone. Left out, and why: REPORT_ID is new at each boot.

Rollover: a measurement set holds for a time; `revoked_measurements` are refused whatever else names them, so an image is
withdrawn by one line without touching the sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from cvmtool.errors import ConfigError
from cvmtool.formats.policybits import PLATFORM_BITS, POLICY_BITS
from cvmtool.formats.report import KNOWN_VERSIONS, MAX_VMPL, FirmwareVersion
from cvmtool.formats.tcb import ProductLine
from cvmtool.owner.amdroots import FINGERPRINT_BYTES, AmdRoots, Roots, SimulatedRoot
from cvmtool.owner.floors import Floor, built_in_floors

POLICY_SCHEMA = "cvmtool/policy/v1"

MEASUREMENT_BYTES = 48
HOST_DATA_BYTES = 32
CHIP_BYTES = (64, 8)
DIGEST_BYTES = 48
NAME_BYTES = 16
"""Of FAMILY_ID and IMAGE_ID."""


class Rule(StrEnum):
    """What a bit must be. `any` is a statement, too."""

    REQUIRED = "required"
    FORBIDDEN = "forbidden"
    ANY = "any"

    def allows(self, *, present: bool) -> bool:
        """Whether a bit that is `present` satisfies this rule."""
        return self is not (Rule.FORBIDDEN if present else Rule.REQUIRED)


class RootKind(StrEnum):
    """Whose root: AMD's, or that of a dry run, which proves nothing."""

    AMD = "amd"
    SIMULATED = "simulated"


class KeyKind(StrEnum):
    """Which key may sign: the chip's own, or the provider's."""

    VCEK = "vcek"
    VLEK = "vlek"


class RevocationRule(StrEnum):
    """Whether a revocation list must have been looked at, or its absence is only reported."""

    REQUIRED = "required"
    REPORT = "report"


@dataclass(frozen=True, slots=True, kw_only=True)
class IdBlock:
    """Who must have signed the launch: digests (48 bytes) of ID keys or of author keys, and the lowest GUEST_SVN."""

    id_keys: frozenset[bytes]
    author_keys: frozenset[bytes]
    min_guest_svn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementSet:
    """Launch digests (48 bytes each) that are accepted from `not_before` to `not_after`, both included, both aware.

    None leaves that side open. `name` is for people: a release, an image.
    """

    name: str
    digests: frozenset[bytes]
    not_before: datetime | None
    not_after: datetime | None

    def __post_init__(self) -> None:
        for key in ("not_before", "not_after"):
            moment = getattr(self, key)
            if moment is not None and moment.tzinfo is None:
                raise ConfigError(
                    f"policy.measurement_sets.{self.name}.{key} is {moment}; required: a time with its zone"
                )
        if self.not_before is not None and self.not_after is not None and self.not_after < self.not_before:
            raise ConfigError(
                f"policy.measurement_sets.{self.name}.not_after is {self.not_after.isoformat()}; "
                f"required: not before {self.not_before.isoformat()}"
            )

    def holds(self, at: datetime) -> bool:
        """Whether the set is accepted at `at` (aware)."""
        return (self.not_before is None or self.not_before <= at) and (self.not_after is None or at <= self.not_after)

    @property
    def period(self) -> str:
        """The time in which the set holds, for people."""
        return " ".join(
            f"{word} {moment.isoformat()}"
            for word, moment in (("from", self.not_before), ("until", self.not_after))
            if moment is not None
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The owner's expectations. None in a field means that it is unchecked, which `unchecked` says aloud.

    `measurements`: launch digests, 48 bytes each, at any time; `measurement_sets`: more of them, each for a time; neither
    counts for `revoked_measurements`. `family_ids`, `image_ids`: 16 bytes each, with `id_block` alone.
    `host_data`: 32 bytes each. `chips`: hardware identifiers, 64 bytes
    or 8 on Turin. `guest_policy`, `platform_info`: a rule for every named bit. `mitigations`: bits that both vectors
    must have. `min_abi`: the lowest firmware ABI that the guest may demand. `simulated_root`: SHA-256 of the dry run's
    root, exactly when `roots` is simulated.

    Raises:
        ConfigError: a set is empty, a size is wrong, a rule is missing, or two fields contradict each other.
    """

    roots: RootKind
    simulated_root: bytes | None
    products: frozenset[ProductLine]
    allow_milan: bool
    signing_keys: frozenset[KeyKind]
    min_report_version: int
    measurements: frozenset[bytes]
    measurement_sets: tuple[MeasurementSet, ...]
    revoked_measurements: frozenset[bytes]
    vmpl: frozenset[int]
    guest_policy: Mapping[str, Rule]
    min_abi: tuple[int, int]
    platform_info: Mapping[str, Rule]
    unknown_platform_info: Rule
    provisional_firmware: Rule
    revocation: RevocationRule
    host_data: frozenset[bytes] | None
    chips: frozenset[bytes] | None
    providers: frozenset[str] | None
    tcb_floors: tuple[Floor, ...] | None
    min_firmware: FirmwareVersion | None
    mitigations: int | None
    id_block: IdBlock | None
    family_ids: frozenset[bytes] | None
    image_ids: frozenset[bytes] | None

    def __post_init__(self) -> None:
        _check_sets(self)
        _check_rules(self)
        if (self.simulated_root is None) != (self.roots is RootKind.AMD):
            raise ConfigError("policy.simulated_root must be stated exactly when policy.roots is 'simulated'")
        if ProductLine.MILAN in self.products and not self.allow_milan and self.chips is None:
            raise ConfigError(
                "policy.products holds Milan, whose chip keys can be extracted in software by whoever owns the chip; "
                "required: policy.chips, or policy.allow_milan = true",
                hint="list the chips that you trust, or leave Milan out",
            )
        if self.providers is not None and KeyKind.VLEK not in self.signing_keys:
            raise ConfigError("policy.providers is stated, but policy.signing_keys does not hold 'vlek'")
        if self.id_block is None and (self.family_ids or self.image_ids):
            raise ConfigError(
                "policy.family_ids or image_ids is stated; required: policy.id_block, which vouches for it"
            )

    @property
    def unchecked(self) -> tuple[str, ...]:
        """The names of what this policy does not check, in a fixed order; shown at each run."""
        return tuple(name for name in OPTIONAL if name in _stateable(self) and getattr(self, OPTIONAL[name]) is None)

    def trusted_roots(self) -> Roots:
        """Return the roots that reports must be verified against under this policy."""
        return AmdRoots() if self.simulated_root is None else SimulatedRoot(self.simulated_root)


OPTIONAL: dict[str, str] = {
    "host-data": "host_data",
    "chips": "chips",
    "providers": "providers",
    "tcb-floors": "tcb_floors",
    "min-firmware": "min_firmware",
    "mitigations": "mitigations",
    "id-block": "id_block",
    "family-ids": "family_ids",
    "image-ids": "image_ids",
}
"""What may be named in `unchecked` -> the field that is None then."""


def stateable(*, vlek: bool, id_block: bool) -> set[str]:
    """Return the optional names that must be stated or left unchecked: providers exist with VLEK, names with an ID block."""
    absent = set() if vlek else {"providers"}
    return OPTIONAL.keys() - (absent if id_block else {*absent, "family-ids", "image-ids"})


def _stateable(policy: Policy) -> set[str]:
    return stateable(vlek=KeyKind.VLEK in policy.signing_keys, id_block=policy.id_block is not None)


def _check_sets(policy: Policy) -> None:
    if not policy.measurements and not policy.measurement_sets:
        raise ConfigError("policy.measurements is empty; required: one entry or more, or policy.measurement_sets")
    optional = ("host_data", "chips", "providers", "tcb_floors", "family_ids", "image_ids")
    for name in ("products", "signing_keys", "vmpl", *optional):
        value = getattr(policy, name)
        if value is not None and not value:
            raise ConfigError(f"policy.{name} is empty; required: one entry or more")
    root, block = policy.simulated_root, policy.id_block
    sized: tuple[tuple[str, frozenset[bytes], tuple[int, ...]], ...] = (
        ("measurements", policy.measurements, (MEASUREMENT_BYTES,)),
        ("revoked_measurements", policy.revoked_measurements, (MEASUREMENT_BYTES,)),
        *((f"measurement_sets.{s.name}", s.digests, (MEASUREMENT_BYTES,)) for s in policy.measurement_sets),
        ("family_ids", policy.family_ids or frozenset(), (NAME_BYTES,)),
        ("image_ids", policy.image_ids or frozenset(), (NAME_BYTES,)),
        ("host_data", policy.host_data or frozenset(), (HOST_DATA_BYTES,)),
        ("chips", policy.chips or frozenset(), CHIP_BYTES),
        ("simulated_root", frozenset() if root is None else frozenset({root}), (FINGERPRINT_BYTES,)),
        ("id_block.id_keys", frozenset() if block is None else block.id_keys, (DIGEST_BYTES,)),
        ("id_block.author_keys", frozenset() if block is None else block.author_keys, (DIGEST_BYTES,)),
    )
    for name, values, sizes in sized:
        for entry in values:
            if len(entry) not in sizes or not any(entry):
                # All zero is what a report holds when there is nothing to hold: it would match by absence.
                raise ConfigError(
                    f"policy.{name} holds {entry.hex()[:32]} of {len(entry)} bytes; "
                    f"required: {' or '.join(map(str, sizes))} bytes, not all zero"
                )
    names = [entry.name for entry in policy.measurement_sets]
    if len(set(names)) != len(names) or not all(entry.digests for entry in policy.measurement_sets):
        raise ConfigError(
            "policy.measurement_sets has a name twice or an empty set; required: names and digests of its own"
        )
    if block is not None and not block.id_keys | block.author_keys:
        raise ConfigError("policy.id_block names no key; required: id_keys or author_keys")


def _check_rules(policy: Policy) -> None:
    for name, rules, bits in (
        ("guest_policy", policy.guest_policy, POLICY_BITS),
        ("platform_info", policy.platform_info, PLATFORM_BITS),
    ):
        if rules.keys() != bits.keys():
            odd = min(rules.keys() ^ bits.keys())
            raise ConfigError(f"policy.{name}.{odd} is missing or unknown; required: a rule for {', '.join(bits)}")
    if policy.min_report_version not in KNOWN_VERSIONS:
        raise ConfigError(f"policy.min_report_version is {policy.min_report_version}; required: 2 to 5")
    if not all(0 <= level <= MAX_VMPL for level in policy.vmpl):
        raise ConfigError(f"policy.vmpl is {sorted(policy.vmpl)}; required: 0 to {MAX_VMPL}")
    if not all(0 <= number <= 255 for number in policy.min_abi):
        raise ConfigError(f"policy.min_abi is {policy.min_abi}; required: two numbers from 0 to 255")
    if policy.mitigations is not None and not 0 < policy.mitigations < 1 << 63:
        raise ConfigError(
            f"policy.mitigations is {policy.mitigations:#x}; required: 1 to 63 bits",
            hint="name 'mitigations' in policy.unchecked to ask for none",
        )
    if Rule.REQUIRED in (policy.unknown_platform_info, policy.provisional_firmware):
        raise ConfigError(
            "policy.unknown_platform_info and policy.provisional_firmware cannot be 'required'; "
            "required: 'forbidden' or 'any'"
        )


def baseline(*, roots: Roots, measurements: frozenset[bytes], host_data: frozenset[bytes] | None) -> Policy:
    """Return cvmtool's own recommendation, as a policy like any other: write it out, read it, change it.

    Genoa and Turin, signed by the chip's own key, reports of version 3 and later at VMPL 0; no debugging, migration,
    CXL or trusted I/O; memory checked for aliases; every built-in floor; a revocation list that was looked at.
    `measurements`: the launch digests of the image (48 bytes each); `host_data` None leaves it unchecked here, for
    callers that give the job's own value to `appraise`.
    """
    simulated = roots if isinstance(roots, SimulatedRoot) else None
    return Policy(
        roots=RootKind.AMD if simulated is None else RootKind.SIMULATED,
        simulated_root=None if simulated is None else simulated.fingerprint,
        products=frozenset({ProductLine.GENOA, ProductLine.TURIN}),
        allow_milan=False,
        signing_keys=frozenset({KeyKind.VCEK}),
        min_report_version=3,
        measurements=measurements,
        measurement_sets=(),
        revoked_measurements=frozenset(),
        vmpl=frozenset({0}),
        guest_policy={
            **dict.fromkeys(POLICY_BITS, Rule.ANY),
            "debug": Rule.FORBIDDEN,
            "migrate-ma": Rule.FORBIDDEN,
            "cxl-allow": Rule.FORBIDDEN,
        },
        min_abi=(0, 0),
        platform_info={
            **dict.fromkeys(PLATFORM_BITS, Rule.ANY),
            "alias-check-complete": Rule.REQUIRED,
            "tio-en": Rule.FORBIDDEN,
        },
        unknown_platform_info=Rule.FORBIDDEN,
        provisional_firmware=Rule.FORBIDDEN,
        revocation=RevocationRule.REQUIRED,
        host_data=host_data,
        chips=None,
        providers=None,
        tcb_floors=built_in_floors(),
        min_firmware=None,
        mitigations=None,
        id_block=None,
        family_ids=None,
        image_ids=None,
    )
