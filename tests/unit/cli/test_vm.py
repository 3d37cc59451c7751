# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cvmtool.cli.app import app
from cvmtool.config import load_settings
from cvmtool.errors import ConfigError, HostError
from cvmtool.flows import machine as machines
from cvmtool.flows import vmlist
from cvmtool.flows.hosts import Host
from cvmtool.flows.jobs import JobDir
from cvmtool.flows.records import MachineRecord, load_record, save_record
from cvmtool.host.files import LocalFiles
from cvmtool.host.hypervisor import MachineState
from cvmtool.host.storage import MachineDir


class Hypervisor:
    """The libvirt of a host with one machine."""

    def __init__(self):
        self.destroyed = []
        self.closed = 0
        self.answers = True
        self.alive = True
        self.names = {"there"}

    def state(self, name):
        if name not in self.names:
            raise HostError(f"no machine {name}")
        return MachineState.RUNNING

    def destroy(self, name):
        self.destroyed.append(name)
        return name == "there" and self.destroyed.count(name) == 1

    def close(self):
        self.closed += 1


@pytest.fixture
def host(monkeypatch):
    made = Hypervisor()

    def open_host(settings):
        if not made.answers:
            raise HostError("nothing answers")
        machines_dir = str(settings.machines_dir)
        return Host(
            name=settings.host, uri=settings.host, hypervisor=made, files=LocalFiles(), machines=machines_dir,
            store=None, local=True,
        )  # fmt: skip

    monkeypatch.setattr(machines, "open_host", open_host)
    monkeypatch.setattr(vmlist, "open_host", open_host)
    return made


def place(name, *, uri="qemu:///system", pid=None, console=b""):
    settings = load_settings()
    machines_dir = str(settings.machines_dir)
    directory = MachineDir(LocalFiles(), machines_dir, name)
    directory.create()
    Path(directory.console).write_bytes(console)
    pid = os.getpid() if pid is None else pid
    record = MachineRecord(name=name, job="digits", host=uri, uri=uri, machines=machines_dir, pid=pid)
    save_record(settings.records_dir, record)
    return directory


def vm(*arguments):
    return CliRunner().invoke(app, ["vm", *arguments])


def test_no_machine_is_no_data():
    result = vm("list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no machine" in result.stderr
    assert json.loads(vm("list", "--json").stdout)["machines"] == []


def test_machines_are_listed_with_what_their_host_says(host):
    place("there", console=b"CVM-STAGE initrd\nCVM-STAGE agent\n\x1b[2Jnoise")
    place("lost")
    place("inside", uri="qemu:///embed?root=/nowhere")
    document = json.loads(vm("list", "--json").stdout)
    rows = {row["name"]: row for row in document["machines"]}
    assert (rows["there"]["state"], rows["there"]["ready"]) == ("booted", False)
    assert (rows["there"]["stage"], rows["there"]["kind"]) == ("agent", "job")
    assert rows["lost"]["state"] == "lost"
    assert rows["lost"]["evidence"] == "its host does not know it"
    assert rows["inside"]["state"] == "lost"
    assert all(row["simulated"] for row in rows.values())
    assert host.closed == 1  # one host, asked once
    shown = vm("list").stdout
    assert "there" in shown
    assert "\x1b" not in shown


def test_a_host_that_does_not_answer_is_said_to(host):
    place("there")
    host.answers = False
    row = json.loads(vm("list", "--json").stdout)["machines"][0]
    assert (row["state"], row["evidence"]) == ("lost", "its host does not answer")


def test_a_machine_whose_starter_was_killed_says_so(host):
    place("there", pid=2**22 + 1)
    assert json.loads(vm("list", "--json").stdout)["machines"][0]["evidence"].endswith(
        "the process that started it is gone"
    )


def test_a_machine_of_a_job_stands_as_far_as_its_job_came(host):
    settings = load_settings()
    job = JobDir.create(settings.jobs_dir, "there", simulated=True)
    place(job.record.machine)
    host.names.add(job.record.machine)
    for stage, state in (("start", "starting"), ("attest", "attested"), ("unlock", "running")):
        job.record.stages[stage] = 1.0
        job.save()
        row = json.loads(vm("list", "--json").stdout)["machines"][0]
        assert (row["state"], row["ready"]) == (state, False)
    os.close(job._lock)  # as if its process had been killed
    row = json.loads(vm("list", "--json").stdout)["machines"][0]
    assert row["evidence"].endswith("the process that ran its job was killed")


@pytest.mark.parametrize("command", [["attest"], ["unlock"], ["ssh"], ["status"], ["stop"], ["resume"], ["watch"]])
def test_a_machine_that_there_is_not_is_named(host, command):
    result = vm(*command, "nowhere")
    assert isinstance(result.exception, ConfigError)
    assert "nowhere" in result.exception.message


@pytest.mark.parametrize(
    "arguments",
    [
        ["--volume", "data"],
        ["--volume", "data:1GB"],
        ["--volume", "data:0MiB"],
        ["--memory", "1"],
        ["--restart", "always"],
    ],
)
def test_what_is_no_machine_is_refused_before_anything_is_built(host, arguments):
    assert vm("start", "operator", "--dry-run", *arguments).exit_code == 2
    assert not load_settings().vms_dir.exists()


def test_a_machine_is_destroyed_and_what_the_host_held_is_gone(host):
    directory = place("there")
    result = vm("destroy", "there", "--json")
    assert json.loads(result.stdout)["found"] is True
    assert host.destroyed == ["there"]
    assert not Path(directory.console).parent.exists()
    assert load_record(load_settings().records_dir, "there") is None
    again = vm("destroy", "there", "--json")
    assert (again.exit_code, json.loads(again.stdout)["found"]) == (0, False)


def test_the_files_of_a_machine_without_a_record_go_too(host):
    directory = MachineDir(LocalFiles(), str(load_settings().machines_dir), "torn")
    directory.create()
    assert "gone" in vm("destroy", "torn").stderr
    assert not Path(directory.console).exists()


def test_a_machine_stays_on_record_while_its_host_does_not_answer(host):
    place("there")
    host.answers = False
    assert isinstance(vm("destroy", "there").exception, HostError)
    host.answers = True
    assert json.loads(vm("destroy", "there", "--json").stdout)["found"] is True


@pytest.mark.parametrize("name", ["..", ".", "", "../state", "a/../../state", "/"])
def test_no_name_reaches_beyond_the_machines(host, name):
    place("there")
    state = load_settings().state_dir
    state.mkdir(parents=True, exist_ok=True)
    for target in (name, str(state)):
        result = vm("destroy", target)
        assert isinstance(result.exception, ConfigError)
    assert state.is_dir()
    assert (load_settings().machines_dir / "there").is_dir()
    assert host.destroyed == []
