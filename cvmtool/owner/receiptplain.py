# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A receipt in plain words: what was proven and by whom, what is somebody's word, and what nothing here shows.

Zone: owner (trusted). Pure: no I/O. Says what the checks found and decides nothing.

Four degrees, and no sentence of one may stand in another: what a processor's key signed; what the measured program says, which
is as good as that program; what the owner or the host says; what no receipt can show.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from cvmtool.formats.job import Network
from cvmtool.formats.jobterms import is_address
from cvmtool.formats.receipt import Access, Statement
from cvmtool.formats.report import Report, SigningKey
from cvmtool.owner.plain import NOT_VISIBLE
from cvmtool.owner.receipts import AuthenticReceipt, VerifiedReceipt

SIMULATED = (
    "this receipt proves nothing: it is of a dry run, in which memory encryption and AMD's signature are simulated"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a receipt is worth: sentences for people, each in the degree in which it holds."""

    headline: str
    proven: tuple[str, ...]
    said_by_the_guest: tuple[str, ...]
    said_by_owner_or_host: tuple[str, ...]
    not_shown: tuple[str, ...]

    def to_json(self) -> dict[str, str | list[str]]:
        """Return the account as JSON has it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def account(statement: Statement, held: VerifiedReceipt | AuthenticReceipt | None) -> Account:
    """Say what a receipt is worth.

    `held`: the statement's receipt as far as it was verified: against a policy, without one, or not at all (None).
    """
    simulated = statement.simulated if held is None else _simulated(held)
    proven = tuple(_proven(statement, held)) if held is not None and not simulated else ()
    return Account(
        headline=_headline(held, simulated=simulated),
        proven=proven,
        said_by_the_guest=tuple(_guest(statement)),
        said_by_owner_or_host=_owner_or_host(statement),
        not_shown=tuple(_not_shown(statement, held)),
    )


def _simulated(held: VerifiedReceipt | AuthenticReceipt) -> bool:
    return held.guest.simulated if isinstance(held, VerifiedReceipt) else held.authentic.simulated


def _report(held: VerifiedReceipt | AuthenticReceipt) -> Report:
    return held.guest.report if isinstance(held, VerifiedReceipt) else held.authentic.report


def _headline(held: VerifiedReceipt | AuthenticReceipt | None, *, simulated: bool) -> str:
    if simulated:
        return SIMULATED
    if held is None:
        return "nothing of this receipt was verified"
    if isinstance(held, VerifiedReceipt):
        return "this receipt is genuine, and the policy that was given accepts the guest that signed it"
    return (
        "this receipt is genuine; whether the guest that signed it deserves trust was not judged (no policy was given)"
    )


def _proven(statement: Statement, held: VerifiedReceipt | AuthenticReceipt) -> Iterator[str]:
    report = _report(held)
    line = f"AMD EPYC processor ({report.line})" if report.line else "AMD EPYC processor"
    if report.signing_key is SigningKey.VCEK:
        yield f"by AMD: chip {report.chip_id.hex()[:16]}… is a genuine {line}, and its own key signed the report in this receipt"
    else:
        yield f"by AMD: a genuine {line} of a provider that AMD vouches for signed the report in this receipt"
    accepted = isinstance(held, VerifiedReceipt)
    judgement = "which the policy names" if accepted else "which nobody compared with an expected one"
    yield f"by that processor: it started a virtual machine with launch digest {report.measurement.hex()[:16]}…, {judgement}"
    if report.policy.has("debug"):
        yield "by that processor: its host was ALLOWED to debug it, so the host could read its memory"
    else:
        yield "by that processor: it encrypted the machine's memory, and its host was not allowed to debug it"
    yield (
        f"by that processor: the machine was launched for owner key {statement.owner_key.hex()[:16]}… and the job whose "
        f"manifest has SHA-256 {statement.manifest_sha256.hex()}, and for no other"
    )
    yield "by that machine's own key, which the processor vouches for: it wrote this receipt, and no byte was changed since"


def _guest(statement: Statement) -> Iterator[str]:
    yield f"it ran the container {statement.container_digest}, which ended with exit code {statement.exit_code}"
    for item in statement.inputs:
        opened = f"it opened the {item.role} {item.name!r}, an encrypted pack with the root hash {item.root_hash}"
        yield (
            opened
            if item.owner is None
            else f"{opened}, with the passphrase of another owner, whose key is {item.owner}"
        )
    for output in statement.outputs:
        yield f"it gave out {output.name!r}: {output.size} bytes, {output.kind}, SHA-256 {output.sha256}"
    if not statement.outputs:
        yield "it gave out nothing"
    yield f"what the container printed has {statement.log_size} bytes and the SHA-256 {statement.log_sha256}"
    yield from _network(statement)
    if statement.access:
        who = "the owner, and clients that the manifest names," if Access.TUNNEL in statement.access else "the owner"
        yield f"{who} could reach into it while it ran: {', '.join(statement.access)}"
        used = statement.accesses
        yield f"that was done: {used.exec} commands, and {used.tunnels} connections that carried anything"
    else:
        yield "nobody could log in to it, run a command in it or open a tunnel to it while it ran"


def _network(statement: Statement) -> Iterator[str]:
    if statement.network is Network.NONE:
        yield "the container had no network"
    elif statement.egress is None:
        yield "the container was to have a network, and never ran"
    else:
        for flow in statement.egress.flows:
            place = flow.destination
            rule = "over TLS alone" if place.tls else "for which TLS was waived"
            yield (
                f"the container could connect to {place.host}:{place.port}, {rule}: "
                f"connections {flow.connections}, bytes sent {flow.sent}, bytes received {flow.received}"
            )
        yield (
            "it could connect to no other place, and nobody to it through that network: "
            f"attempts turned away {statement.egress.turned_away}"
        )


def _owner_or_host(statement: Statement) -> tuple[str, ...]:
    flows = statement.egress.flows if statement.egress else ()
    named = [flow.destination for flow in flows if not is_address(flow.destination.host)]
    return (
        *(f"the owner: that {place.host} is at {', '.join(place.addresses)}" for place in named),
        f"the host: the clock by which it ran from {statement.started} to {statement.finished}",
        "the owner: that the packs hold what their names say, and that the container's pack was made from that container image",
    )


def _not_shown(statement: Statement, held: VerifiedReceipt | AuthenticReceipt | None) -> Iterator[str]:
    if statement.gpus:
        yield f"that the {statement.gpus} GPUs of this job were genuine: their evidence is the owner's and not in this receipt"
    if isinstance(held, VerifiedReceipt) and held.guest.unchecked:
        yield f"what the policy left out by name: {', '.join(held.guest.unchecked)}"
    if statement.egress is not None:
        yield "what was in the bytes that went out, and who got them: the guest looks at how TLS begins, and not inside"
    yield "how often the job was started before this run, and what came of it"
    yield "that the data was lawfully used, that anybody consented, or that the result is good"
    yield NOT_VISIBLE.removeprefix("no report can show: ")
