# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Parsers of what several owners of a job say to each other, and of age files, each with samples that it accepts."""

from __future__ import annotations

from cvmtool.formats import age, exchange, grant, parties, wire
from cvmtool.owner.age import parse_identities
from tests import samples
from tests.fuzz.parser import Parser, encode, seeds, text
from tests.unit.formats import test_age, test_exchange, test_grant
from tests.unit.owner.test_age import IDENTITY

_JOB = samples.pooled_manifest()

PARSERS = {
    "formats.age.parse_header": Parser(
        age.parse_header,
        seeds(test_age.HEADER),
        write=lambda header: header.authenticated + age.encode_mac(header.mac),
    ),
    "formats.age.parse_share": Parser(text(age.parse_share), seeds(test_age.SHARE.encode()), write=age.unpadded),
    "owner.age.parse_identities": Parser(text(parse_identities), seeds(IDENTITY.encode())),
    "formats.exchange.parse_answer": Parser(
        exchange.parse_answer, seeds(*(answer.encode() for answer in test_exchange.ANSWERS)), write=encode
    ),
    "formats.exchange.parse_pooled_job": Parser(
        exchange.parse_pooled_job, seeds(test_exchange.POOLED.encode()), write=encode
    ),
    "formats.grant.parse_grant": Parser(
        grant.parse_grant, seeds(grant.encode_grant(test_grant.grant())), write=grant.encode_grant
    ),
    "formats.parties.parse_parties": Parser(
        lambda data: parties.parse_parties(wire.parse_json(data, what="sample", limit=1 << 20).get("parties")),
        seeds(wire.canonical_json({"parties": [party.to_json() for party in _JOB.parties]})),
        write=lambda value: wire.canonical_json({"parties": [party.to_json() for party in value]}),
    ),
}
