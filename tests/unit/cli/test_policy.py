# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from cvmtool.cli import policy as module
from cvmtool.cli.attest import app
from cvmtool.errors import ConfigError, CvmError, FormatError
from cvmtool.formats.manifest import Mode
from cvmtool.owner.amdroots import AmdRoots
from cvmtool.owner.policy import baseline
from cvmtool.owner.policyfile import encode_policy, parse_policy
from tests.samples import manifest
from tests.unit.formats.test_manifest import DIGESTS, MANIFEST

PRODUCTION = tuple(f"{number + 1000:096x}" for number in range(len(DIGESTS)))
IMAGE = replace(
    MANIFEST, launch_digests={Mode.PRODUCTION: {"EPYC-Genoa": PRODUCTION}, Mode.DRYRUN: {"EPYC-Genoa": DIGESTS}}
)


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(module, "_image", lambda bundle: (IMAGE, "ab" * 32))

    def call(*arguments):
        return CliRunner().invoke(app, ["policy", *map(str, arguments)])

    return call


def test_the_baseline_for_an_image(run):
    result = run("init", "base", "--vcpus", 3)
    expected = baseline(roots=AmdRoots(), measurements=frozenset({bytes.fromhex(PRODUCTION[2])}), host_data=None)
    assert parse_policy(result.stdout) == expected
    assert result.stdout.startswith("# ")
    assert "# 3 virtual CPUs of model EPYC-Genoa." in result.stdout


def test_a_dry_runs_policy_names_its_root_and_measures_its_command_line(run):
    policy = parse_policy(run("init", "base", "--vcpus", 2, "--simulated-root", "cd" * 32).stdout)
    assert policy.simulated_root == b"\xcd" * 32
    assert policy.measurements == {bytes.fromhex(DIGESTS[1])}


def test_a_job_brings_its_cpus(run, tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text(
        f"name: x\ncontainer: {{image: 'oci:x', digest: 'sha256:{'0' * 64}'}}\n"
        "outputs: {a: {kind: file, max: 1MiB}}\nresources: {vcpus: 5}\n"
    )
    policy = parse_policy(run("init", "base", "--job", job).stdout)
    assert policy.measurements == {bytes.fromhex(PRODUCTION[4])}
    assert "host-data" in policy.unchecked
    assert parse_policy(run("init", "base", "--job", job, "--vcpus", 6).stdout).measurements == {
        bytes.fromhex(PRODUCTION[5])
    }


def test_a_runs_manifest_brings_host_data_too(run, tmp_path):
    job = manifest()
    (tmp_path / "manifest.json").write_bytes(job.encode())
    value = json.loads(run("init", "base", "--job", tmp_path / "manifest.json", "--json").stdout)
    assert value["schema"] == "cvmtool/attest-policy-init/v1"
    policy = parse_policy(value["policy"])
    assert policy.host_data == {job.host_data}
    assert value["measurement"] == IMAGE.launch_digest(Mode.PRODUCTION, "EPYC-Genoa", job.resources.vcpus).hex()
    assert "host-data" not in value["unchecked"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--cpu", "EPYC-Foo"), FormatError),
        (("--vcpus", "65"), FormatError),
        (("--simulated-root", "00"), FormatError),
        (("--job", "/nonexistent.yaml"), ConfigError),
    ],
)
def test_what_cannot_be_is_refused(run, arguments, error):
    result = run("init", "base", *arguments)
    assert isinstance(result.exception, error)
    assert result.stdout == ""


def test_a_job_in_another_encoding_is_refused(run, tmp_path):
    for name in ("job.yaml", "manifest.json"):
        (tmp_path / name).write_bytes(b"\xff\xfe")
        assert isinstance(run("init", "base", "--job", tmp_path / name).exception, CvmError)


def test_check_reads_strictly_and_says_what_is_unchecked(run, tmp_path):
    file = tmp_path / "policy.toml"
    policy = baseline(roots=AmdRoots(), measurements=frozenset({b"M" * 48}), host_data=None)
    file.write_text(encode_policy(policy))
    value = json.loads(run("check", file, "--json").stdout)
    assert value["unchecked"] == list(policy.unchecked)
    assert (value["simulated"], value["measurements"]) == (False, 1)
    assert len(value["floors"]) == len(policy.tcb_floors)
    assert "unchecked: host-data, chips" in run("check", file).stdout
    file.write_text(encode_policy(policy).replace("vmpl", "vmlp"))
    assert isinstance(run("check", file).exception, ConfigError)
