# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a job may allow, for the fuzzer: each term as it stands in a manifest."""

from __future__ import annotations

import json
from collections.abc import Callable

from cvmtool.formats import clienthello, egress, jobterms, wire
from cvmtool.owner import age, invitation, sshkey
from tests import samples
from tests.fuzz.parser import Parser, json_object, seeds, text
from tests.unit.formats import test_clienthello, test_egress
from tests.unit.owner import test_age, test_invitation, test_sshkey

_KEY = "term"


def _term(parse: Callable[[object], object], key: str, write: Callable[[object], object]) -> Parser:
    def read(data: bytes) -> object:
        return parse(wire.parse_json(data, what="sample", limit=1 << 20).get(_KEY))

    sample = json.loads(samples.ample_manifest().encode())[key]
    return Parser(
        read,
        seeds(wire.canonical_json({_KEY: sample})),
        write=lambda value: wire.canonical_json({_KEY: write(value)}),
    )


PARSERS = {
    "formats.clienthello.read_client_hello": Parser(
        clienthello.read_client_hello,
        seeds(test_clienthello.REAL, test_clienthello.records(test_clienthello.hello(), 20)),
    ),
    "formats.egress.parse_egress": Parser(
        json_object(egress.parse_egress),
        seeds(wire.canonical_json(test_egress.EGRESS.to_json())),
        write=lambda value: wire.canonical_json(value.to_json()),
    ),
    "formats.jobterms.parse_access": _term(jobterms.parse_access, "access", lambda access: access.to_json()),
    "formats.jobterms.parse_checkpoint": _term(
        jobterms.parse_checkpoint, "checkpoint", lambda checkpoint: checkpoint.to_json()
    ),
    "formats.jobterms.parse_destinations": _term(
        jobterms.parse_destinations, "destinations", lambda places: [place.to_json() for place in places]
    ),
    "formats.jobterms.parse_recipients": _term(jobterms.parse_recipients, "recipients", list),
    "owner.age.parse_recipient": Parser(
        text(age.parse_recipient),
        seeds(test_age.RECIPIENT.encode("ascii")),
        write=lambda key: age.render_recipient(key).encode("ascii"),
    ),
    "owner.invitation.parse_invitation": Parser(
        invitation.parse_invitation, seeds(test_invitation.INVITATION.encode()), write=lambda value: value.encode()
    ),
    "owner.sshkey.parse_ssh_key": Parser(
        text(sshkey.parse_ssh_key),
        seeds(test_sshkey.LINE.encode("ascii")),
        write=lambda key: sshkey.render_ssh_key(key).encode("ascii"),
    ),
}
