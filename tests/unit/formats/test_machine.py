# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import dataclasses
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.evidence import host_data
from cvmtool.formats.job import MAX_MANIFEST, Resources
from cvmtool.formats.machine import MAX_VOLUMES, MachineManifest, parse_machine_manifest, parse_manifest
from cvmtool.formats.wire import canonical_json
from tests.unit.formats.test_volume import VOLUME
from tests.unit.guest import samples

MANIFEST = MachineManifest(
    name="workbench",
    salt="5a" * 32,
    owner_key="0b" * 32,
    volumes=(VOLUME,),
    shell=True,
    resources=Resources(vcpus=2, memory_mib=1024, cpu="EPYC-Genoa"),
)
VALUE = json.loads(MANIFEST.encode())


def changed(**keys):
    return canonical_json({**VALUE, **keys})


def test_a_manifest_round_trips():
    assert parse_machine_manifest(MANIFEST.encode()) == MANIFEST
    bare = dataclasses.replace(MANIFEST, volumes=(), shell=False)
    assert parse_machine_manifest(bare.encode()) == bare


def test_host_data_commits_to_owner_and_manifest():
    digest = hashlib.sha256(MANIFEST.encode()).digest()
    assert MANIFEST.sha256 == digest
    assert MANIFEST.host_data == host_data(owner_key=b"\x0b" * 32, manifest_sha256=digest)


@pytest.mark.parametrize("change", [{"shell": False}, {"volumes": ()}, {"name": "other"}, {"salt": "00" * 32}])
def test_each_part_changes_host_data(change):
    assert dataclasses.replace(MANIFEST, **change).host_data != MANIFEST.host_data


OTHER = {**VALUE["volumes"][0], "name": "other"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", "cvmtool/machine/v2"),
        ("name", "Work"),
        ("salt", "5a"),
        ("owner_key", "0B" * 32),
        ("shell", 1),
        ("shell", None),
        ("volumes", {}),
        ("volumes", ["data"]),
        ("volumes", [OTHER] * (MAX_VOLUMES + 1)),
        ("volumes", [VALUE["volumes"][0], OTHER]),  # one disk under two names
        ("volumes", [OTHER, {**OTHER, "luks_uuid": "00000000" + OTHER["luks_uuid"][8:]}]),
        ("volumes", [OTHER, {**OTHER, "name": "third", "luks_uuid": OTHER["luks_uuid"][:-1] + "0"}]),  # one serial
        ("resources", {}),
        ("resources", {**VALUE["resources"], "vcpus": 0}),
        ("more", 1),
    ],
)
def test_any_other_manifest_is_refused(key, value):
    with pytest.raises(FormatError, match=key.removesuffix("s")):
        parse_machine_manifest(changed(**{key: value}))


def test_a_machine_has_as_many_volumes_as_are_allowed():
    many = [
        {**OTHER, "name": f"v{number}", "luks_uuid": f"{number:08x}" + OTHER["luks_uuid"][8:]}
        for number in range(MAX_VOLUMES + 1)
    ]
    assert len(parse_machine_manifest(changed(volumes=many[:-1])).volumes) == MAX_VOLUMES
    with pytest.raises(FormatError, match=f"has {MAX_VOLUMES + 1} entries"):
        parse_machine_manifest(changed(volumes=many))


@pytest.mark.parametrize("key", VALUE)
def test_a_manifest_has_all_its_keys(key):
    with pytest.raises(FormatError, match=key):
        parse_machine_manifest(canonical_json({name: value for name, value in VALUE.items() if name != key}))


def test_the_schema_tells_the_kinds_apart():
    job = samples.manifest()
    assert parse_manifest(job.encode()) == job
    assert parse_manifest(MANIFEST.encode()) == MANIFEST


@pytest.mark.parametrize(
    "data", [changed(schema="cvmtool/other/v1"), changed(schema=1), b"{}", MANIFEST.encode() + b"\n"]
)
def test_what_is_neither_kind(data):
    with pytest.raises(FormatError):
        parse_manifest(data)


def test_both_schemas_are_named():
    with pytest.raises(FormatError, match="'cvmtool/job/v1' or 'cvmtool/machine/v1' is required"):
        parse_manifest(changed(schema="cvmtool/other/v1"))


def test_a_manifest_has_a_limit():
    with pytest.raises(FormatError, match=str(MAX_MANIFEST)):
        parse_manifest(bytes(MAX_MANIFEST + 1))


@given(st.binary(max_size=200) | st.dictionaries(st.sampled_from(list(VALUE)), st.text()).map(canonical_json))
def test_any_bytes_are_a_manifest_or_a_format_error(data):
    with contextlib.suppress(FormatError):
        assert parse_manifest(data).encode() == data
