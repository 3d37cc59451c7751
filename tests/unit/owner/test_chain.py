# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Certificates with the right signatures in the wrong role."""

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cvmtool.dryrun import x509
from cvmtool.errors import FormatError
from cvmtool.formats.report import SigningKey
from cvmtool.formats.tcb import ProductLine
from cvmtool.owner.amdroots import SimulatedRoot
from cvmtool.owner.chain import Revocation, build_chain, check_revocation, check_validity
from cvmtool.owner.checks import NotGenuineError
from tests import fakes

NOW = datetime.now(UTC).replace(microsecond=0)
CONSTRAINTS, USAGE = "2.5.29.19", "2.5.29.15"
CA = (CONSTRAINTS, True, x509.sequence(x509.tlv(0x01, b"\xff")))
FALSE_CA = (CONSTRAINTS, True, x509.sequence(x509.tlv(0x01, b"\0")))
NOT_CA = (CONSTRAINTS, True, x509.sequence())
SIGNS_CERTIFICATES = (USAGE, True, x509.bits(b"\x06", 1))
SIGNS_NOTHING = (USAGE, True, x509.bits(b"\x80", 7))
HWID = ("1.3.6.1.4.1.3704.1.4", False, b"x" * 64)


@cache
def small_key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@cache
def leaf_key(curve=ec.SECP384R1):
    return ec.generate_private_key(curve())


def keys():
    return fakes.fake_amd()._keys


def certificate(name, key, issuer, signer, *extensions):
    subject = x509.Subject(
        serial=0x20001,
        common_name=name,
        spki=key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
        not_before=NOW - timedelta(days=1),
        not_after=NOW + timedelta(days=1),
        extensions=extensions or (("1.2.3", False, b"x"),),
    )
    return x509.certificate(subject, issuer, signer)


def chain(*, ark=(), ask=(), leaf=(), kind=SigningKey.VCEK):
    """Build a chain of three; each argument changes (name, key, issuer, signer, *extensions) of one certificate."""
    defaults = {
        "ark": ["ARK-Genoa", keys().ark, "ARK-Genoa", keys().ark, CA, SIGNS_CERTIFICATES],
        "ask": ["SEV-Genoa", keys().ask, "ARK-Genoa", keys().ark, CA, SIGNS_CERTIFICATES],
        "leaf": ["SEV-VCEK", leaf_key(), "SEV-Genoa", keys().ask, HWID],
    }
    for name, changes in (("ark", ark), ("ask", ask), ("leaf", leaf)):
        for index, value in dict(changes).items():
            if index == "extensions":
                defaults[name][4:] = value
            else:
                defaults[name][("name", "key", "issuer", "signer").index(index)] = value
    made = {name: certificate(*values) for name, values in defaults.items()}
    root = SimulatedRoot(sha256(made["ark"]).digest())
    return build_chain(tuple(made.values()), kind, root)


def test_the_right_roles_make_a_chain():
    built = chain()
    assert built.line is ProductLine.GENOA
    assert [c.common_name for c in (built.root, built.intermediate, built.leaf)] == [
        "ARK-Genoa",
        "SEV-Genoa",
        "SEV-VCEK",
    ]


def test_a_vlek_has_its_own_intermediate():
    leaf = {"name": "SEV-VLEK", "issuer": "SEV-VLEK-Genoa"}
    assert chain(ask={"name": "SEV-VLEK-Genoa"}, leaf=leaf, kind=SigningKey.VLEK).line is ProductLine.GENOA


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("certificate-profile", {"ark": {"extensions": [SIGNS_CERTIFICATES]}}),
        ("certificate-profile", {"ark": {"extensions": [NOT_CA, SIGNS_CERTIFICATES]}}),
        ("certificate-profile", {"ark": {"extensions": [FALSE_CA, SIGNS_CERTIFICATES]}}),
        ("certificate-profile", {"ask": {"extensions": [FALSE_CA, SIGNS_CERTIFICATES]}}),
        ("certificate-profile", {"ark": {"extensions": [CA, SIGNS_NOTHING]}}),
        ("certificate-profile", {"ask": {"extensions": [SIGNS_CERTIFICATES]}}),
        ("certificate-profile", {"ask": {"extensions": [NOT_CA, SIGNS_CERTIFICATES]}}),
        ("certificate-profile", {"ask": {"extensions": [CA, SIGNS_NOTHING]}}),
        ("certificate-profile", {"ask": {"extensions": [CA, (USAGE, True, x509.bits(b"\x03", 0))]}}),
        ("certificate-profile", {"leaf": {"extensions": [(USAGE, True, x509.bits(b"\x01", 0))]}}),
        ("certificate-profile", {"ask": {"extensions": [CA, ("1.2.3", True, b"x")]}}),
        ("certificate-profile", {"ark": {"key": small_key(), "signer": small_key()}, "ask": {"signer": small_key()}}),
        ("certificate-profile", {"ask": {"key": small_key()}, "leaf": {"signer": small_key()}}),
        ("certificate-profile", {"leaf": {"extensions": [CA]}}),
        ("certificate-profile", {"leaf": {"extensions": [(CONSTRAINTS, False, CA[2])]}}),
        ("certificate-profile", {"leaf": {"extensions": [("1.2.3", True, b"x")]}}),
        ("certificate-profile", {"leaf": {"extensions": [(USAGE, True, x509.bits(b"\x04", 2))]}}),
        ("certificate-profile", {"leaf": {"key": leaf_key(ec.SECP256R1)}}),
        ("certificate-profile", {"leaf": {"key": small_key()}}),
        ("chain", {"ark": {"signer": keys().ask}}),
        ("chain", {"ark": {"issuer": "ARK-Milan"}}),
        ("chain", {"ask": {"issuer": "ARK-Milan"}}),
        ("chain", {"ask": {"signer": keys().ask}}),
        ("chain", {"ask": {"name": "SEV-Milan"}}),
        ("chain", {"leaf": {"signer": keys().ark}}),
        ("chain", {"leaf": {"issuer": "SEV-Naples"}}),
        ("chain", {"leaf": {"name": "SEV-VCEK2"}}),
        # A VCEK under the providers' intermediate, and the other way round.
        ("chain", {"ask": {"name": "SEV-VLEK-Genoa"}, "leaf": {"issuer": "SEV-VLEK-Genoa"}}),
        ("chain", {"leaf": {"name": "SEV-VLEK"}, "kind": SigningKey.VLEK}),
        ("key-kind", {"leaf": {"name": "SEV-VLEK", "issuer": "SEV-VLEK-Genoa"}, "ask": {"name": "SEV-VLEK-Genoa"}}),
        ("root-pinned", {"ark": {"name": "ARK-Milan", "issuer": "ARK-Milan"}, "ask": {"issuer": "ARK-Milan"}}),
    ],
)
def test_a_wrong_role_is_refused(code, changes):
    with pytest.raises(NotGenuineError) as refusal:
        chain(**changes)
    assert refusal.value.check.code == code


@pytest.mark.parametrize(
    "usage",
    ["", "030106", "03020806", "04020106", "03010106", "03030106", "0304010600", "030401060000", "03050106000000"],
)
def test_a_malformed_key_usage_is_a_format_error(usage):
    with pytest.raises(FormatError):
        chain(ask={"extensions": [CA, (USAGE, True, bytes.fromhex(usage))]})


def test_a_key_usage_may_have_a_second_byte():
    usage = bytes.fromhex("0303070680")
    assert chain(ask={"extensions": [CA, (USAGE, True, usage)]}).line is ProductLine.GENOA


def test_a_bag_is_bounded_by_certificates_and_not_by_files():
    def pem(der):
        return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"

    blobs = [
        pem(certificate(f"ARK-{one}", keys().ark, "x", keys().ark)) + pem(certificate("x", keys().ask, "y", keys().ask))
        for one in range(9)
    ]
    with pytest.raises(FormatError) as refusal:
        build_chain(blobs, SigningKey.VCEK, SimulatedRoot(b"\1" * 32))
    assert "18 certificates" in refusal.value.message


def bag():
    """The three certificates of a chain, and what must be pinned for it."""
    given = (
        certificate("ARK-Genoa", keys().ark, "ARK-Genoa", keys().ark, CA, SIGNS_CERTIFICATES),
        certificate("SEV-Genoa", keys().ask, "ARK-Genoa", keys().ark, CA, SIGNS_CERTIFICATES),
        certificate("SEV-VCEK", leaf_key(), "SEV-Genoa", keys().ask, HWID),
    )
    return given, SimulatedRoot(sha256(given[0]).digest())


def test_sixteen_certificates_are_not_too_many():
    given, root = bag()
    others = [certificate(f"Other {number}", keys().ask, "x", keys().ask) for number in range(13)]
    assert build_chain((*others, *given), SigningKey.VCEK, root).line is ProductLine.GENOA
    with pytest.raises(FormatError):
        build_chain((*others, *given, given[0]), SigningKey.VCEK, root)


def test_a_root_that_is_not_pinned_is_named():
    given, root = bag()
    other = certificate("ARK-Genoa", keys().ask, "ARK-Genoa", keys().ask, CA, SIGNS_CERTIFICATES)
    stranger = SimulatedRoot(b"\1" * 32)
    for blobs, pinned, actual in (
        (given, stranger, sha256(given[0]).hexdigest()),
        ((*given, other), stranger, f"{sha256(given[0]).hexdigest()}, {sha256(other).hexdigest()}"),
        (given[1:], root, "no certificate of ARK-Genoa"),
    ):
        with pytest.raises(NotGenuineError) as refusal:
            build_chain(blobs, SigningKey.VCEK, pinned)
        assert (refusal.value.check.code, refusal.value.check.actual) == ("root-pinned", actual)


def test_an_intermediate_is_missing_or_another_s():
    given, root = bag()
    forged = certificate("SEV-Genoa", keys().ask, "ARK-Genoa", keys().ask, CA, SIGNS_CERTIFICATES)
    for blobs, actual in (
        ((given[0], given[2]), "missing"),
        ((given[0], forged, given[2]), "none that the root signed"),
    ):
        with pytest.raises(NotGenuineError) as refusal:
            build_chain(blobs, SigningKey.VCEK, root)
        assert refusal.value.check.actual == f"intermediate SEV-Genoa {actual}"


def test_a_root_that_names_another_issuer_is_refused():
    with pytest.raises(NotGenuineError) as refusal:
        chain(ark={"issuer": "ARK-Milan"})
    assert refusal.value.check.actual == "root signed by another"


def test_a_root_that_may_not_sign_lists_cannot_revoke():
    built = chain(ark={"extensions": [CA, (USAGE, True, x509.bits(b"\x05", 0))]})
    crl = x509.revocation_list("ARK-Genoa", keys().ark, [], NOW - timedelta(hours=1), NOW + timedelta(days=1))
    assert check_revocation(chain(), crl, NOW)
    with pytest.raises(NotGenuineError) as refusal:
        check_revocation(built, crl, NOW)
    assert refusal.value.check.code == "revocation"


def test_a_revoked_root_is_refused():
    crl = x509.revocation_list("ARK-Genoa", keys().ark, [0x20001], NOW - timedelta(hours=1), NOW + timedelta(days=1))
    with pytest.raises(NotGenuineError):
        check_revocation(chain(), crl, NOW)


SECOND = timedelta(seconds=1)
START, END = NOW - timedelta(days=1), NOW + timedelta(days=1)


@pytest.mark.parametrize("at", [START, NOW, END])
def test_a_chain_holds_to_the_second(at):
    check = check_validity(chain(), at)
    assert (check.code, check.passed) == ("certificate-validity", True)
    assert (check.actual, check.required) == (f"until {END:%Y-%m-%d}", f"to hold at {at.isoformat()}")


@pytest.mark.parametrize("at", [START - SECOND, END + SECOND])
def test_a_chain_holds_no_second_longer(at):
    with pytest.raises(NotGenuineError) as refusal:
        check_validity(chain(), at)
    period = f"from {START:%Y-%m-%d} to {END:%Y-%m-%d}"
    assert refusal.value.check.actual == f"ARK-Genoa {period}, SEV-Genoa {period}, SEV-VCEK {period}"
    assert not refusal.value.check.passed


@pytest.mark.parametrize("part", ["root", "intermediate", "leaf"])
def test_the_certificate_that_ended_is_named_alone(part):
    """The chain's period is that of all three; which of them is over is looked at again."""
    built = chain()
    ended = replace(getattr(built, part), not_after=NOW)
    changed = replace(built, **{part: ended}, not_after=NOW)
    assert check_validity(changed, NOW).passed
    with pytest.raises(NotGenuineError) as refusal:
        check_validity(changed, NOW + SECOND)
    assert refusal.value.check.actual == f"{ended.common_name} from {START:%Y-%m-%d} to {NOW:%Y-%m-%d}"


@pytest.mark.parametrize(("at", "changes"), [(START, {"not_before": NOW}), (END, {"not_after": NOW})])
def test_what_holds_to_the_second_is_not_named(at, changes):
    built = chain()
    changed = replace(built, leaf=replace(built.leaf, **changes), **changes)
    with pytest.raises(NotGenuineError) as refusal:
        check_validity(changed, at)
    assert refusal.value.check.actual.startswith("SEV-VCEK from ")


def test_the_path_is_said():
    pinned, chained = chain().checks
    assert (pinned.code, pinned.passed) == ("root-pinned", True)
    assert (chained.code, chained.actual) == ("chain", "ARK-Genoa > SEV-Genoa > SEV-VCEK")
    assert chained.required == "each signed by the one before"


def revocations(*serials):
    return x509.revocation_list("ARK-Genoa", keys().ark, serials, START, END)


@pytest.mark.parametrize("at", [START, NOW, END])
def test_a_list_holds_to_the_second(at):
    found, check = check_revocation(chain(), revocations(5), at)
    assert (found, check.code, check.passed) == (Revocation.CHECKED, "revocation", True)
    assert check.actual == f"not revoked, list from {START.isoformat()} to {END.isoformat()}"
    assert check.required == "not revoked"


@pytest.mark.parametrize("at", [START - SECOND, END + SECOND])
def test_a_list_holds_no_second_longer(at):
    with pytest.raises(NotGenuineError) as refusal:
        check_revocation(chain(), revocations(), at)
    assert refusal.value.check.actual == f"a list from {START.isoformat()} to {END.isoformat()}"


def test_no_list_is_no_check():
    assert check_revocation(chain(), None, NOW) == (Revocation.NOT_CHECKED, None)
