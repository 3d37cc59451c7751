# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.grant import Grant, GrantedPack, encode_grant, parse_grant, read_grant
from tests.samples import changed_json, pooled_manifest
from tests.unit.formats.test_wire import JSON


def grant(**changes) -> Grant:
    job = pooled_manifest()
    base = Grant(
        id="99" * 16,
        coordinator=job.owner_key,
        manifest=job.sha256.hex(),
        packs=tuple(
            GrantedPack(name=pack.name, root_hash=pack.root_hash, luks_uuid=pack.luks_uuid)
            for pack in job.packs
            if pack.name == "clinic"
        ),
        container_root=job.container_pack.root_hash,
        container=job.container,
        outputs=job.outputs,
        recipients=job.recipients,
        log_mib=16,
        expires="2026-12-31T12:00:00Z",
        uses=1,
        owner_key="77" * 32,
        signature="22" * 64,
    )
    return replace(base, **changes)


DOCUMENT = grant().to_json()


def test_a_grant_is_read_as_it_was_written():
    for each in (grant(), grant(manifest=None), grant(uses=1_000, outputs=())):
        assert parse_grant(encode_grant(each)) == each


def test_a_grant_is_a_file_for_people():
    """A key in each line, in one order, and letters as they are."""
    text = encode_grant(grant(container=replace(grant().container, args=("café",)))).decode()
    assert text.startswith('{\n "container": {\n  "args": [\n   "café"\n  ],\n')
    keys = [line.split('"')[1] for line in text.splitlines() if line.startswith(' "')]
    assert keys == sorted(DOCUMENT)
    assert text.endswith("}\n")


def packs(number):
    return [DOCUMENT["packs"][0] | {"root_hash": f"{at:064x}"} for at in range(number)]


def outputs(number):
    return [DOCUMENT["outputs"][0] | {"name": f"o{at:03}"} for at in range(number)]


@pytest.mark.parametrize(
    ("key", "value"),
    [("packs", packs(16)), ("outputs", outputs(256)), ("log_mib", 1), ("log_mib", 65_536), ("uses", 1_000)],
)
def test_bounds_are_within(key, value):
    assert read_grant(DOCUMENT | {key: value}).to_json()[key] == value


@pytest.mark.parametrize("key", [key for key in DOCUMENT if key not in {"schema", "signature"}])
def test_the_signature_covers_everything_but_itself(key):
    other = {
        "manifest": None,
        "packs": (replace(grant().packs[0], name="elsewhere"),),
        "container": replace(grant().container, args=("sh",)),
        "outputs": (),
        "recipients": ("55" * 32,),
        "log_mib": 17,
        "expires": "2027-12-31T12:00:00Z",
        "uses": 2,
    }.get(key, "ab" * 32)
    assert grant(**{key: other}).signed != grant().signed
    assert grant(signature="33" * 64).signed == grant().signed
    assert grant().signed.startswith(b"\0\0\0\x10cvmtool/v1/grant\0")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), "cvmtool/grant/v2"),
        (("id",), "99" * 15),
        (("coordinator",), "AA" * 32),
        (("manifest",), ""),
        (("packs",), []),
        (("packs",), DOCUMENT["packs"] * 2),
        (("packs",), packs(17)),
        (("outputs",), outputs(257)),
        (("log_mib",), 65_537),
        (("packs", 0, "luks_uuid"), "not-one"),
        (("packs", 0, "name"), "../clinic"),
        (("packs", 0, "size"), 7),
        (("container_root",), None),
        (("container", "args"), []),
        (("container", "shell"), True),
        (("outputs", 0, "kind"), "film"),
        (("outputs",), DOCUMENT["outputs"][:1] * 2),
        (("outputs",), ["all"]),
        (("recipients",), []),
        (("recipients",), DOCUMENT["recipients"][::-1]),
        (("log_mib",), 0),
        (("expires",), "2026-12-31"),
        (("expires",), "2026-13-31T12:00:00Z"),
        (("uses",), 0),
        (("uses",), 1_001),
        (("uses",), True),
        (("owner_key",), "77" * 33),
        (("signature",), "22" * 63),
        (("forever",), True),
    ],
    ids=str,
)
def test_what_is_no_grant_is_refused(path, value):
    with pytest.raises(FormatError):
        parse_grant(changed_json(DOCUMENT, path, value))


def test_no_key_may_be_missing():
    for key in DOCUMENT:
        with pytest.raises(FormatError, match="lacks"):
            read_grant(json.loads(json.dumps({name: value for name, value in DOCUMENT.items() if name != key})))


@given(st.sampled_from(sorted(DOCUMENT)), JSON)
def test_any_value_is_read_or_refused(key, value):
    with contextlib.suppress(FormatError):
        found = read_grant({**DOCUMENT, key: value})
        assert parse_grant(encode_grant(found)) == found
