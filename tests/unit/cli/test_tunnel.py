# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.error

import pytest
import typer

from cvmtool.cli.app import app
from cvmtool.config import load_settings
from cvmtool.errors import AppraisalError, ConfigError, FormatError
from cvmtool.flows import tunnel
from cvmtool.flows.cases import read_case
from cvmtool.flows.prepare import load_keys
from cvmtool.formats.control import Stage
from cvmtool.formats.jobterms import Access
from cvmtool.owner.policyfile import encode_policy
from tests.fakes.running import PORT, post, running_job

BAD_PARAMETER = 2  # Click's


@pytest.fixture
def client(tmp_path, monkeypatch):
    """A function that makes what follows another account's; returns that account's key."""

    def become(folder=tmp_path / "client"):
        monkeypatch.setenv("CVMTOOL_STATE_DIR", str(folder))
        return load_keys(load_settings()).public

    return become


@pytest.fixture
def make(monkeypatch):
    """A function that starts a job of this account."""
    monkeypatch.setattr(tunnel, "_LOOK_SECONDS", 0.05)
    opened = []

    def make(**access):
        opened.append(running_job(load_settings(), monkeypatch, access=Access(**access)))
        return opened[-1].__enter__()

    yield make
    for each in opened:
        each.__exit__(None, None, None)


@pytest.fixture
def jobs(capfd):
    """A function that runs `cvmtool jobs ...`; returns its exit code and what it wrote."""

    def run(*arguments):
        code = app(["jobs", *map(str, arguments)], standalone_mode=False) or 0
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def typed(monkeypatch):
    """A function that gives this process a standard input."""
    files = []

    def give(data):
        stdin, to = os.pipe()
        os.write(to, data)
        os.close(to)
        files.append(open(stdin, "rb"))  # noqa: PTH123, SIM115 - a descriptor, closed below
        monkeypatch.setattr(sys, "stdin", files[0])

    yield give
    for file in files:
        file.close()


class User:
    """Asks at a port of this machine as soon as somebody listens there; the job ends afterwards."""

    def __init__(self, running, ends=lambda running: setattr(running.life, "stage", Stage.DONE)):
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        self.heard = None
        self._running, self._ends = running, ends
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self):
        end = time.monotonic() + 30
        while self.heard is None and time.monotonic() < end:
            try:
                self.heard = post(f"http://127.0.0.1:{self.port}", b"hello")
            except urllib.error.URLError:
                time.sleep(0.02)
        self._ends(self._running)

    def end(self):
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.heard


def test_a_tunnel_says_where_it_is_and_ends_with_the_job(make, jobs):
    running = make(tunnels=(PORT,))
    user = User(running)
    code, out, err = jobs("tunnel", "serving", "--listen", f"127.0.0.1:{user.port}")
    assert (code, user.end()) == (0, b"hello")
    assert out == f"http://127.0.0.1:{user.port}\n"
    assert "SIMULATED" in err
    assert f"connections there reach port {PORT} of {running.job.record.machine}, until Ctrl-C" in err
    assert err.rstrip().endswith("has ended")


def test_a_tunnel_as_json(make, jobs):
    running = make(tunnels=(PORT,))
    user = User(running)
    code, out, err = jobs("tunnel", "serving", PORT, "--listen", f"127.0.0.1:{user.port}", "--json")
    assert (code, user.end(), err) == (0, b"hello", "")
    (said,) = [line for line in map(json.loads, out.splitlines()) if line["schema"] == "cvmtool/jobs-tunnel/v1"]
    case = said.pop("case")
    assert said == {
        "schema": "cvmtool/jobs-tunnel/v1",
        "machine": running.job.record.machine,
        "simulated": True,
        "address": "127.0.0.1",
        "port": user.port,
        "inside": PORT,
        "owner": running.guest.manifest.owner_key,
    }
    assert case.startswith(str(running.job.path / "visits"))


def test_what_it_kept_is_replayed_by_the_command_that_it_names(make, jobs, capfd):
    running = make(tunnels=(PORT,))
    user = User(running)
    _, _, err = jobs("tunnel", "serving", "--listen", f"127.0.0.1:{user.port}")
    user.end()
    (words,) = [line.partition("cvmtool ")[2].split() for line in err.splitlines() if "attest replay" in line]
    assert (app(words, standalone_mode=False) or 0) == 0
    assert read_case(next((running.job.path / "visits").iterdir())).accepted


def test_ctrl_c_closes_the_tunnel_and_not_the_job(make, jobs):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    running = make(tunnels=(PORT,))
    user = User(running, ends=lambda _: os.kill(os.getpid(), signal.SIGINT))
    try:
        code, _, err = jobs("tunnel", "serving", "--listen", f"127.0.0.1:{user.port}")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, user.end()) == (0, b"hello")
    assert "closed; the job goes on" in err
    assert running.life.stopped == []


def test_another_account_comes_by_what_the_owner_shares(make, jobs, client, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("CVMTOOL_STATE_DIR", str(tmp_path / "client"))
        key = load_keys(load_settings()).public
    running = make(tunnels=(PORT,), clients=(key.hex(),))
    file = tmp_path / "shared.json"
    code, out, _ = jobs("share", "serving", "--out", file, "--json")
    assert (code, json.loads(out)) == (
        0,
        {"schema": "cvmtool/jobs-share/v1", "file": str(file), "tunnels": [PORT], "clients": [key.hex()]},
    )
    assert client() == key
    user = User(running)
    code, out, err = jobs("tunnel", "--shared", file, "--dry-run", "--listen", f"127.0.0.1:{user.port}")
    assert (code, user.end(), out) == (0, b"hello", f"http://127.0.0.1:{user.port}\n")
    owner = hashlib.sha256(bytes.fromhex(running.guest.manifest.owner_key)).hexdigest()
    assert f"of the owner with the fingerprint sha256:{owner}" in err
    assert [case.accepted for case in map(read_case, (tmp_path / "client/visits").iterdir())] == [True]


def test_what_is_shared_has_no_secret_and_lets_nobody_in(make, jobs, client, tmp_path):
    make(tunnels=(PORT,))
    seed = load_settings().keystore.read_bytes().split()[1]
    file = tmp_path / "shared.json"
    code, out, err = jobs("share", "serving", "--out", file)
    assert (code, out) == (0, "")
    assert err == f"clients who are let in: 0; each runs: cvmtool jobs tunnel --shared {file} --dry-run\n"
    assert seed not in file.read_bytes()
    client()
    with pytest.raises(ConfigError, match="not among those"):
        jobs("tunnel", "--shared", file, "--dry-run")


def test_a_pretended_service_is_not_taken_for_a_real_one(make, jobs, client, tmp_path):
    running = make(tunnels=(PORT,))
    file = tmp_path / "shared.json"
    jobs("share", "serving", "--out", file)
    client()
    with pytest.raises(ConfigError, match="accepts simulated evidence"):
        jobs("tunnel", "--shared", file)
    assert running.sessions == 0


def test_a_client_may_judge_by_a_policy_of_its_own(make, jobs, client, tmp_path):
    key = client()
    theirs = load_settings().state_dir
    client(tmp_path / "owner")
    running = make(tunnels=(PORT,), clients=(key.hex(),))
    file, policy = tmp_path / "shared.json", tmp_path / "policy.toml"
    jobs("share", "serving", "--out", file)
    policy.write_text(encode_policy(running.guest.policy(measurements=frozenset({b"M" * 48}))))
    client(theirs)
    with pytest.raises(AppraisalError):
        jobs("tunnel", "--shared", file, "--policy", policy, "--dry-run")
    assert running.logins == 0


def test_what_is_no_shared_file(jobs, tmp_path):
    file = tmp_path / "shared.json"
    file.write_text("{}")
    with pytest.raises(FormatError, match="invitation"):
        jobs("tunnel", "--shared", file)


def test_a_port_must_be_one_that_the_job_names(make, jobs):
    make(tunnels=(PORT, PORT + 1))
    for arguments in ((), (PORT + 2,)):
        with pytest.raises(ConfigError, match=f"{PORT}, {PORT + 1}"):
            jobs("tunnel", "serving", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("serving", "--shared", "FILE"),
        ("serving", "--host", "lab"),
        ("serving", "--policy", "FILE"),
        ("serving", "--dry-run"),
        ("serving", "--listen", "8000"),
        ("serving", "--listen", "127.0.0.1:65536"),
    ],
    ids=" ".join,
)
def test_wrong_usage(make, jobs, arguments):
    make(tunnels=(PORT,))
    with pytest.raises(typer.BadParameter) as refused:
        jobs("tunnel", *arguments)
    assert refused.value.exit_code == BAD_PARAMETER


def test_a_command_has_our_input_and_we_its_output_and_exit_code(make, jobs, typed):
    make(exec=True)
    typed(b"what is typed\n")
    assert jobs("exec", "serving", "ls", "-l") == (2, "WHAT IS TYPED\n", "ls -l")


def test_a_command_may_be_set_off(make, jobs, typed):
    make(exec=True)
    typed(b"")
    assert jobs("exec", "serving", "--", "id") == (1, "", "id")


def test_a_command_as_json(make, jobs, typed):
    running = make(exec=True)
    typed(b"in")
    code, out, err = jobs("exec", "--json", "serving", "ls", "--json")
    *said, ended = map(json.loads, out.splitlines())
    assert (code, err) == (2, "")
    assert [(line["stream"], line["text"]) for line in said] == [("stdout", "IN"), ("stderr", "ls --json")]
    assert (ended["schema"], ended["exit_code"], ended["machine"]) == (
        "cvmtool/jobs-exec/v1",
        2,
        running.job.record.machine,
    )


def test_a_job_that_allows_no_command_is_not_even_asked(make, jobs):
    running = make(tunnels=(PORT,))
    with pytest.raises(ConfigError, match="allows no exec"):
        jobs("exec", "serving", "id")
    assert running.sessions == 0


@pytest.mark.parametrize("command", ["tunnel", "exec", "share"])
def test_a_job_that_lets_nobody_in(make, jobs, command, tmp_path):
    make()
    arguments = {"tunnel": (), "exec": ("id",), "share": ("--out", tmp_path / "file")}[command]
    with pytest.raises(ConfigError, match="lets nobody in"):
        jobs(command, "serving", *arguments)
