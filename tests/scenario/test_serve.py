# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A model is served from a real guest: to its owner, to a client, to nobody else, until it is stopped; and the receipt says so."""

from __future__ import annotations

import http.client
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from cvmtool.cli.render import JsonReporter
from cvmtool.config import Settings
from cvmtool.errors import HostError
from cvmtool.flows import visit as visiting
from cvmtool.flows.jobrecord import JobState
from cvmtool.flows.jobs import POLICY_FILE, load_job, load_jobs
from cvmtool.flows.platform import dry_run
from cvmtool.flows.prepare import load_keys, prepare
from cvmtool.flows.train import train
from cvmtool.flows.visit import Visit, invite, visit
from cvmtool.formats.channel import CLIENT_PORTS
from cvmtool.formats.control import CONTROL_ADDRESS, ControlError, Op
from cvmtool.formats.receipt import Accesses
from cvmtool.host.channel import AgentChannel, GuestError
from cvmtool.host.embedded import embedded_root, port_socket
from cvmtool.host.tunnel import carry, open_tunnel
from cvmtool.image.bundle import Bundle
from cvmtool.owner.invitation import parse_invitation
from cvmtool.owner.policyfile import parse_policy
from cvmtool.owner.receipts import verify_receipt
from cvmtool.owner.sshkey import render_ssh_key
from tests.processes import qemus
from tests.scenario.conftest import ROOT
from tests.scenario.test_detach import cvmtool, until  # noqa: F401 - a fixture

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
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "examples" / "serve-digits", folder, ignore=ignored, dirs_exist_ok=True)
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


def predict(connection: http.client.HTTPConnection, images: np.ndarray) -> tuple[int, list[int]]:
    """Ask; return the status and the digits."""
    connection.request("POST", "/v1/predict", json.dumps({"images": images.tolist()}))
    answer = connection.getresponse()
    said = json.load(answer)
    connection.close()
    return answer.status, [item["digit"] for item in said.get("predictions", [])]


def through(channel: AgentChannel) -> http.client.HTTPConnection:
    """An HTTP connection whose other end is in the container."""
    near, far = socket.socketpair()
    threading.Thread(target=carry, args=(far, open_tunnel(channel, PORT)), daemon=True).start()
    connection = http.client.HTTPConnection("127.0.0.1", PORT)
    connection.sock = near
    return connection


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


class Ready(JsonReporter):
    """Hears when the port answers."""

    def __init__(self) -> None:
        self.ready = threading.Event()

    def notice(self, text: str) -> None:
        if text.startswith(f"port {PORT} answers"):
            self.ready.set()


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
    stack: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, said = cvmtool("train", str(job), "--dry-run", "-d", "--results", str(place / "served"))
    assert code == 0, said[-1]
    run = load_job(settings.jobs_dir, said[-1]["job"])
    answers = f"port {PORT} answers: cvmtool jobs tunnel {run.record.id} {PORT}"
    until(lambda: answers in str(run.database.events(run.record.id)), run)

    tunnel, told = started(run.record.id, environment=environment)
    stack.callback(tunnel.kill)
    test = load_file(example.parent / "inputs/data/test.safetensors")
    images = test["images"][:IMAGES]
    native = network(example)
    weights = native.load_weights(example.parent / "inputs/model/pretrained.safetensors")
    expected = native.logits(weights, images)[0].argmax(axis=1).tolist()
    here = http.client.HTTPConnection(told["address"], told["port"], timeout=60)
    assert predict(here, images) == (200, expected)
    assert predict(here, images[:, 1:]) == (400, [])

    invitation = parse_invitation(invite(run, settings).encode())
    root = embedded_root(invitation.uri)
    if root is not None:
        # The host has the ports: whatever it sends there is no session, and none of anybody's.
        with socket.socket(socket.AF_UNIX) as port:
            port.connect(str(port_socket(root, invitation.machine, CLIENT_PORTS[-1])))
            port.sendall(b"SSH-2.0-host\r\n" + bytes(range(256)) * 64)

    def come(as_whom: Settings) -> Any:
        kept_in = place / "visits"
        return visit(invitation, load_keys(as_whom), as_whom, kept_in=kept_in, stage=lambda *_: nullcontext())

    visited: Visit
    with come(settings) as visited:
        assert refusal(lambda: open_tunnel(visited.channel, PORT + 1)) == ControlError.ACCESS
        assert refusal(lambda: visited.channel.request(Op.EXEC, args=["id"])) == ControlError.ACCESS
    with come(client) as visited:
        assert predict(through(visited.channel), images) == (200, expected)
        assert refusal(lambda: open_tunnel(visited.channel, PORT + 1)) == ControlError.ACCESS
        assert refusal(lambda: visited.channel.request(Op.STOP, grace_seconds=0)) == ControlError.REQUEST
    monkeypatch.setattr(visiting, "CLIENT_ADDRESS", CONTROL_ADDRESS)
    with come(client) as visited, pytest.raises(HostError):
        visited.channel.request(Op.STATUS)  # sshd forwards a client's key to the clients' service alone

    code, said = cvmtool("jobs", "cancel", run.record.id)
    assert (code, said[-1]["state"]) == (0, "done")
    assert tunnel.wait(timeout=60) == 0
    run.reread()
    assert (run.record.state, run.record.exit_code, run.record.error) == (JobState.DONE, 0, None)
    assert qemus(run.record.machine) == []
    policy = parse_policy((run.path / POLICY_FILE).read_text())
    receipt = verify_receipt((place / "served/receipt.json").read_bytes(), policy, datetime.now(UTC))
    assert receipt.statement.accesses == Accesses(tunnels=3)
    assert receipt.statement.outputs == ()


@pytest.mark.soak
def test_a_model_is_served_from_another_host(
    job: Path, example: Path, bundle: Bundle, remote: Settings, client: Settings, place: Path
) -> None:
    reporter, there = Ready(), replace(client, host=remote.host, hosts=remote.hosts)
    prepared = prepare(job, bundle, settings=remote, reporter=reporter)
    given = {"platform": dry_run(remote), "settings": remote, "reporter": reporter, "results": place / "from-there"}
    running = threading.Thread(target=train, args=(prepared,), kwargs=given, daemon=True)
    running.start()
    assert reporter.ready.wait(300)
    (run,) = (item for item in load_jobs(remote.jobs_dir) if item.record.name == "serve-digits")
    invitation = parse_invitation(invite(run, remote).encode())

    def come(as_whom: Settings) -> Any:
        return visit(invitation, load_keys(as_whom), as_whom, kept_in=place, stage=lambda *_: nullcontext())

    images = load_file(example.parent / "inputs/data/test.safetensors")["images"][:IMAGES]
    with come(there) as theirs, come(there) as another, come(remote) as owners:
        for visited in (theirs, another, owners):  # each has a port, and none was thrown out for another
            status, digits = predict(through(visited.channel), images)
            assert (status, len(digits)) == (200, IMAGES)
        with come(there), pytest.raises(HostError, match="none of the 4 ports"), come(there):
            pass
        owners.channel.request(Op.STOP, grace_seconds=5)
        running.join(120)
    assert not running.is_alive()
    run.reread()
    assert (run.record.state, run.record.error) == (JobState.DONE, None)
