# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.job import Kind, Network, parse_job_manifest
from cvmtool.formats.jobterms import Access, is_address, is_outside, parse_access
from cvmtool.formats.wire import canonical_json
from tests.samples import ample_manifest, changed_json, manifest
from tests.unit.formats.test_wire import JSON

AMPLE = json.loads(ample_manifest().encode())
TERMS = set(AMPLE) - set(json.loads(manifest().encode()))


def refusal(path, value):
    with pytest.raises(FormatError) as refused:
        parse_job_manifest(changed_json(AMPLE, path, value))
    return refused.value.message


def test_a_job_with_every_term_round_trips():
    job = ample_manifest()
    assert parse_job_manifest(job.encode()) == job


def test_a_manifest_names_only_what_its_job_asks_for():
    assert {"access", "checkpoint", "destinations", "kind", "recipients"} == TERMS
    plain = parse_job_manifest(manifest().encode())
    assert (plain.kind, plain.network, plain.destinations, plain.recipients) == (Kind.TRAIN, Network.NONE, (), ())
    assert (plain.access.exec, plain.access.tunnels, plain.access.clients, plain.checkpoint) == (False, (), (), None)


@pytest.mark.parametrize("term", sorted(TERMS))
def test_every_term_changes_what_the_launch_commits_to(term):
    document = {name: value for name, value in AMPLE.items() if name != term}
    if term == "destinations":
        document["network"] = "none"
    if term == "access":
        document.pop("kind")  # there is no service without a way to it
    assert parse_job_manifest(canonical_json(document)).host_data != ample_manifest().host_data


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("kind",), "train", "'serve', or no such key"),
        (("kind",), "Serve", "'serve', or no such key"),
        (("kind",), None, "'serve', or no such key"),
        (("access", "tunnels"), [], "no tunnel to it"),
        (("access",), {"exec": True}, "no tunnel to it"),
        (("access",), [], "no tunnel to it"),
        (("access", "exec"), 1, "access.exec"),
        (("access", "tunnels"), [8080, 6006], "not ascending"),
        (("access", "tunnels"), [6006, 6006], "twice"),
        (("access", "tunnels"), [0], "port"),
        (("access", "tunnels"), [65_536], "port"),
        (("access", "tunnels"), [True], "port"),
        (("access", "tunnels"), ["8080"], "port"),
        (("access", "tunnels"), list(range(1, 18)), "17 entries"),
        (("access", "clients"), ["44" * 32, "33" * 32], "not ascending"),
        (("access", "clients"), ["44" * 31], "clients"),
        (("access", "clients"), ["AA" * 32], "clients"),
        (("access", "clients"), [f"{at:064x}" for at in range(65)], "65 entries"),
        (("access", "shell"), True, "shell"),
        (("checkpoint", "every_seconds"), 60, "every_seconds"),
        (("network",), "none", "belong to 'allow'"),
        (("network",), "any", "'none' or 'allow'"),
        (("destinations",), [], "is empty"),
        (("destinations",), ["example.org:443"], "an object"),
        (("destinations",), [AMPLE["destinations"][1], AMPLE["destinations"][0]], "not ascending"),
        (("destinations",), [AMPLE["destinations"][0]] * 2, "twice"),
        (("destinations",), [AMPLE["destinations"][0]] * 65, "65 entries"),
        (("destinations", 0, "host"), "Example.org", "lower case"),
        (("destinations", 0, "host"), "-example.org", "lower case"),
        (("destinations", 0, "host"), "a" * 64, "lower case"),
        (("destinations", 0, "host"), "a." * 127, "lower case"),
        (("destinations", 0, "host"), "a\nb", "lower case"),
        (("destinations", 0, "port"), 0, "port"),
        (("destinations", 0, "addresses"), [], "at least one"),
        (("destinations", 0, "addresses"), ["192.0.2.07"], "shortest form"),
        (("destinations", 0, "addresses"), ["2001:db8::0"], "shortest form"),
        (("destinations", 0, "addresses"), ["fe80::1%eth0"], "shortest form"),
        (("destinations", 0, "addresses"), ["example.org"], "shortest form"),
        (("destinations", 0, "addresses"), [7], "shortest form"),
        (("destinations", 0, "addresses"), [f"192.0.2.{at}" for at in range(33)], "33 entries"),
        (("destinations", 0, "addresses"), ["192.0.2.9", "192.0.2.1"], "not ascending"),
        # The agent's own services are on 127.0.0.1: a destination there would lead the container to them.
        (("destinations", 0, "addresses"), ["127.0.0.1"], "no machine outside"),
        (("destinations", 0, "addresses"), ["127.9.9.9"], "no machine outside"),
        (("destinations", 0, "addresses"), ["0.0.0.0"], "no machine outside"),
        (("destinations", 0, "addresses"), ["0.1.2.3"], "no machine outside"),
        (("destinations", 0, "addresses"), ["169.254.169.254"], "no machine outside"),
        (("destinations", 0, "addresses"), ["224.0.0.1"], "no machine outside"),
        (("destinations", 0, "addresses"), ["255.255.255.255"], "no machine outside"),
        (("destinations", 0, "addresses"), ["::"], "no machine outside"),
        (("destinations", 0, "addresses"), ["::1"], "no machine outside"),
        (("destinations", 0, "addresses"), ["fe80::1"], "no machine outside"),
        (("destinations", 0, "addresses"), ["ff02::1"], "no machine outside"),
        (("destinations", 0, "tls"), "yes", "tls"),
        (("destinations", 0, "ports"), [1], "ports"),
        (("checkpoint", "grace_seconds"), 3_601, "grace_seconds"),
        (("checkpoint", "grace_seconds"), -1, "grace_seconds"),
        (("checkpoint", "volume", "name"), "other", "'checkpoint' is required"),
        (("checkpoint", "volume", "size"), 4096, "size"),
        (("checkpoint", "volume"), [], "volume"),
        (("checkpoint",), None, "an object"),
        (("recipients",), [], "is empty"),
        (("recipients",), ["55" * 31], "recipients"),
        (("recipients",), ["66" * 32, "55" * 32], "not ascending"),
        (("recipients",), [f"{at:064x}" for at in range(21)], "21 entries"),
        (("recipients",), "55" * 32, "recipients"),
    ],
)
def test_what_does_not_follow_the_protocol_is_refused(path, value, said):
    assert said in refusal(path, value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("access", "tunnels"), [1, 65_535]),
        (("access", "tunnels"), list(range(1, 17))),
        (("access", "clients"), []),
        (("access", "clients"), [f"{at:064x}" for at in range(64)]),
        (("destinations", 0, "port"), 1),
        (("destinations", 0, "port"), 65_535),
        (("destinations", 0, "host"), "2001:db8::1"),
        (("destinations", 0, "addresses"), sorted(f"192.0.2.{at}" for at in range(32))),
        (("checkpoint", "grace_seconds"), 0),
        (("checkpoint", "grace_seconds"), 3_600),
        (("recipients",), [f"{at:064x}" for at in range(1, 21)]),
    ],
    ids=str,
)
def test_what_just_fits_is_read(path, value):
    data = changed_json(AMPLE, path, value)
    assert parse_job_manifest(data).encode() == data


def test_commands_may_be_allowed_and_no_tunnels():
    access = {"exec": True, "tunnels": [], "clients": []}
    assert parse_access(access) == Access(exec=True)


def test_what_is_reserved_of_ipv6_may_be_anybodys_tomorrow():
    assert is_outside("4000::1")


def test_a_way_in_that_leads_nowhere_is_refused():
    document = {name: value for name, value in AMPLE.items() if name != "kind"}
    document["access"] = {"exec": False, "tunnels": [], "clients": []}
    with pytest.raises(FormatError, match="allows nothing"):
        parse_job_manifest(canonical_json(document))
    document["access"] = {"exec": True, "tunnels": [], "clients": ["33" * 32]}
    with pytest.raises(FormatError, match="no port that they could use"):
        parse_job_manifest(canonical_json(document))


def test_a_network_without_destinations_is_refused():
    document = {name: value for name, value in AMPLE.items() if name != "destinations"}
    with pytest.raises(FormatError, match="'allow'"):
        parse_job_manifest(canonical_json(document))


@given(st.sampled_from(sorted(TERMS)), JSON)
def test_a_term_of_any_value_is_read_or_refused(term, value):
    try:
        job = parse_job_manifest(changed_json(AMPLE, (term,), value))
    except FormatError:
        return
    assert parse_job_manifest(job.encode()) == job


@pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::1", "::1"])
def test_an_address_is_one(text):
    assert is_address(text)


@pytest.mark.parametrize(
    "text", ["", "1", "::ffff:192.0.2.1", "::ffff:c000:201", "::1%lo", "0::1", "192.0.2.1/32", "a.b.c.d"]
)
def test_an_address_has_one_form(text):
    assert not is_address(text)


def test_a_resized_volume_is_another_job():
    job = ample_manifest()
    assert job.checkpoint is not None
    larger = replace(job.checkpoint, volume=replace(job.checkpoint.volume, size=2 << 30))
    assert replace(job, checkpoint=larger).host_data != job.host_data
