# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import ConfigError
from cvmtool.formats.job import (
    Container,
    JobManifest,
    Limits,
    Network,
    Output,
    OutputKind,
    Resources,
    parse_job_manifest,
)
from cvmtool.formats.jobterms import Destination
from cvmtool.formats.pack import Role
from cvmtool.owner.jobfile import Restart, parse_job_file
from cvmtool.owner.strictyaml import MAX_YAML
from tests.samples import DIGEST, JOB_YAML, pack
from tests.unit.formats.test_wire import JSON

BASE = yaml.safe_load(JOB_YAML)


def job(**changes):
    return parse_job_file(yaml.safe_dump({**BASE, **changes}))


def refused(text_or_changes):
    with pytest.raises(ConfigError) as refusal:
        parse_job_file(text_or_changes) if isinstance(text_or_changes, str) else job(**text_or_changes)
    return refusal.value


def test_a_job_file_is_read():
    read = parse_job_file(JOB_YAML)
    assert read.name == "digits"
    assert read.image == "base"
    assert (read.container_image, read.container_digest) == ("oci-archive:container.oci.tar", DIGEST)
    assert read.command == ("python3", "train.py", "--epochs", "3")
    assert read.workdir is None
    assert read.env == {"THREADS": "1"}
    assert read.inputs == {"data": "inputs/data"}
    assert read.outputs == (Output(name="model.safetensors", kind=OutputKind.SAFETENSORS, max_bytes=1 << 20),)
    assert read.resources == Resources(vcpus=2, memory_mib=1024, cpu="EPYC-Genoa")
    assert read.network is Network.NONE
    assert read.text == JOB_YAML


@pytest.mark.parametrize("word", ["always", "on-failur", "", None, 3, True, ["never"]])
def test_a_restart_is_never_or_on_failure(word):
    assert "restart is" in refused({"restart": word}).message or word is None


def test_a_job_is_started_again_only_where_that_is_asked_for():
    assert job().restart is Restart.NEVER
    assert job(restart="on-failure").restart is Restart.ON_FAILURE


def test_what_is_left_out_has_a_stated_value():
    short = {key: BASE[key] for key in ("name", "container", "outputs")}
    read = parse_job_file(yaml.safe_dump(short))
    assert read.command == ()
    assert (read.env, read.inputs) == ({}, {})
    assert read.resources == Resources(vcpus=1, memory_mib=1024, cpu="EPYC-Genoa")
    assert read.limits == Limits(memory_mib=800, pids=512, scratch_mib=64, outputs_mib=64, log_mib=16, seconds=3600)


def test_a_container_may_come_as_a_pack_and_begin_somewhere():
    assert job().container_pack is None
    read = job(container={**BASE["container"], "pack": "c.pack"}, workdir="/app")
    assert (read.container_pack, read.workdir) == ("c.pack", "/app")


def test_a_service_may_have_no_outputs():
    service = {name: value for name, value in BASE.items() if name != "outputs"} | {
        "kind": "serve",
        "serve": {"port": 1},
    }
    assert parse_job_file(yaml.safe_dump(service)).outputs == ()
    assert parse_job_file(yaml.safe_dump(service | {"outputs": {}})).outputs == ()


def test_bounds_are_within():
    assert job(resources={"memory": "256MiB"}).limits.memory_mib == 32
    assert len(job(outputs={f"o{n}": {"kind": "file", "max": "1MiB"} for n in range(256)}).outputs) == 256
    assert len(job(inputs={f"d{n}": "x" for n in range(15)}).inputs) == 15
    for pids in (1, 1 << 22):
        assert job(limits={"pids": pids}).limits.pids == pids


@pytest.mark.parametrize(
    ("changes", "required"),
    [
        ({"name": "Digits"}, "lower-case letters, digits, '.', '_' and '-'"),
        ({"image": "a/b"}, "the name of a guest image"),
        ({"container": {"image": "oci:x", "digest": "latest"}}, "sha256: and 64 hex digits"),
        ({"workdir": "app"}, "an absolute path"),
        ({"restart": "always"}, "never or on-failure"),
        ({"resources": {"cpu": "host,+x"}}, "a CPU model such as EPYC-Genoa"),
        ({"inputs": {"data": ""}}, "a path"),
        ({"limits": {"pids": (1 << 22) + 1}}, "a number from 1 to 4194304"),
    ],
)
def test_a_refusal_says_what_is_required(changes, required):
    assert refused(changes).message.endswith(f"; {required} is required")


def test_a_refusal_names_the_file_and_its_page():
    assert refused("[").message == "the job file is not YAML"
    assert refused("7").message.startswith("job is a int")
    page = refused("image: base").hint.split()[0]
    assert (Path(__file__).parents[3] / page).is_file()


def test_the_example_is_a_job():
    example = Path(__file__).parents[3] / "examples/digits/job.yaml"
    assert parse_job_file(example.read_text("utf-8")).name == "digits"


@pytest.mark.parametrize(
    ("changes", "key", "nearest"),
    [
        ({"comand": []}, "comand", "command"),
        ({"resources": {"vcpu": 1}}, "resources.vcpu", "vcpus"),
        ({"limits": {"times": "1h"}}, "limits.times", "time"),
        ({"container": {**BASE["container"], "digests": "x"}}, "container.digests", "digest"),
        ({"outputs": {"a": {"kinds": "file", "max": "1MiB"}}}, "outputs.a.kinds", "kind"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(changes, key, nearest):
    error = refused(changes)
    assert repr(key) in error.message
    assert error.hint == f"did you mean {nearest!r}?"


@pytest.mark.parametrize(("written", "allowed"), [("", True), (", smt: true", True), (", smt: false", False)])
def test_smt_is_the_jobs_to_allow(written, allowed):
    assert parse_job_file(JOB_YAML.replace("cpu: EPYC-Genoa", f"cpu: EPYC-Genoa{written}")).smt is allowed


@pytest.mark.parametrize("written", ["no thanks", "1", "null"])
def test_smt_is_true_or_false(written):
    with pytest.raises(ConfigError, match=r"resources\.smt is .*; true or false is required"):
        parse_job_file(JOB_YAML.replace("cpu: EPYC-Genoa", f"cpu: EPYC-Genoa, smt: {written}"))


@pytest.mark.parametrize(("written", "gpus"), [("", 0), (", gpus: 0", 0), (", gpus: 8", 8)])
def test_a_job_says_how_many_gpus_it_wants(written, gpus):
    assert parse_job_file(JOB_YAML.replace("cpu: EPYC-Genoa", f"cpu: EPYC-Genoa{written}")).resources.gpus == gpus


@pytest.mark.parametrize("written", ["9", "-1", "all", "true"])
def test_no_guest_has_another_number_of_gpus(written):
    with pytest.raises(ConfigError, match=r"resources\.gpus is .*; a number from 0 to 8 is required"):
        parse_job_file(JOB_YAML.replace("cpu: EPYC-Genoa", f"cpu: EPYC-Genoa, gpus: {written}"))


def test_an_unknown_key_that_is_near_nothing_gets_the_list():
    assert "known keys: name, kind, image" in refused({"zzzzzz": 1}).hint


@pytest.mark.parametrize("key", ["name", "container", "outputs"])
def test_what_must_be_there_is_named(key):
    error = refused(yaml.safe_dump({name: value for name, value in BASE.items() if name != key}))
    assert repr(key) in error.message


@pytest.mark.parametrize("text", [JOB_YAML + "name: again\n", JOB_YAML.replace("vcpus: 2", "vcpus: 2, vcpus: 3")])
def test_a_key_that_stands_twice_is_refused_with_its_line(text):
    error = refused(text)
    assert "twice" in error.message
    assert "line " in error.message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('THREADS: "1"', "THREADS: 1"),
        ('THREADS: "1"', "THREADS: no"),
        ('THREADS: "1"', "THREADS: 1.5"),
        ('THREADS: "1"', "THREADS: 2026-01-01"),
        ('THREADS: "1"', "THREADS: null"),
        ('THREADS: "1"', "no: x"),
        ('THREADS: "1"', "1: x"),
        ('THREADS: "1"', "null: x"),
        ('"3"', "3"),
        ('"3"', "3.0"),
        ('"3"', "yes"),
        ("vcpus: 2", "vcpus: 02"),
        ("vcpus: 2", "vcpus: 010"),
        ("vcpus: 2", "vcpus: 0o10"),
        ("vcpus: 2", "vcpus: 0x2"),
        ("vcpus: 2", "vcpus: 1_0"),
        ("vcpus: 2", "vcpus: 1:30"),
        ("vcpus: 2", "vcpus: 1e1"),
        ("vcpus: 2", "vcpus: 2.0"),
        ("vcpus: 2", "vcpus: true"),
        ("vcpus: 2", 'vcpus: "2"'),
        ("vcpus: 2", "vcpus: 0"),
        ("vcpus: 2", "vcpus: 513"),
        ("vcpus: 2", "vcpus: !!int '2'"),
        ("memory: 1GiB", "memory: 1024"),
        ("time: 10m", "time: 10"),
        ("time: 10m", "time: 1:30"),
        ("name: digits", "name: 2026-01-01"),
        ("name: digits", "name: no"),
        ("name: digits", "name: !!str digits"),
        ("name: digits", "name: !!python/object/apply:os.system [id]"),
        ("name: digits", "name: &a [*a]"),
        ("name: digits", "name: *nothing"),
        ("command: [python3", 'command: ["\\ud800"'),
        ("command: [python3", 'command: ["a\\0b"'),
        ('command: [python3, train.py, --epochs, "3"]', "command: python3 train.py"),
        ("name: digits", "<<: {name: digits}"),
    ],
)
def test_yamls_surprises_are_refused_and_not_guessed(old, new):
    assert old in JOB_YAML
    refused(JOB_YAML.replace(old, new))


@pytest.mark.parametrize(
    "text", ["", "- a", "a", "1", "a: [", "a: 1\n---\nb: 2", "\0", "[" * 5000, "{a: " * 5000, "? [a]\n: b"]
)
def test_what_is_no_mapping_in_yaml_is_refused(text):
    refused(text)


def test_a_job_file_has_a_limit():
    refused("#" + "x" * MAX_YAML)


def test_an_alias_that_multiplies_does_not_fill_the_message():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    nested = "\n".join(f"  {line}" for line in lines)
    error = refused(JOB_YAML.replace('env: {THREADS: "1"}', f"env:\n{nested}"))
    assert len(error.message) < 500
    assert len(error.hint) < 500


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"name": "Digits"}, "name"),
        ({"name": "../x"}, "name"),
        ({"image": "a/b"}, "image"),
        ({"container": {"image": "oci:x", "digest": "latest"}}, "container.digest"),
        ({"container": {"image": 5, "digest": DIGEST}}, "container.image"),
        ({"workdir": "app"}, "workdir"),
        ({"workdir": None}, "workdir"),
        ({"network": "host"}, "network"),
        ({"env": {"A-B": "1"}}, "env"),
        ({"env": {"A": "x" * 65_537}}, "env.A"),
        ({"env": []}, "env"),
        ({"command": ["x" * 65_537]}, "command"),
        ({"command": ["x"] * 1025}, "command"),
        ({"inputs": {"container": "x"}}, "inputs"),
        ({"inputs": {"Data": "x"}}, "inputs"),
        ({"inputs": {"data": ""}}, "inputs.data"),
        ({"inputs": {"data": 5}}, "inputs.data"),
        ({"inputs": {f"d{n}": "x" for n in range(16)}}, "inputs"),
        ({"outputs": {}}, "outputs"),
        ({"outputs": {"../x": {"kind": "file", "max": "1MiB"}}}, "outputs"),
        ({"outputs": {"/x": {"kind": "file", "max": "1MiB"}}}, "outputs"),
        ({"outputs": {"receipt.json": {"kind": "json", "max": "1MiB"}}}, "receipt.json"),
        ({"outputs": {name: {"kind": "file", "max": "1MiB"} for name in ("a", "a/b")}}, "outputs"),
        ({"outputs": {f"o{n}": {"kind": "file", "max": "1MiB"} for n in range(257)}}, "outputs"),
        ({"outputs": {"a": {"kind": "pickle", "max": "1MiB"}}}, "outputs.a.kind"),
        ({"outputs": {"a": {"kind": "file"}}}, "outputs.a.max"),
        ({"outputs": {"a": {"kind": "file", "max": "2TiB"}}}, "outputs.a.max"),
        ({"outputs": {"a": None}}, "outputs.a"),
        ({"resources": {"cpu": "host,+x"}}, "resources.cpu"),
        ({"resources": {"memory": "255MiB"}}, "resources.memory is 255 MiB; at least 256"),
        ({"resources": {"memory": "999999999TiB"}}, "resources.memory"),
        ({"resources": {"memory": "1048577KiB"}}, "resources.memory is '1048577KiB'; whole MiB"),
        ({"limits": {"time": "999999999d"}}, "limits.time"),
        ({"limits": {"log": "1TiB"}}, "limits.log"),
        ({"limits": {"pids": 0}}, "limits.pids"),
        ({"limits": {"memory": "1GiB"}}, "limits.memory"),
        ({"limits": {"memory": "8MiB"}}, "limits.memory"),
    ],
)
def test_a_value_out_of_range_is_named(changes, key):
    assert key in refused(changes).message


@pytest.mark.parametrize(("text", "size"), [("1KiB", 1 << 10), ("3MiB", 3 << 20), ("2GiB", 2 << 30), ("1TiB", 1 << 40)])
def test_sizes_have_binary_units(text, size):
    assert job(outputs={"a": {"kind": "file", "max": text}}).outputs[0].max_bytes == size


@pytest.mark.parametrize("text", ["1", "1MB", "1M", "0MiB", "-1MiB", "1.5MiB", "1 MiB", "01MiB", "1mib", "1MiB\n", ""])
def test_another_spelling_of_a_size_is_refused(text):
    refused({"outputs": {"a": {"kind": "file", "max": text}}})


@pytest.mark.parametrize(("text", "seconds"), [("1s", 1), ("90s", 90), ("2m", 120), ("3h", 10_800), ("1d", 86_400)])
def test_times_have_units(text, seconds):
    assert job(limits={"time": text}).limits.seconds == seconds


def test_the_containers_memory_leaves_the_guest_its_own():
    assert job(resources={"memory": "512MiB"}).limits.memory_mib == 512 - 224
    assert job(resources={"memory": "512MiB"}, limits={"memory": "288MiB"}).limits.memory_mib == 288
    assert "224" in refused({"resources": {"memory": "512MiB"}, "limits": {"memory": "289MiB"}}).message


def manifest_of(read):
    """What a job file becomes, without the program that an image would name."""
    return JobManifest(
        name=read.name,
        salt="11" * 32,
        owner_key="22" * 32,
        container=Container(
            oci_digest=read.container_digest,
            args=read.command or ("true",),
            env=tuple(sorted(read.env.items())),
            workdir=read.workdir or "/",
        ),
        packs=(pack("container", Role.CONTAINER), *(pack(name) for name in read.inputs)),
        outputs=read.outputs,
        resources=read.resources,
        limits=read.limits,
        network=read.network,
        kind=read.kind,
        destinations=tuple(
            Destination(host=wish.host, port=wish.port, addresses=("192.0.2.1",), tls=wish.tls)
            for wish in read.destinations
        ),
        access=read.access,
        recipients=read.recipients,
    )


VALUES = JSON | st.dates() | st.sampled_from(["1KiB", "1024GiB", "16777216MiB", "1d", "99999d", "a/b", "x" * 70_000])
SIZES = st.tuples(st.integers(0, 10**9), st.sampled_from(["KiB", "MiB", "GiB", "TiB", "s", "d"])).map(
    lambda p: f"{p[0]}{p[1]}"
)
PATHS = st.sampled_from(
    [(key,) for key in (*BASE, "workdir", "image", "network", "limits")]
    + [
        ("resources", "memory"),
        ("limits", "time"),
        ("limits", "log"),
        ("limits", "memory"),
        ("outputs", "a"),
        ("env", "A"),
    ]
    + [("outputs", "model.safetensors", "max"), ("inputs", "data"), ("resources", "vcpus"), ("limits", "pids")]
)


@given(PATHS, VALUES | SIZES)
def test_whatever_is_accepted_is_a_job_that_the_guest_accepts(path, value):
    document = yaml.safe_load(JOB_YAML)
    at = document
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    with contextlib.suppress(ConfigError):
        read = parse_job_file(yaml.safe_dump(document, allow_unicode=True))
        assert parse_job_manifest(manifest_of(read).encode()) == manifest_of(read)


@given(st.text(max_size=60) | st.text(alphabet="a:!&*?-[]{}<>|%@'\"\\,# \n0123xuU", max_size=40))
def test_any_text_is_a_job_or_a_config_error(text):
    for tried in (text, JOB_YAML + text, JOB_YAML.replace("digits", text)):
        with contextlib.suppress(ConfigError):
            parse_job_file(tried)


def test_the_text_of_a_job_is_not_in_its_repr():
    assert "--epochs, " not in repr(parse_job_file(JOB_YAML))


def test_waivers_are_names():
    assert job().waive == ()
    assert job(waive=["data"]).waive == ("data",)
    assert "waive is" in refused({"waive": "data"}).message
    assert "waive is" in refused({"waive": [1]}).message
