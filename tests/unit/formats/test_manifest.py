# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The image manifest: one spelling, every field checked, the two command lines one word apart."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.manifest import (
    MAX_CMDLINE,
    MAX_MANIFEST,
    MAX_VCPUS,
    Artefact,
    ImageManifest,
    Mode,
    parse_image_manifest,
)

DIGESTS = tuple(f"{number:096x}" for number in range(MAX_VCPUS))


def artefact(name: str) -> Artefact:
    return Artefact(file=name, sha256="cd" * 32, size=7)


MANIFEST = ImageManifest(
    name="base",
    source_date_epoch=1,
    inputs_sha256="ab" * 32,
    lock_sha256="ef" * 32,
    kernel_release="6.12",
    builder={"zstd": "1.5.7"},
    firmware=artefact("OVMF.amdsev.fd"),
    kernel=artefact("vmlinuz"),
    initrd=artefact("initrd"),
    rootfs=artefact("rootfs.img"),
    sbom=artefact("sbom.spdx.json"),
    cmdline={Mode.PRODUCTION: "console=ttyS0 panic=-1", Mode.DRYRUN: "console=ttyS0 panic=-1 cvmtool.dryrun=1"},
    launch_digests={mode: {"EPYC-Genoa": DIGESTS} for mode in Mode},
)


def mutated(change: dict[str, Any]) -> bytes:
    value = json.loads(MANIFEST.encode())
    for path, item in change.items():
        *parents, key = path.split("/")
        at = value
        for parent in parents:
            at = at[parent]
        if item is None:
            del at[key]
        else:
            at[key] = item
    return (json.dumps(value, sort_keys=True, indent=2) + "\n").encode()


def test_round_trip():
    assert parse_image_manifest(MANIFEST.encode()) == MANIFEST


def test_launch_digest_by_machine():
    for vcpus in (1, 3, 64):
        assert MANIFEST.launch_digest(Mode.DRYRUN, "EPYC-Genoa", vcpus).hex() == DIGESTS[vcpus - 1]
    for cpu, vcpus, field in (("EPYC-Foo", 1, "EPYC-Foo"), ("EPYC-Genoa", 0, "vCPUs"), ("EPYC-Genoa", 65, "vCPUs")):
        with pytest.raises(FormatError, match=field):
            MANIFEST.launch_digest(Mode.DRYRUN, cpu, vcpus)


@pytest.mark.parametrize(
    ("path", "item", "field"),
    [
        ("schema", "cvmtool/image/v2", "schema"),
        ("name", "../base", "name"),
        ("surplus", 1, "surplus"),
        ("lock_sha256", None, "lock_sha256"),
        ("lock_sha256", "zz" * 32, "lock_sha256"),
        ("inputs_sha256", "ab" * 31, "inputs_sha256"),
        ("source_date_epoch", 1 << 32, "source_date_epoch"),
        ("kernel/size", (1 << 40) + 1, "kernel.size"),
        ("cmdline/other", "x", "other"),
        ("source_date_epoch", -1, "source_date_epoch"),
        ("kernel/file", "../../etc/shadow", "kernel.file"),
        ("kernel/file", "manifest.json", "kernel.file"),
        ("kernel/file", "initrd", "same file name"),
        ("kernel/sha256", "CD" * 32, "kernel.sha256"),
        ("kernel/size", 0, "kernel.size"),
        ("kernel/surplus", 1, "surplus"),
        ("builder/zstd", "two words", "zstd"),
        ("cmdline/dryrun", "console=ttyS0 panic=-1 init=/bin/sh cvmtool.dryrun=1", "cmdline.dryrun"),
        ("cmdline/dryrun", "console=ttyS0 panic=-1", "cmdline.dryrun"),
        ("launch_digests/dryrun/EPYC-Genoa", ["00"], "is not a list of 64 digests"),
        ("launch_digests/dryrun/EPYC-Genoa", [*DIGESTS, DIGESTS[0]], "is not a list of 64 digests"),
        ("launch_digests/dryrun/EPYC-Genoa", "0" * MAX_VCPUS, "is not a list of 64 digests"),
        ("launch_digests/dryrun/EPYC-Genoa", ["zz"] * MAX_VCPUS, "launch_digests.dryrun.EPYC-Genoa"),
        ("launch_digests/dryrun/two words", list(DIGESTS), "is not a list of 64 digests"),
        ("launch_digests/dryrun/EPYC-Milan", list(DIGESTS), "different CPU models"),
    ],
)
def test_mutation_is_refused(path: str, item: object, field: str):
    with pytest.raises(FormatError, match=field):
        parse_image_manifest(mutated({path: item}))


@pytest.mark.parametrize(
    ("path", "item"),
    [("source_date_epoch", (1 << 32) - 1), ("source_date_epoch", 0), ("kernel/size", 1), ("kernel/size", 1 << 40)],
)
def test_the_last_values_that_are_allowed(path: str, item: object):
    data = mutated({path: item})
    assert parse_image_manifest(data).encode() == data


def with_lines(line: str) -> bytes:
    return mutated({"cmdline/production": line, "cmdline/dryrun": f"{line} cvmtool.dryrun=1"})


LONGEST = MAX_CMDLINE - len(" cvmtool.dryrun=1")


@pytest.mark.parametrize("line", ["x", "x" * LONGEST])
def test_a_command_line_of_any_length_in_bounds(line: str):
    assert parse_image_manifest(with_lines(line)).cmdline[Mode.PRODUCTION] == line


@pytest.mark.parametrize("line", ["", "x\n", "\u00e9", "x" * (LONGEST + 1)])
def test_a_command_line_is_short_printable_ascii(line: str):
    with pytest.raises(FormatError, match=r"cmdline\.(production|dryrun) has \d+ characters"):
        parse_image_manifest(with_lines(line))


@pytest.mark.parametrize(("count", "allowed"), [(0, False), (1, True), (64, True), (65, False)])
def test_an_image_has_up_to_64_cpu_models(count: int, allowed: bool):
    models = {f"CPU-{number}": list(DIGESTS) for number in range(count)}
    data = mutated({f"launch_digests/{mode}": models for mode in Mode})
    if allowed:
        assert len(parse_image_manifest(data).launch_digests[Mode.DRYRUN]) == count
    else:
        with pytest.raises(FormatError, match=rf"launch_digests\.production has {count} CPU models"):
            parse_image_manifest(data)


def test_keys_in_another_order_are_another_spelling():
    value = dict(reversed(json.loads(MANIFEST.encode()).items()))
    with pytest.raises(FormatError, match="one spelling"):
        parse_image_manifest((json.dumps(value, indent=2) + "\n").encode())


def test_every_artefact_is_listed():
    assert [artefact.file for artefact in MANIFEST.artefacts()] == [
        "OVMF.amdsev.fd",
        "vmlinuz",
        "initrd",
        "rootfs.img",
        "sbom.spdx.json",
    ]


def test_what_has_no_json_form_is_not_written():
    with pytest.raises(FormatError, match="no JSON form"):
        replace(MANIFEST, builder={"zstd": {1}}).encode()


def test_bounds_of_lists():
    for count, wanted in ((64, None), (65, "builder has 65 entries")):
        builder = mutated({"builder": {f"tool{number}": "1" for number in range(count)}})
        if wanted is None:
            assert len(parse_image_manifest(builder).builder) == count
        else:
            with pytest.raises(FormatError, match=wanted):
                parse_image_manifest(builder)


def test_a_production_line_that_holds_the_dry_run_word_is_refused():
    line = "cvmtool.dryrun=1 quiet"
    with pytest.raises(FormatError, match="cmdline"):
        parse_image_manifest(mutated({"cmdline/production": line, "cmdline/dryrun": f"{line} cvmtool.dryrun=1"}))


@pytest.mark.parametrize("change", [b" ", b"\n"])
def test_another_spelling_is_refused(change: bytes):
    with pytest.raises(FormatError, match="one spelling"):
        parse_image_manifest(MANIFEST.encode() + change)


def test_too_long_is_refused():
    with pytest.raises(FormatError, match=str(MAX_MANIFEST)):
        parse_image_manifest(b" " * (MAX_MANIFEST + 1))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3)
)


@given(st.sampled_from(sorted(json.loads(MANIFEST.encode()))), VALUES)
def test_any_value_in_any_key_is_refused_or_accepted(key: str, value: object):
    try:
        parse_image_manifest(mutated({key: value}) if value is not None else mutated({key: None}))
    except FormatError:
        return


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes):
    with pytest.raises(FormatError):
        parse_image_manifest(data)
