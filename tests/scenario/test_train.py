# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The main job, on real input: train the example in a dry run, and check what came back."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cvmtool.data.oci import OciImage
from cvmtool.errors import CvmError
from cvmtool.flows.decisions import read_decisions
from cvmtool.flows.jobs import JobState, load_job
from cvmtool.flows.prepare import Prepared, read_job
from cvmtool.owner.amdroots import AmdRoots
from cvmtool.owner.pipeline import Stage
from cvmtool.owner.policy import baseline
from cvmtool.owner.policyfile import encode_policy, parse_policy
from cvmtool.owner.receipts import verify_receipt
from tests.processes import naming
from tests.scenario.conftest import ROOT, Settings

VERIFIER = ROOT / "tests/independent/verify_receipt.py"
pytestmark = [pytest.mark.vm, pytest.mark.image]


@dataclass(frozen=True)
class Run:
    """What a whole command line run printed and left."""

    code: int
    lines: list[dict]
    folder: Path

    @property
    def summary(self) -> dict:
        return self.lines[-1]


@pytest.fixture(scope="module")
def run(example: Path, prepared: Prepared, environment: dict[str, str], place: Path) -> Run:
    folder, rules = place / "results", place / "rules.yaml"
    written = subprocess.run(
        [sys.executable, "-m", "cvmtool", "rules", "init", str(example)],
        env=environment,
        capture_output=True,
        check=True,
    )
    rules.write_bytes(written.stdout)
    done = subprocess.run(
        [sys.executable, "-m", "cvmtool", "train", str(example), "--dry-run", "--results", str(folder), "--json"],
        env={**environment, "CVMTOOL_RULES": str(rules)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return Run(code=done.returncode, lines=[json.loads(line) for line in done.stdout.splitlines()], folder=folder)


def test_dry_run_trains_the_example(run: Run, settings: Settings) -> None:
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert metrics["accuracy_before"] < 0.6
    assert metrics["accuracy_after"] >= 0.90
    assert {item["name"] for item in run.summary["outputs"]} == {"model.safetensors", "metrics.json"}
    for item in run.summary["outputs"]:
        assert hashlib.sha256(Path(item["path"]).read_bytes()).hexdigest() == item["sha256"]
    record = load_job(settings.jobs_dir, run.summary["job"]).record
    assert (record.state, record.exit_code, record.simulated) == (JobState.DONE, 0, True)
    assert list(record.stages) == ["start", "boot", "attest", "unlock", "train", "results"]


def test_every_line_says_simulated_or_belongs_to_a_run_that_does(run: Run) -> None:
    assert run.summary["simulated"] is True
    verdict = next(line for line in run.lines if line.get("event") == "verdict")
    assert verdict["simulated"] is True
    assert all(check["passed"] for check in verdict["checks"])
    assert json.loads((run.folder / "receipt.json").read_text())["payloadType"] == "application/vnd.in-toto+json"


def test_nothing_is_left_of_the_machine(run: Run, settings: Settings) -> None:
    assert not (settings.machines_dir / run.summary["job"]).exists()
    assert naming(run.summary["job"]) == []


def test_native_run_gives_the_same_weights(run: Run, example: Path, place: Path) -> None:
    """The same container on the same inputs, outside any machine: bit for bit the same model."""
    if os.geteuid() != 0:
        pytest.skip("chroot needs root")
    job = read_job(example)
    image = OciImage(job.container_image, job.container_digest, base=example.parent)
    root = place / "native"
    root.mkdir()
    with subprocess.Popen(["tar", "-x", "-C", str(root)], stdin=subprocess.PIPE) as tar:
        assert tar.stdin is not None
        for piece in image.rootfs():
            tar.stdin.write(piece)
    assert tar.returncode == 0
    for name, source in job.inputs.items():
        shutil.copytree(example.parent / source, root / "inputs" / name)
    command = ["/usr/bin/python3", *job.command[1:]]
    environment = {**image.config.env, **job.env}
    subprocess.run([shutil.which("chroot") or "/usr/sbin/chroot", str(root), *command], env=environment, check=True)
    native = (root / "outputs" / "model.safetensors").read_bytes()
    assert native == (run.folder / "model.safetensors").read_bytes()


def test_the_rules_that_were_written_for_the_job_allow_it_at_every_stage(run: Run, settings: Settings) -> None:
    """The same in a dry run as on hardware, and every decision is kept."""
    decisions = read_decisions(load_job(settings.jobs_dir, run.summary["job"]))
    assert {item["stage"] for item in decisions} == set(Stage)
    assert all(item["allowed"] for item in decisions)
    images = next(item for item in decisions if item["rule"] == "images")
    assert "any" not in str(images["reason"])


@pytest.fixture
def independently(run: Run, settings: Settings) -> Callable[[bytes], subprocess.CompletedProcess[str]]:
    """Judge bytes with the verifier that shares no line with cvmtool, in a process of its own, by what the owner knows."""
    job = load_job(settings.jobs_dir, run.summary["job"]).path
    policy = parse_policy((job / "policy.toml").read_text())
    assert policy.simulated_root is not None

    def judge(receipt: bytes) -> subprocess.CompletedProcess[str]:
        (job / "judged.json").write_bytes(receipt)
        command = [sys.executable, "-I", str(VERIFIER), str(job / "judged.json"), "--root", policy.simulated_root.hex()]
        command += ["--measurement", next(iter(policy.measurements)).hex(), "--manifest", str(job / "manifest.json")]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    return judge


def test_an_independent_verifier_accepts_the_receipt(
    run: Run, independently: Callable[[bytes], subprocess.CompletedProcess[str]]
) -> None:
    done = independently((run.folder / "receipt.json").read_bytes())
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    delivered = {item["name"]: item["sha256"] for item in run.summary["outputs"]}
    assert {item["name"]: item["digest"]["sha256"] for item in document["subject"]} == delivered
    assert "simulated" in document["builder"]


def _flip(text: str) -> str:
    data = bytearray(base64.b64decode(text))
    data[len(data) // 2] ^= 1
    return base64.b64encode(data).decode()


def _in_payload(change: Callable[[dict], object]) -> Callable[[dict], object]:
    def tamper(envelope: dict) -> None:
        statement = json.loads(base64.b64decode(envelope["payload"]))
        change(statement)
        envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()

    return tamper


def _attestation(statement: dict) -> dict:
    return dict(statement)["predicate"]["attestation"]


FORGERIES: dict[str, Callable[[dict], object]] = {
    "signature": lambda envelope: envelope["signatures"][0].update(sig=_flip(envelope["signatures"][0]["sig"])),
    "signer": lambda envelope: envelope["signatures"][0].update(keyid="00" * 32),
    "output": _in_payload(lambda statement: statement["subject"][0]["digest"].update(sha256="00" * 32)),
    "exit code": _in_payload(lambda statement: statement["predicate"]["result"].update(exitCode=1)),
    "nonce": _in_payload(lambda statement: _attestation(statement).update(nonce="00" * 32)),
    "owner": _in_payload(lambda statement: _attestation(statement).update(ownerKey="00" * 32)),
    "real": _in_payload(lambda statement: _attestation(statement).update(simulated=False)),
    "evidence": _in_payload(
        lambda statement: _attestation(statement).update(evidence=_flip(_attestation(statement)["evidence"]))
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_an_independent_verifier_refuses_a_forgery(
    name: str, run: Run, independently: Callable[[bytes], subprocess.CompletedProcess[str]]
) -> None:
    envelope = json.loads((run.folder / "receipt.json").read_text())
    FORGERIES[name](envelope)
    done = independently(json.dumps(envelope).encode())
    assert (done.returncode, done.stdout) == (1, "")
    assert "refused" in done.stderr


def test_receipt_verifies_offline(run: Run, settings: Settings, environment: dict[str, str]) -> None:
    policy = load_job(settings.jobs_dir, run.summary["job"]).path / "policy.toml"
    command = [sys.executable, "-m", "cvmtool", "receipt", "verify", str(run.folder / "receipt.json")]
    command += ["--policy", str(policy), "--files", str(run.folder), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["verified"] is True
    assert document["by_simulated_root"] is True
    assert document["exit_code"] == 0


def test_receipt_of_other_outputs_is_refused(
    run: Run, settings: Settings, environment: dict[str, str], tmp_path: Path
) -> None:
    policy = load_job(settings.jobs_dir, run.summary["job"]).path / "policy.toml"
    shutil.copytree(run.folder, tmp_path / "out")
    with (tmp_path / "out" / "metrics.json").open("a") as file:
        file.write(" ")
    command = [sys.executable, "-m", "cvmtool", "receipt", "verify", str(run.folder / "receipt.json")]
    command += ["--policy", str(policy), "--files", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 5


def test_receipt_never_passes_a_production_policy(run: Run, settings: Settings) -> None:
    simulated = parse_policy((load_job(settings.jobs_dir, run.summary["job"]).path / "policy.toml").read_text())
    real = baseline(roots=AmdRoots(), measurements=simulated.measurements, host_data=simulated.host_data)
    real = parse_policy(encode_policy(real))
    with pytest.raises(CvmError) as refused:
        verify_receipt((run.folder / "receipt.json").read_bytes(), real, datetime.now(UTC))
    assert refused.value.exit_code == 5


def test_logs_show_what_the_container_printed(run: Run, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "cvmtool", "jobs", "logs", run.summary["job"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("digits: starting\n")
    assert "digits: accuracy after" in done.stdout
