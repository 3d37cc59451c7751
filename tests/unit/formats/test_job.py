# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.evidence import host_data
from cvmtool.formats.job import MAX_ARGUMENTS, MAX_OUTPUTS, MAX_PACKS, Network, OutputKind, parse_job_manifest
from cvmtool.formats.pack import Role
from cvmtool.formats.wire import canonical_json
from tests.samples import manifest, pack
from tests.unit.formats.test_wire import JSON

BASE = json.loads(manifest().encode())


def changed(path, value):
    """The bytes of the base manifest with one value replaced."""
    document = json.loads(manifest().encode())
    *parents, last = path
    at = document
    for step in parents:
        at = at[step]
    at[last] = value
    return canonical_json(document)


def test_a_manifest_round_trips_and_is_canonical():
    job = manifest()
    assert parse_job_manifest(job.encode()) == job
    with pytest.raises(FormatError, match="canonical"):
        parse_job_manifest(json.dumps(BASE).encode())


def test_host_data_is_over_owner_and_manifest():
    job = manifest()
    assert job.host_data == host_data(owner_key=bytes.fromhex(job.owner_key), manifest_sha256=job.sha256)
    assert replace(job, salt="12" * 32).host_data != job.host_data


def test_the_container_stands_apart_from_the_inputs():
    assert manifest().container_pack.name == "container"
    assert [item.name for item in manifest().inputs] == ["data", "model"]


@pytest.mark.parametrize("key", BASE)
def test_every_key_is_required(key):
    with pytest.raises(FormatError, match=key):
        parse_job_manifest(canonical_json({name: value for name, value in BASE.items() if name != key}))


@pytest.mark.parametrize("part", ["container", "resources", "limits"])
def test_every_key_of_every_part_is_required_and_no_other_known(part):
    for key in BASE[part]:
        with pytest.raises(FormatError, match=key):
            parse_job_manifest(changed([part], {name: value for name, value in BASE[part].items() if name != key}))
    with pytest.raises(FormatError, match="unknown"):
        parse_job_manifest(changed([part], {**BASE[part], "privileged": True}))


CONTAINER = pack("container", Role.CONTAINER).to_json()


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (["schema"], "cvmtool/job/v2", "schema"),
        (["schema"], None, "schema"),
        (["name"], "Digits", "name"),
        (["name"], "../digits", "name"),
        (["salt"], "11" * 31, "salt"),
        (["owner_key"], "22" * 33, "owner_key"),
        (["network"], "host", "network"),
        (["network"], None, "network"),
        (["packs"], [], "packs"),
        (["packs"], [pack("data").to_json()], "packs"),
        (["packs"], [CONTAINER, {**CONTAINER, "name": "other", "root_hash": "00" * 32}], "packs"),
        (["packs"], [CONTAINER, pack("container").to_json() | {"root_hash": "00" * 32}], "twice"),
        (["packs"], [CONTAINER, pack("data").to_json() | {"root_hash": CONTAINER["root_hash"]}], "twice"),
        (["packs"], [CONTAINER] * (MAX_PACKS + 1), "packs"),
        (["packs"], [CONTAINER, "data"], "pack"),
        (["outputs"], {}, "outputs"),
        (["outputs"], [BASE["outputs"][0]] * 2, "twice"),
        (["outputs"], [{"name": f"o{n}", "kind": "file", "max_bytes": 1} for n in range(MAX_OUTPUTS + 1)], "outputs"),
        (["outputs", 0, "kind"], "pickle", "one of safetensors, json, csv, log, file, directory is required"),
        (["outputs", 0, "max_bytes"], 0, "max_bytes"),
        (["outputs", 0, "max_bytes"], (1 << 40) + 1, "max_bytes"),
        (["outputs", 0, "path"], "x", "unknown"),
        (["container", "oci_digest"], "sha512:" + "ab" * 32, "oci_digest"),
        (["container", "oci_digest"], "sha256:" + "AB" * 32, "oci_digest"),
        (["container", "args"], [], "args"),
        (["container", "args"], "python3", "args"),
        (["container", "args"], ["a\0b"], "args"),
        (["container", "args"], [1], "args"),
        (["container", "args"], ["a"] * (MAX_ARGUMENTS + 1), "args"),
        (["container", "args"], ["a" * 65_537], "args"),
        (["container", "env"], {"A=B": "1"}, "env"),
        (["container", "env"], {"1A": "1"}, "env"),
        (["container", "env"], {"": "1"}, "env"),
        (["container", "env"], {"A\n": "1"}, "env"),
        (["container", "env"], {"A": "\0"}, "env"),
        (["container", "env"], {"A": 1}, "env"),
        (["container", "workdir"], "app", "workdir"),
        (["container", "workdir"], "/a\0", "workdir"),
        (["resources", "vcpus"], 0, "vcpus"),
        (["resources", "vcpus"], 513, "vcpus"),
        (["resources", "memory_mib"], 255, "memory_mib"),
        (["resources", "cpu"], 1, "cpu"),
        (["limits", "memory_mib"], 15, "memory_mib"),
        (["resources", "gpus"], 0, "gpus"),
        (["limits", "pids"], (1 << 22) + 1, "pids"),
        (["limits", "pids"], 0, "pids"),
        (["limits", "scratch_mib"], -1, "scratch_mib"),
        (["limits", "outputs_mib"], 0, "outputs_mib"),
        (["limits", "log_mib"], 0, "log_mib"),
        (["limits", "log_mib"], (1 << 16) + 1, "log_mib"),
        (["limits", "seconds"], 0, "seconds"),
        (["limits", "seconds"], True, "seconds"),
    ],
)
def test_a_value_out_of_shape_is_refused_and_named(path, value, named):
    with pytest.raises(FormatError, match=named):
        parse_job_manifest(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["resources", "vcpus"], 512),
        (["resources", "gpus"], 1),
        (["limits", "memory_mib"], 16),
        (["limits", "pids"], 1),
        (["limits", "pids"], 1 << 22),
        (["limits", "scratch_mib"], 0),
        (["limits", "outputs_mib"], 1),
        (["limits", "log_mib"], 1 << 16),
        (["limits", "seconds"], 1),
        (["outputs", 0, "max_bytes"], 1 << 40),
        (["outputs"], [{"name": f"o{n}", "kind": "file", "max_bytes": 1} for n in range(MAX_OUTPUTS)]),
        (["container", "args"], ["a"] * MAX_ARGUMENTS),
        (["container", "args"], ["a" * 65_536]),
    ],
)
def test_the_last_values_that_are_allowed(path, value):
    data = changed(path, value)
    assert parse_job_manifest(data).encode() == data


def test_only_gpus_are_left_out_where_there_are_none():
    shape = replace(manifest().resources, cpu="")
    assert shape.to_json() == {"vcpus": 2, "memory_mib": 1024, "cpu": ""}


def outputs(*names):
    return changed(["outputs"], [{"name": name, "kind": "file", "max_bytes": 1} for name in names])


@pytest.mark.parametrize("name", ["a", "a.b", "a/b", "_x/1", "A-b_c.d", "a..b", "a" * 128, "/".join("abcdefgh")])
def test_an_output_is_a_relative_path_of_plain_names(name):
    assert parse_job_manifest(outputs(name)).outputs[0].name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/../b",
        "a/..",
        "./a",
        "/a",
        "/etc/passwd",
        "a//b",
        "a/",
        ".hidden",
        "a/.hidden",
        "-rf",
        "a b",
        "a\n",
        "a\0",
        "a\\b",
        "é",
        "a" * 129,
        "/".join("abcdefghi"),
    ],
)
def test_no_output_has_a_name_that_could_lie_elsewhere(name):
    with pytest.raises(FormatError, match=r"outputs\.name"):
        parse_job_manifest(outputs(name))


@pytest.mark.parametrize(
    "names", [("a", "a/b"), ("a/b/c", "a"), ("x/a", "x/a/b/c"), ("receipt.json",), ("receipt.json/a",)]
)
def test_outputs_that_cannot_lie_in_one_directory_are_refused(names):
    with pytest.raises(FormatError):
        parse_job_manifest(outputs(*names))


def test_outputs_may_share_a_directory_or_a_beginning():
    names = ("a/b", "a/c", "ab", "a.b", "sub/receipt.json", "receipt.json2")
    assert tuple(item.name for item in parse_job_manifest(outputs(*names)).outputs) == names


PATHS = [[key] for key in BASE] + [[part, key] for part in ("container", "resources", "limits") for key in BASE[part]]


@given(st.sampled_from(PATHS), JSON)
def test_any_value_is_a_manifest_or_a_format_error(path, value):
    with contextlib.suppress(FormatError):
        data = changed(path, value)
        assert parse_job_manifest(data).encode() == data


@given(st.binary(max_size=100))
def test_any_bytes_are_a_manifest_or_a_format_error(data):
    with contextlib.suppress(FormatError):
        parse_job_manifest(data)


def test_kinds_and_networks_are_what_the_protocol_names():
    assert {kind.value for kind in OutputKind} == {"safetensors", "json", "csv", "log", "file", "directory"}
    assert [network.value for network in Network] == ["none", "allow"]
