# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Which sentence stands in which degree. What AMD would sign is here signed by a simulated root, and taken for AMD's."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from cvmtool.formats.job import Network
from cvmtool.formats.pack import Role
from cvmtool.formats.policybits import GuestPolicy
from cvmtool.formats.receipt import Access, InputDigest
from cvmtool.formats.report import SigningKey
from cvmtool.owner.amdroots import SimulatedRoot
from cvmtool.owner.plain import NOT_VISIBLE
from cvmtool.owner.receiptplain import SIMULATED, account
from cvmtool.owner.receipts import AuthenticReceipt, authenticate_receipt
from tests.receipts import NOW, Receipt
from tests.unit.formats.test_egress import EGRESS


@pytest.fixture(scope="module")
def receipt(tmp_path_factory):
    return Receipt(tmp_path_factory.mktemp("receipt"))


def as_if_real(receipt, statement=None, **report):
    """The receipt as if AMD's root had signed it."""
    held = authenticate_receipt(receipt.data, SimulatedRoot(receipt.root), NOW)
    real = SimpleNamespace(simulated=False, report=replace(held.authentic.report, **report))
    return account(statement or receipt.statement, AuthenticReceipt(statement=held.statement, authentic=real))


def judged(receipt, *, unchecked=()):
    """The receipt as if AMD's root had signed it, and a policy had accepted its guest."""
    held = receipt.verify()
    guest = SimpleNamespace(simulated=False, report=held.guest.report, unchecked=unchecked)
    return account(receipt.statement, replace(held, guest=guest))


def test_a_simulated_receipt_proves_nothing_whoever_verified_it(receipt):
    held = authenticate_receipt(receipt.data, SimulatedRoot(receipt.root), NOW)
    for told in (
        account(receipt.statement, None),
        account(receipt.statement, held),
        account(receipt.statement, receipt.verify()),
    ):
        assert told.headline == SIMULATED
        assert told.proven == ()
        assert told.said_by_the_guest


def test_nothing_is_proven_that_was_not_verified(receipt):
    told = account(replace(receipt.statement, simulated=False), None)
    assert (told.headline, told.proven) == ("nothing of this receipt was verified", ())


def test_every_proof_names_its_witness(receipt):
    told = as_if_real(receipt)
    assert "was not judged" in told.headline
    assert all(sentence.startswith("by ") for sentence in told.proven)
    assert receipt.statement.manifest_sha256.hex() in " ".join(told.proven)
    # What the guest alone says must not be among the proofs.
    assert receipt.statement.container_digest not in " ".join(told.proven)
    assert receipt.statement.container_digest in " ".join(told.said_by_the_guest)
    assert receipt.statement.finished in " ".join(told.said_by_owner_or_host)


def test_a_policy_that_accepted_the_guest_is_named(receipt):
    told = judged(receipt)
    assert told.headline == "this receipt is genuine, and the policy that was given accepts the guest that signed it"
    assert told.proven[1].endswith("…, which the policy names")
    assert as_if_real(receipt).proven[1].endswith("…, which nobody compared with an expected one")
    assert not any("left out" in sentence for sentence in told.not_shown)
    assert "what the policy left out by name: chips" in judged(receipt, unchecked=("chips",)).not_shown


def test_the_processor_is_named_as_far_as_its_report_does(receipt):
    report = receipt.verify().guest.report
    assert (
        f"chip {report.chip_id.hex()[:16]}… is a genuine AMD EPYC processor ({report.line}),"
        in judged(receipt).proven[0]
    )
    assert (
        "is a genuine AMD EPYC processor, and"
        in as_if_real(receipt, version=2, cpuid=None, launch_mit_vector=0, current_mit_vector=0).proven[0]
    )


DEBUGGED = GuestPolicy(0xB0000)


def test_sentences_that_are_the_same_for_every_run_stand_in_their_degree(receipt):
    """What is claimed here is claimed of every run: who changes such a sentence changes what receipts are worth."""
    real, debugged = as_if_real(receipt), as_if_real(receipt, policy=DEBUGGED)
    assert real.headline == (
        "this receipt is genuine; whether the guest that signed it deserves trust was not judged (no policy was given)"
    )
    assert real.proven[2:] == (
        "by that processor: it encrypted the machine's memory, and its host was not allowed to debug it",
        real.proven[3],
        "by that machine's own key, which the processor vouches for: it wrote this receipt, and no byte was changed since",
    )
    assert debugged.proven[2] == (
        "by that processor: its host was ALLOWED to debug it, so the host could read its memory"
    )
    assert real.said_by_the_guest[-2:] == (
        "the container had no network",
        "nobody could log in to it, run a command in it or open a tunnel to it while it ran",
    )
    assert real.said_by_owner_or_host[-1] == (
        "the owner: that the packs hold what their names say, and that the container's pack was made from that container image"
    )
    assert real.not_shown == (
        "how often the job was started before this run, and what came of it",
        "that the data was lawfully used, that anybody consented, or that the result is good",
        NOT_VISIBLE.removeprefix("no report can show: "),
    )
    assert real.not_shown[2].startswith("probes on the memory bus, ")
    assert account(receipt.statement, None).headline == (
        "this receipt proves nothing: it is of a dry run, in which memory encryption and AMD's signature are simulated"
    )


def test_what_was_not_so_is_not_said(receipt):
    said = " ".join(account(receipt.statement, None).said_by_the_guest)
    for words in ("another owner", "gave out nothing", "could reach into", "that was done", "TLS"):
        assert words not in said
    reached = account(replace(receipt.statement, access=(Access.EXEC,)), None)
    assert not any("nobody" in sentence for sentence in reached.said_by_the_guest)


def test_a_host_that_might_debug_is_named(receipt):
    assert "not allowed to debug" in " ".join(as_if_real(receipt).proven)
    assert "ALLOWED to debug" in " ".join(as_if_real(receipt, policy=DEBUGGED).proven)


def test_a_providers_key_names_no_chip(receipt):
    told = as_if_real(receipt, signing_key=SigningKey.VLEK)
    assert "of a provider" in told.proven[0]
    assert "chip" not in told.proven[0]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("access", (Access.EXEC,), "the owner could reach into it while it ran: exec"),
        (
            "access",
            (Access.SHELL, Access.TUNNEL),
            "clients that the manifest names, could reach into it while it ran: shell, tunnel",
        ),
        ("access", (Access.EXEC,), "that was done: 0 commands, and 0 connections"),
        ("outputs", (), "it gave out nothing what"),
        ("exit_code", 3, "exit code 3"),
        (
            "inputs",
            (InputDigest(name="ward", role=Role.INPUT, root_hash="00" * 32, owner="77" * 32),),
            f"with the passphrase of another owner, whose key is {'77' * 32}",
        ),
    ],
)
def test_what_the_guest_says_is_said(receipt, field, value, words):
    told = account(replace(receipt.statement, **{field: value}), None)
    assert words in " ".join(told.said_by_the_guest)


def test_where_bytes_went_is_said_and_by_whom(receipt):
    assert "had no network" in " ".join(account(receipt.statement, None).said_by_the_guest)
    told = account(replace(receipt.statement, network=Network.ALLOW, egress=EGRESS), None)
    said = " ".join(told.said_by_the_guest)
    assert "connect to 192.0.2.1:8080, for which TLS was waived: connections 0, bytes sent 0, bytes received 0" in said
    assert "connect to a.example:443, over TLS alone: connections 2, bytes sent 1000" in said
    assert "attempts turned away 3" in said
    assert "the owner: that a.example is at 192.0.2.1, 2001:db8::1" in told.said_by_owner_or_host
    assert told.not_shown[0] == (
        "what was in the bytes that went out, and who got them: the guest looks at how TLS begins, and not inside"
    )
    never_ran = account(replace(receipt.statement, network=Network.ALLOW), None)
    assert "the container was to have a network, and never ran" in never_ran.said_by_the_guest


def test_gpus_are_not_shown_by_a_receipt(receipt):
    assert "GPUs" not in " ".join(account(receipt.statement, None).not_shown)
    assert "4 GPUs" in " ".join(account(replace(receipt.statement, gpus=4), None).not_shown)


def test_what_the_policy_left_out_is_named(receipt):
    unchecked = receipt.verify().guest.unchecked
    assert unchecked
    assert ", ".join(unchecked) in " ".join(account(receipt.statement, receipt.verify()).not_shown)


def test_an_account_is_json(receipt):
    document = account(receipt.statement, None).to_json()
    assert document.keys() == {"headline", "proven", "said_by_the_guest", "said_by_owner_or_host", "not_shown"}
    assert isinstance(document["not_shown"], list)
    assert document["headline"] == SIMULATED
