# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What may go into a run, where it may run and what may come out: one set of rules, judged at five stages.

Zone: owner (trusted). Pure: no I/O, no clock. The same in a dry run as on hardware.

A stage's function takes the rules and what is known by then, and returns a decision for each rule that speaks of it, the passed
ones too. Nothing here knows how a run works; `cvmtool.flows.decisions` asks, keeps the answers and stops a run.

    ingestion   before anything is read into a pack: the container, and what is said of each input
    sealing     before the manifest is used: inputs as they were sealed, network, access, outputs and their bounds, recipients
    launch      before anything leaves this machine: the guest image, and the policy that its evidence will be judged by
    release     before the keys leave: what was really judged of this guest, and by which root
    export      before the outputs are fetched: what they are, and how the guest was used

No field has a default. None stands for what the file calls `any`, and is shown as such with each decision.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from cvmtool.errors import AppraisalError, Finding
from cvmtool.formats.job import Network, Output, OutputKind
from cvmtool.formats.packheader import Sensitivity
from cvmtool.formats.receipt import Access, OutputDigest
from cvmtool.owner.floors import Floor, built_in_floors

ANY = "any"
UNSAID = "unsaid"
SAID = ("owner", "sensitivity", "origin", "handling", "licence", "created")
"""What an input's metadata can say. Plain values: the rules do not care how an input came to say it."""


class Stage(StrEnum):
    """When a rule is judged."""

    INGESTION = "ingestion"
    SEALING = "sealing"
    LAUNCH = "launch"
    RELEASE = "release"
    EXPORT = "export"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is allowed. Sizes in bytes; digests and keys as hex, of containers with `sha256:` before them."""

    images: Mapping[str, frozenset[str]] | None
    """SHA-256 of the manifests of guest images, by the image's name."""
    containers: frozenset[str] | None
    must_say: frozenset[str]
    """Entries of the metadata that every input has."""
    sensitivity: frozenset[Sensitivity] | None
    licences: frozenset[str] | None
    must_be_scrubbed: frozenset[Sensitivity]
    pipelines: frozenset[str] | None
    """Digests of the scrubbing pipelines that count as scrubbing."""
    in_dry_runs: frozenset[Sensitivity] | None
    """What may enter a run that is confidential to nobody. An input that does not say is in none of these."""
    network: frozenset[Network]
    destinations: frozenset[str] | None
    """Where a job with a network may connect to over TLS, as host:port."""
    plaintext: frozenset[str] | None
    """The same, without TLS."""
    access: frozenset[Access]
    clients: frozenset[str] | None
    """Ed25519 keys, as hex, of others who may open tunnels into the job."""
    output_kinds: frozenset[OutputKind] | None
    largest_output: int | None
    all_outputs: int | None
    recipients: frozenset[str] | None
    """Owner keys as hex, and age recipients."""
    unchecked: frozenset[str]
    """What the evidence policy may leave unchecked."""
    built_in_floors: bool
    """Whether it must have every built-in floor, or a higher one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One rule, judged once. `rule` is the key in the file."""

    stage: Stage
    rule: str
    subject: str
    allowed: bool
    actual: str
    required: str

    @property
    def reason(self) -> str:
        """Why, as one lower-case sentence."""
        return f"{self.subject} is {self.actual}; required: {self.required}"

    def to_json(self) -> dict[str, str | bool]:
        """Return the decision as records and JSON have it."""
        return {
            "stage": self.stage.value,
            "rule": self.rule,
            "subject": self.subject,
            "allowed": self.allowed,
            "reason": self.reason,
        }


class RulesError(AppraisalError):
    """The rules forbid a stage of a run; `findings` lists everything that they forbid in it."""

    def __init__(self, decisions: Iterable[Decision]) -> None:
        denied = [decision for decision in decisions if not decision.allowed]
        super().__init__(
            f"the rules forbid this {denied[0].stage}: {'; '.join(decision.reason for decision in denied)}",
            findings=tuple(
                Finding(code=item.rule, field=item.subject, actual=item.actual, required=item.required)
                for item in denied
            ),
            hint="cvmtool rules check FILE JOB.yaml judges a job before it is run",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFacts:
    """What is said of an input: nothing, if it is an ordinary directory."""

    name: str
    metadata: Mapping[str, str]
    pipelines: tuple[str, ...]
    """Digests of the scrubbing pipelines that went over it; empty if it was never scrubbed."""

    @property
    def sensitivity(self) -> str:
        """What it says, or `unsaid`."""
        return self.metadata.get("sensitivity", UNSAID)


class Place(Protocol):
    """Where a job may connect to, as it wishes or as its manifest says."""

    @property
    def host(self) -> str:
        """A name or an address."""
        ...

    @property
    def port(self) -> int:
        """Its TCP port."""
        ...

    @property
    def tls(self) -> bool:
        """Whether a connection must begin as TLS."""
        ...


def place_text(place: Place) -> str:
    """Return a place as rules name it: example.org:443, [2001:db8::1]:443."""
    return f"[{place.host}]:{place.port}" if ":" in place.host else f"{place.host}:{place.port}"


def judge_ingestion(
    rules: Rules, *, container: str, inputs: Collection[InputFacts], simulated: bool
) -> tuple[Decision, ...]:
    """Judge what is to be sealed: `container` is the OCI digest that the job pins."""
    stage = Stage.INGESTION
    return (
        _one_of(stage, "containers", "the container", container, rules.containers),
        *(decision for item in inputs for decision in _judge_input(rules, stage, item)),
        *_judge_simulation(rules, stage, inputs, simulated=simulated),
    )


def _judge_input(rules: Rules, stage: Stage, item: InputFacts) -> Iterator[Decision]:
    who = f"input {item.name}"
    missing = sorted(rules.must_say - item.metadata.keys())
    yield Decision(
        stage=stage,
        rule="inputs.must_say",
        subject=who,
        allowed=not missing,
        actual=f"silent about {', '.join(missing)}" if missing else f"said to have {_listed(item.metadata)}",
        required=_listed(rules.must_say),
    )
    said = item.metadata.get("licence", UNSAID)
    yield _one_of(stage, "inputs.sensitivity", f"the sensitivity of {who}", item.sensitivity, rules.sensitivity)
    yield _one_of(stage, "inputs.licences", f"the licence of {who}", said, rules.licences)
    if item.sensitivity in rules.must_be_scrubbed:
        allowed = None if rules.pipelines is None else f"scrubbed by {_choice('one of', rules.pipelines)}"
        yield Decision(
            stage=stage,
            rule="inputs.must_be_scrubbed",
            subject=f"{who}, which is {item.sensitivity},",
            allowed=any(rules.pipelines is None or digest in rules.pipelines for digest in item.pipelines),
            actual=f"scrubbed by {', '.join(item.pipelines)}" if item.pipelines else "not scrubbed",
            required=allowed or "scrubbed",
        )


def _judge_simulation(
    rules: Rules, stage: Stage, inputs: Collection[InputFacts], *, simulated: bool
) -> Iterator[Decision]:
    if simulated:
        for item in inputs:
            who = f"the sensitivity of input {item.name} in a dry run"
            yield _one_of(stage, "inputs.in_dry_runs", who, item.sensitivity, rules.in_dry_runs)


def judge_sealing(
    rules: Rules,
    *,
    inputs: Collection[InputFacts],
    network: Network,
    destinations: Collection[Place],
    access: Collection[Access],
    clients: Collection[str],
    outputs: Collection[Output],
    recipients: Collection[str],
) -> tuple[Decision, ...]:
    """Judge what the manifest commits to.

    Args:
        rules: the rules.
        inputs: as they were sealed: what was said of them may be newer than what was judged at ingestion.
        network: none, or to the destinations.
        destinations: their addresses are not judged: who owns a name decides about them.
        access: the ways into the running job.
        clients: Ed25519 keys, 64 hex digits each, of others who may use its tunnels.
        outputs: as declared.
        recipients: the owner's key, 64 hex digits, and the age recipients that outputs are sealed to.
    """
    stage = Stage.SEALING
    sizes = [(output.name, output.kind, output.max_bytes) for output in outputs]
    return (
        *(decision for item in inputs for decision in _judge_input(rules, stage, item)),
        _one_of(stage, "network", "the network", network, rules.network),
        *(_judge_destination(rules, stage, item) for item in destinations),
        _judge_access(rules, stage, access),
        *(_one_of(stage, "clients", "a client of its tunnels", key, rules.clients) for key in clients),
        *_judge_outputs(rules, stage, sizes),
        *_judge_recipients(rules, stage, recipients),
    )


def _judge_destination(rules: Rules, stage: Stage, item: Place) -> Decision:
    rule, allowed = ("destinations", rules.destinations) if item.tls else ("plaintext", rules.plaintext)
    return _one_of(stage, rule, f"a destination {'over' if item.tls else 'without'} TLS", place_text(item), allowed)


def _judge_access(rules: Rules, stage: Stage, access: Collection[Access]) -> Decision:
    beyond = set(access) - rules.access
    return Decision(
        stage=stage,
        rule="access",
        subject="access to the running job",
        allowed=not beyond,
        actual=_listed(access),
        required=_choice("of", rules.access),
    )


def _judge_recipients(rules: Rules, stage: Stage, recipients: Iterable[str]) -> Iterator[Decision]:
    for key in recipients:
        yield _one_of(stage, "recipients", "a recipient", key, rules.recipients)


def judge_launch(
    rules: Rules, *, image: str, image_digest: str, unchecked: Collection[str], floors: Iterable[Floor] | None
) -> tuple[Decision, ...]:
    """Judge where the job is to run. `unchecked` and `floors` are the evidence policy's; `image_digest` is 64 hex digits."""
    stage = Stage.LAUNCH
    digests = None if rules.images is None else rules.images.get(image, frozenset())
    return (
        _one_of(stage, "images", f"the guest image {image}", image_digest, digests),
        _judge_unchecked(rules, stage, "left unchecked by the evidence policy", unchecked),
        _judge_floors(rules, tuple(floors or ())),
    )


def _judge_floors(rules: Rules, floors: Collection[Floor]) -> Decision:
    lacking = [
        f"{floor.component}>={floor.value} on {'/'.join(floor.silicon)}"
        for floor in built_in_floors()
        if not any(_reaches(held, floor) for held in floors)
    ]
    return Decision(
        stage=Stage.LAUNCH,
        rule="evidence.floors",
        subject="the evidence policy",
        allowed=not (rules.built_in_floors and lacking),
        actual=f"below {'; '.join(lacking)}" if lacking else "at or above every built-in floor",
        required="at or above every built-in floor" if rules.built_in_floors else ANY,
    )


def _reaches(held: Floor, floor: Floor) -> bool:
    return held.component == floor.component and set(floor.silicon) <= set(held.silicon) and held.value >= floor.value


def judge_release(
    rules: Rules, *, inputs: Collection[InputFacts], simulated: bool, unchecked: Collection[str]
) -> tuple[Decision, ...]:
    """Judge the guest that is to get the keys by what was judged of it: `simulated` is its root's word, not the caller's."""
    stage = Stage.RELEASE
    return (
        *_judge_simulation(rules, stage, inputs, simulated=simulated),
        _judge_unchecked(rules, stage, "left unchecked of this guest", unchecked),
    )


def judge_export(
    rules: Rules, *, outputs: Collection[OutputDigest], access: Collection[Access], owner_key: str
) -> tuple[Decision, ...]:
    """Judge what is to come home, by the verified receipt. `owner_key`: who gets it, 64 hex digits."""
    stage = Stage.EXPORT
    sizes = [(output.name, output.kind, output.size) for output in outputs]
    return (
        *_judge_outputs(rules, stage, sizes),
        _judge_access(rules, stage, access),
        *_judge_recipients(rules, stage, [owner_key]),
    )


def _judge_outputs(rules: Rules, stage: Stage, outputs: Collection[tuple[str, OutputKind, int]]) -> Iterator[Decision]:
    for name, kind, size in outputs:
        yield _one_of(stage, "outputs.kinds", f"the kind of output {name}", kind, rules.output_kinds)
        yield _at_most(stage, "outputs.largest", f"the size of output {name}", size, rules.largest_output)
    together = sum(size for _, _, size in outputs)
    yield _at_most(stage, "outputs.together", "the size of all outputs", together, rules.all_outputs)


def _judge_unchecked(rules: Rules, stage: Stage, subject: str, unchecked: Collection[str]) -> Decision:
    beyond = set(unchecked) - rules.unchecked
    return Decision(
        stage=stage,
        rule="evidence.unchecked",
        subject=subject,
        allowed=not beyond,
        actual=_listed(unchecked),
        required=_choice("of", rules.unchecked),
    )


def _one_of(stage: Stage, rule: str, subject: str, actual: str, allowed: Collection[str] | None) -> Decision:
    return Decision(
        stage=stage,
        rule=rule,
        subject=subject,
        allowed=allowed is None or actual in allowed,
        actual=str(actual),
        required=ANY if allowed is None else _choice("one of", allowed),
    )


def _at_most(stage: Stage, rule: str, subject: str, actual: int, most: int | None) -> Decision:
    return Decision(
        stage=stage,
        rule=rule,
        subject=subject,
        allowed=most is None or actual <= most,
        actual=f"{actual} bytes",
        required=ANY if most is None else f"at most {most} bytes",
    )


def _choice(word: str, allowed: Collection[str]) -> str:
    return f"{word} {_listed(allowed)}" if allowed else "nothing"


def _listed(values: Iterable[str]) -> str:
    return ", ".join(sorted(map(str, values))) or "nothing"
