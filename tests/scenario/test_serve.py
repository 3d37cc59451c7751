# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A model is served from a real guest: to its owner, to a client, to nobody else, until it is stopped; and the receipt says so."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from cvmtool.config import Settings
from cvmtool.errors import HostError
from cvmtool.flows import visit as visiting
from cvmtool.flows.jobrecord import JobState
from cvmtool.flows.jobs import POLICY_FILE, load_job
from cvmtool.flows.prepare import load_keys
from cvmtool.flows.visit import Visit, visit
from cvmtool.formats.channel import CLIENT_PORTS
from cvmtool.formats.control import CONTROL_ADDRESS, ControlError, Op
from cvmtool.formats.receipt import Accesses
from cvmtool.host.channel import GuestError
from cvmtool.host.embedded import embedded_root, port_socket
from cvmtool.host.tunnel import open_tunnel
from cvmtool.image.bundle import Bundle
from cvmtool.owner.invitation import parse_invitation
from cvmtool.owner.policyfile import parse_policy
from cvmtool.owner.receipts import verify_receipt
from cvmtool.owner.sshkey import render_ssh_key
from tests.scenario.conftest import ROOT
from tests.scenario.test_detach import cvmtool, until  # noqa: F401 - a fixture
from tests.scenario.test_kill import qemus

pytestmark = [pytest.mark.vm, pytest.mark.image]

PORT = 8000
IMAGES = 3


@pytest.fixture
def client(settings: Settings, place: Path) -> Settings:
    """Another account."""
    return replace(settings, state_dir=place / "client")


@pytest.fixture
def job(example: Path, bundle: Bundle, place: Path, client: Settings) -> Path:
    """The example's job file, which lets that account in."""
    folder = place / "serve-digits"
    shutil.copytree(ROOT / "examples" / "serve-digits", folder, ignore=shutil.ignore_patterns("__pycache__"))
    container = next(line for line in example.read_text().splitlines() if line.startswith("  digest: "))
    lines = (
        (container if line.startswith("  digest: ") else line)
        for line in (folder / "job.yaml").read_text().splitlines()
    )
    key = render_ssh_key(load_keys(client).public)
    (folder / "job.yaml").write_text("\n".join([*lines, f"access: {{clients: ['{key}']}}", ""]))
    return folder / "job.yaml"


def network(example: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("network", example.parent / "network.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def predict(url: str, images: np.ndarray) -> list[int]:
    body = json.dumps({"images": images.tolist()}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/predict", data=body), timeout=60) as answer:
        return [item["digit"] for item in json.load(answer)["predictions"]]


def started(*words: str, environment: dict[str, str]) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """Start `cvmtool jobs tunnel`; return it and what it said when it listened."""
    command = [sys.executable, "-P", "-m", "cvmtool", "jobs", "tunnel", *words, "--json"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        said = json.loads(line)
        if said["schema"] == "cvmtool/jobs-tunnel/v1":
            return process, said
        assert said["schema"] == "cvmtool/event/v1", said
    raise AssertionError("it ended without a word")


def url_of(said: dict[str, Any]) -> str:
    return f"http://{said['address']}:{said['port']}"


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(GuestError) as refused:
        act()
    return str(refused.value.error)


def test_a_model_is_served_to_its_owner_and_a_client_and_to_nobody_else(
    job: Path,
    example: Path,
    cvmtool: Callable,  # noqa: F811 - the fixture
    environment: dict[str, str],
    settings: Settings,
    client: Settings,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, said = cvmtool("train", str(job), "--dry-run", "-d", "--results", str(place / "served"))
    assert code == 0, said[-1]
    run = load_job(settings.jobs_dir, said[-1]["job"])
    answers = f"port {PORT} answers: cvmtool jobs tunnel {run.record.id} {PORT}"
    until(lambda: answers in str(run.database.events(run.record.id)), run)

    owners, told = started(run.record.id, environment=environment)
    test = load_file(example.parent / "inputs/data/test.safetensors")
    images = test["images"][:IMAGES]
    native = network(example)
    weights = native.load_weights(example.parent / "inputs/model/pretrained.safetensors")
    expected = native.logits(weights, images)[0].argmax(axis=1).tolist()
    assert predict(url_of(told), images) == expected
    with pytest.raises(urllib.error.HTTPError):
        predict(url_of(told), images[:, 1:])

    shared = place / "shared.json"
    assert cvmtool("jobs", "share", run.record.id, "--out", str(shared))[0] == 0
    invitation = parse_invitation(shared.read_bytes())
    root = embedded_root(invitation.uri)
    if root is not None:
        # The host has the ports: whatever it sends there is no session, and none of anybody's.
        with socket.socket(socket.AF_UNIX) as port:
            port.connect(str(port_socket(root, invitation.machine, CLIENT_PORTS[-1])))
            port.sendall(b"SSH-2.0-host\r\n" + bytes(range(256)) * 64)

    clients, told = started(
        "--shared", str(shared), environment={**environment, "CVMTOOL_STATE_DIR": str(client.state_dir)}
    )
    assert predict(url_of(told), images) == expected

    def come(as_whom: Settings) -> Any:
        kept_in = place / "visits"
        return visit(invitation, load_keys(as_whom), as_whom, kept_in=kept_in, stage=lambda *_: nullcontext())

    visited: Visit
    with come(settings) as visited:
        assert refusal(lambda: open_tunnel(visited.channel, PORT + 1)) == ControlError.ACCESS
        assert refusal(lambda: visited.channel.request(Op.EXEC, args=["id"])) == ControlError.ACCESS
    with come(client) as visited:
        assert refusal(lambda: open_tunnel(visited.channel, PORT + 1)) == ControlError.ACCESS
        assert refusal(lambda: visited.channel.request(Op.STOP, grace_seconds=0)) == ControlError.REQUEST
    monkeypatch.setattr(visiting, "CLIENT_ADDRESS", CONTROL_ADDRESS)
    with come(client) as visited, pytest.raises(HostError):
        visited.channel.request(Op.STATUS)  # sshd forwards a client's key to the clients' service alone

    code, said = cvmtool("jobs", "cancel", run.record.id)
    assert (code, said[-1]["state"]) == (0, "done")
    assert owners.wait(timeout=60) == 0
    assert clients.wait(timeout=60) in {0, 8}  # a client may not have heard of the end before the guest was gone
    run.reread()
    assert (run.record.state, run.record.exit_code, run.record.error) == (JobState.DONE, 0, None)
    assert qemus(run.record.machine) == []
    policy = parse_policy((run.path / POLICY_FILE).read_text())
    receipt = verify_receipt((place / "served/receipt.json").read_bytes(), policy, datetime.now(UTC))
    assert receipt.statement.accesses == Accesses(tunnels=3)
    assert receipt.statement.outputs == ()
