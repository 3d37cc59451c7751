# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The doctor's view over SSH shows what the local one shows, from a real sshd on the loopback; nothing is left there."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cvmtool.cli.app import app
from cvmtool.host.address import SshAddress
from cvmtool.host.doctor.distant import DistantView
from cvmtool.host.doctor.local import LocalView
from cvmtool.host.doctor.probe import account, probe
from cvmtool.host.doctor.source import MAX_TEXT_BYTES, Command, FileKind
from cvmtool.host.remote import RemoteFiles, SshAccess
from tests.fakes.remote_host import lacking, remote_host


@pytest.fixture(scope="module")
def server():
    if reason := lacking(libvirt=False):
        pytest.skip(reason)
    with remote_host(libvirt=False) as host:
        yield host


@pytest.fixture
def view(server):
    address = SshAddress(user=server.user, host="127.0.0.1", port=server.port)
    files = RemoteFiles(SshAccess(address=address, known_hosts=server.known_hosts, identity=server.identity))
    yield DistantView(files.connection)
    files.close()


def test_what_is_read_is_what_is_read_here(view, tmp_path):
    local, distant = (probe(eyes, store=str(tmp_path)) for eyes in (LocalView(), view))
    for name in (
        "cpu",
        "release",
        "cmdline",
        "log",
        "syscfg",
        "modules",
        "kvm_amd",
        "asids",
        "dev_sev",
        "dev_kvm",
        "qemu",
        "gpus",
    ):
        assert getattr(distant, name) == getattr(local, name)
    for name in ("memory", "disk", "skew"):
        assert getattr(distant, name).value is not None
    assert abs(distant.skew.value) < 5


def test_who_we_are_there(view):
    assert account(view) == (os.getuid(), frozenset({os.getgid(), *os.getgroups()}))


def test_a_read_is_bounded_and_starts_where_it_is_told(view, tmp_path):
    (tmp_path / "f").write_bytes(b"0123456789")
    assert view.read(str(tmp_path / "f"), limit=4) == b"0123"
    assert view.read(str(tmp_path / "f"), limit=99, offset=8) == b"89"
    assert len(view.read("/dev/zero", limit=100_000)) == 100_000
    assert view.stat(str(tmp_path / "f")).kind is FileKind.FILE
    assert view.list(str(tmp_path)) == ["f"]


@pytest.mark.parametrize(
    "look", [lambda v: v.read("/no/such", limit=1), lambda v: v.stat("/no/such"), lambda v: v.list("/no/such")]
)
def test_what_is_missing_is_missing(view, look):
    with pytest.raises(FileNotFoundError):
        look(view)


def test_a_command_gets_its_input_its_words_and_a_bound(view):
    assert view.run(Command(argv=("cat",), stdin=b"hello")) == b"hello"
    assert view.run(Command(argv=("printf", "%s", "a b; $(id) '"))) == b"a b; $(id) '"
    assert len(view.run(Command(argv=("head", "-c", str(MAX_TEXT_BYTES + 9), "/dev/zero")))) == MAX_TEXT_BYTES


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (Command(argv=("no-such-program-anywhere",)), FileNotFoundError),
        (Command(argv=("false",)), OSError),
        (Command(argv=("sleep", "60"), seconds=0.5), TimeoutError),
        (Command(argv=("sh", "-c", "exec >&-; sleep 60"), seconds=0.5), TimeoutError),
        (Command(argv=("sh", "-c", "while :; do echo x; sleep 0.1; done"), seconds=0.5), TimeoutError),
    ],
    ids=["absent", "fails", "silent", "closed", "drips"],
)
def test_a_command_that_gives_no_answer(view, command, error):
    with pytest.raises(error):
        view.run(command)


def test_a_connection_that_is_cut_is_an_error_of_the_system(server, view):
    server.cut()
    for look in (lambda: view.read("/proc/cmdline", limit=9), lambda: view.run(Command(argv=("true",)))):
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on what notices first
            look()


@pytest.mark.vm
def test_doctor_over_ssh(monkeypatch, tmp_path):
    if reason := lacking(libvirt=True):
        pytest.skip(reason)
    with remote_host(libvirt=True) as host:
        table = f'[hosts.there]\nuri = "{host.uri}"\nidentity = "{host.identity}"\nknown_hosts = "{host.known_hosts}"\n'
        (tmp_path / "cvmtool.toml").write_text(table)
        monkeypatch.chdir(tmp_path)
        ran = CliRunner().invoke(app, ["doctor", "--host", "there", "--dry-run", "--json"])
        left = [path for path in Path(host.folder).rglob("*") if "trial" in path.name]
    document = json.loads(ran.stdout)
    lines = {line["code"]: line["verdict"] for line in document["lines"]}
    assert document["host"] == host.uri
    assert (lines["libvirt"], lines["qemu"], lines["memory"], lines["tcg-trial"]) == ("ok", "ok", "ok", "unknown")
    assert left == []
    assert ran.exit_code == (0 if document["best"] else 8)
