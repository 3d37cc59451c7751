# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import tomllib

import pytest
from typer.testing import CliRunner

from cvmtool.cli.app import app
from cvmtool.config import HostSettings, load_settings
from cvmtool.errors import ConfigError, HostError
from cvmtool.flows import named
from cvmtool.flows.hosts import Host
from cvmtool.flows.named import HostKey
from cvmtool.flows.records import MachineRecord, save_record
from cvmtool.host.files import LocalFiles
from cvmtool.host.store import Store

URI = "qemu+ssh://root@h.example/system"
KEY = HostKey(known_as="h.example", kind="ssh-ed25519", fingerprint="SHA256:right", line="h.example ssh-ed25519 AAAA\n")


class Hypervisor:
    """Answers what `host add` asks."""

    def capabilities(self):
        return type("Capabilities", (), {"emulator": "/usr/bin/qemu"})

    def close(self):
        pass


@pytest.fixture
def reach(monkeypatch, tmp_path):
    """Stand in for the network: a host that shows KEY, and whose files are a directory of this machine."""
    state = {"answers": True, "opened": []}
    (tmp_path / "locks").mkdir()
    machines = tmp_path / "machines"

    def open_host(settings):
        state["opened"].append(settings.target())
        if not state["answers"]:
            raise HostError("libvirt does not answer")
        files = LocalFiles()
        return Host(
            name=settings.host, uri=settings.target().uri, hypervisor=Hypervisor(), files=files, machines=str(machines),
            store=Store(files, str(machines), uploader="0" * 12, locks=tmp_path / "locks"), local=False,
        )  # fmt: skip

    monkeypatch.setattr(named, "open_host", open_host)
    monkeypatch.setattr(named, "offered_key", lambda _target, _settings: KEY)
    return state


def run(*arguments):
    return CliRunner().invoke(app, ["host", *arguments])


def add(*options):
    return run("add", "lab", URI, *options)


def test_a_host_is_added_with_the_key_that_it_must_show(reach, tmp_path):
    identity = tmp_path / "id"
    identity.write_text("key")
    result = add("--host-key", "SHA256:right", "--identity", str(identity), "--json")
    document = json.loads(result.stdout)
    assert (document["fingerprint"], document["emulator"]) == ("SHA256:right", "/usr/bin/qemu")
    settings = load_settings()
    folder = settings.hosts_dir / "lab"
    assert settings.hosts == {
        "lab": HostSettings(name="lab", uri=URI, identity=identity, known_hosts=folder / "known_hosts")
    }
    assert (folder / "known_hosts").read_text() == KEY.line
    assert reach["opened"] == [settings.hosts["lab"]]
    listed = json.loads(run("list", "--json").stdout)
    assert [row["uri"] for row in listed["hosts"]] == [URI]
    assert "lab" in run("list").stdout


def test_another_key_than_the_required_one_adds_nothing(reach):
    result = add("--host-key", "SHA256:other")
    assert isinstance(result.exception, HostError)
    assert "SHA256:right" in result.exception.message
    assert (reach["opened"], load_settings().hosts) == ([], {})


def test_without_a_terminal_nobody_can_confirm_a_key(reach):
    result = add()
    assert isinstance(result.exception, ConfigError)
    assert "--host-key" in result.exception.message
    assert (reach["opened"], load_settings().hosts) == ([], {})


def test_a_host_that_does_not_answer_is_not_kept(reach):
    reach["answers"] = False
    assert isinstance(add("--host-key", "SHA256:right").exception, HostError)
    assert load_settings().hosts == {}
    assert list(load_settings().hosts_dir.iterdir()) == []


def test_a_name_is_given_once(reach):
    add("--host-key", "SHA256:right")
    again = add("--host-key", "SHA256:right")
    assert again.exception.hint == "cvmtool host remove lab"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("../x", ()),
        ("A", ()),
        ("lab", ("--machines", "relative")),
        ("lab", ("--accelerator", "xen")),
        ("lab", ("--identity", "/nonexistent")),
    ],
)
def test_what_cannot_be_a_host_is_refused(reach, name, options):
    result = run("add", name, URI, "--host-key", "SHA256:right", *options)
    assert isinstance(result.exception, ConfigError)
    assert reach["opened"] == []


def test_text_of_any_kind_survives_the_file(reach, tmp_path):
    folder = tmp_path / 'a "quoted" \\ path é'
    folder.mkdir()
    (folder / "id").write_text("")
    add("--host-key", "SHA256:right", "--identity", str(folder / "id"), "--files", "sftp://u@h")
    written = (load_settings().hosts_dir / "lab" / "host.toml").read_text()
    assert tomllib.loads(written)["identity"] == str(folder / "id")
    assert load_settings().hosts["lab"].identity == folder / "id"


def test_a_host_is_removed_unless_a_machine_is_on_it(reach):
    add("--host-key", "SHA256:right")
    settings = load_settings()
    record = MachineRecord(name="m", job="j", host="lab", uri=URI, machines="/m", pid=1)
    save_record(settings.records_dir, record)
    assert "vm destroy m" in run("remove", "lab").exception.hint
    (settings.records_dir / "m.json").unlink()
    assert json.loads(run("remove", "lab", "--json").stdout)["name"] == "lab"
    assert load_settings().hosts == {}
    assert isinstance(run("remove", "lab").exception, ConfigError)


def test_a_host_of_a_file_that_somebody_wrote_is_removed_by_hand(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cvmtool.toml").write_text(f'[hosts.lab]\nuri = "{URI}"\n')
    result = run("remove", "lab")
    assert "by hand" in result.exception.message


def test_garbage_is_listed_and_then_gone(reach, tmp_path):
    add("--host-key", "SHA256:right")
    folder = tmp_path / "machines/.store/sha256"
    folder.mkdir(parents=True)
    name = hashlib.sha256(b"x").hexdigest()
    (folder / name).write_bytes(b"x")
    document = json.loads(run("gc", "lab", "--dry-run", "--json").stdout)
    assert (document["dry_run"], document["bytes"], document["host"]) == (True, 1, "lab")
    assert [(item["name"], item["why"]) for item in document["objects"]] == [(name, "no machine uses it")]
    assert name[:16] in run("gc", "lab").stdout
    assert list(folder.iterdir()) == []


def test_no_host_is_no_data():
    result = run("list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert json.loads(run("list", "--json").stdout)["hosts"] == []
