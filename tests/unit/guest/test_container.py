# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Running a container with a shell in crun's place; crun itself is proven in a booted guest."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cvmtool.formats.control import LogReader, Stream
from cvmtool.formats.job import Network
from cvmtool.formats.jobterms import Destination
from cvmtool.guest import container, egress, programs
from cvmtool.guest.container import Cause, Cgroup, Rooms, run_container, stop_container
from cvmtool.guest.ending import Ending
from cvmtool.guest.log import LogBook
from cvmtool.guest.programs import Ended
from tests.fakes.namespaces import lend_namespaces
from tests.unit.guest import samples


class Machine:
    """A cgroup hierarchy of plain files, mounts that only get recorded, and `script` for what crun would start."""

    def __init__(self, root):
        self.rooms = Rooms(work=root / "work", cgroups=root / "cgroups", seccomp=root / "seccomp.json")
        self.cgroup = root / "cgroups/job"
        for directory in (self.rooms.work, self.cgroup):
            directory.mkdir(parents=True)
        self.rooms.seccomp.write_text('{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": []}')
        (self.cgroup / "cgroup.events").write_text("populated 0\nfrozen 0\n")
        (self.cgroup / "memory.events").write_text("low 0\noom 0\noom_kill 0\n")
        self.log = LogBook(root / "log", limit=1 << 20)
        self.script = "true"
        self.ending = Ending()
        self.mounts, self.killed, self.argv, self.process = [], [], None, None
        self.mount_code = 0

    def run(self, *argv, **_):
        if argv[0] == "crun":
            self.killed.append(argv)
            self.process.terminate()
            return Ended(code=0, output="", complaint="")
        self.mounts.append(argv)
        return Ended(code=self.mount_code, output="", complaint="no")

    def capture(self, *argv):
        self.argv = argv
        self.process = programs.capture("sh", "-c", self.script)
        threading.Thread(target=self.killer, daemon=True).start()
        return self.process

    def killer(self):
        """What the kernel does on cgroup.kill."""
        while self.process.returncode is None:
            time.sleep(0.01)
            if (self.cgroup / "cgroup.kill").exists():
                self.process.kill()
                return

    def go(self, *, network=Network.NONE, destinations=(), **limits):
        changed = dataclasses.replace(samples.manifest().limits, **limits)
        manifest = samples.manifest(limits=changed, network=network, destinations=destinations)
        packs = {pack.name: self.rooms.work / pack.name for pack in manifest.packs}
        outcome = run_container(manifest, packs, self.log, self.rooms, self.ending)
        self.log.end()
        return outcome

    def records(self):
        return LogReader().feed(b"".join(self.log.follow(0)))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    machine = Machine(tmp_path)
    monkeypatch.setattr(container, "run", machine.run)
    monkeypatch.setattr(container, "capture", machine.capture)
    return machine


def test_exit_code_and_both_streams(machine):
    machine.script = "echo out; echo err >&2; exit 3"
    outcome = machine.go()
    assert (outcome.exit_code, outcome.cause) == (3, Cause.EXITED)
    assert outcome.started <= outcome.finished
    found = {record.stream: record.data for record in machine.records()}
    assert found == {Stream.STDOUT: b"out\n", Stream.STDERR: b"err\n"}


def test_what_handles_the_signal_ends_in_its_own_way(machine):
    machine.script = "trap 'echo saved; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    threading.Thread(target=ask_when_ready, args=(machine, 60), daemon=True).start()
    outcome = machine.go()
    assert (outcome.exit_code, outcome.cause) == (0, Cause.STOPPED)
    assert b"".join(record.data for record in machine.records()) == b"ready\nsaved\n"
    ((crun, root, *words),) = machine.killed
    assert (crun, root, words) == ("crun", f"--root={machine.rooms.work}/crun", ["kill", "job", "TERM"])


def test_what_does_not_heed_the_signal_is_killed_when_its_grace_is_over(machine):
    machine.script = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    threading.Thread(target=ask_when_ready, args=(machine, 0.2), daemon=True).start()
    outcome = machine.go()
    assert (outcome.exit_code, outcome.cause) == (137, Cause.STOPPED)


def test_an_end_asked_for_before_the_start_still_comes(machine):
    machine.script = "exec sleep 60"
    machine.ending.ask(60)
    assert machine.go().cause is Cause.STOPPED


def ask_when_ready(machine, grace_seconds):
    while machine.log.size == 0:
        time.sleep(0.01)
    machine.ending.ask(grace_seconds)


def test_what_closes_its_streams_is_waited_for_and_can_be_stopped(machine):
    machine.script = "exec >&- 2>&-; exec sleep 60"
    threading.Timer(0.3, machine.ending.ask, (60,)).start()
    outcome = machine.go()
    assert (outcome.exit_code, outcome.cause) == (143, Cause.STOPPED)


def test_bundle_names_the_job_and_the_kernel_s_seccomp(machine):
    machine.go()
    (bundle,) = (word for word in machine.argv if word.startswith("--bundle="))
    config = json.loads(Path(bundle.removeprefix("--bundle="), "config.json").read_bytes())
    assert config["process"]["args"] == ["/bin/train", "--fast"]
    assert config["linux"]["seccomp"]["architectures"] == ["SCMP_ARCH_X86_64"]
    assert machine.argv[0] == "crun"


def test_root_is_read_only_under_a_skeleton_of_mount_points(machine):
    machine.go()
    outputs, overlay, unmounted = machine.mounts
    assert outputs[:3] == ("mount", "-t", "tmpfs")
    assert "uid=65534" in outputs[4]
    assert "size=16m" in outputs[4]
    assert overlay[:3] == ("mount", "-t", "overlay")
    options = overlay[4].split(",")
    assert {"ro", "nosuid", "nodev"} <= set(options)
    assert not any(option.startswith("upperdir") for option in options)
    assert (machine.rooms.work / "skeleton/inputs/digits").is_dir()
    assert unmounted == ("umount", str(machine.rooms.work / "root"))


def test_limits_are_the_group_s(machine):
    machine.go()
    assert (machine.cgroup / "memory.max").read_text() == str(256 << 20)
    assert (machine.cgroup / "memory.oom.group").read_text() == "1"
    assert (machine.cgroup / "pids.max").read_text() == "72"


@pytest.mark.parametrize("script", ["sleep 300", "exec >&- 2>&-; sleep 300"], ids=["talking", "silent"])
def test_time_limit(machine, script):
    machine.script = script
    outcome = machine.go(seconds=0)
    assert (outcome.exit_code, outcome.cause) == (124, Cause.TIMEOUT)
    assert machine.process.returncode is not None


def test_closed_streams_are_not_the_end(machine):
    machine.script = "exec >&- 2>&-; sleep 0.2; exit 5"
    assert machine.go().exit_code == 5


def test_memory_limit(machine):
    (machine.cgroup / "memory.events").write_text("oom 1\noom_kill 2\n")
    machine.script = "exit 137"
    outcome = machine.go()
    assert (outcome.exit_code, outcome.cause) == (137, Cause.MEMORY)


def test_whatever_is_left_is_killed(machine):
    machine.go()
    assert (machine.cgroup / "cgroup.kill").read_text() == "1"


def test_processes_that_stay_are_a_failure(machine, monkeypatch):
    monkeypatch.setattr(container, "_EMPTY_SECONDS", 0.0)
    (machine.cgroup / "cgroup.events").write_text("populated 1\n")
    outcome = machine.go()
    assert (outcome.exit_code, outcome.cause) == (125, Cause.RUNTIME)


def break_mount(machine):
    machine.mount_code = 1


def break_profile(machine):
    machine.rooms.seccomp.write_text("{")


def break_cgroups(machine):
    for file in machine.cgroup.iterdir():
        file.unlink()


@pytest.mark.parametrize("break_it", [break_mount, break_profile, break_cgroups])
def test_container_that_cannot_run_says_so_in_the_log(machine, break_it):
    break_it(machine)
    outcome = machine.go()
    assert (outcome.exit_code, outcome.cause) == (125, Cause.RUNTIME)
    (record,) = machine.records()
    assert record.stream is Stream.STDERR
    assert b"cvmtool:" in record.data


def test_stopping_what_never_ran(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "run", lambda *argv: Ended(code=0, output="", complaint=""))
    stop_container(Rooms(work=tmp_path, cgroups=tmp_path / "none"))


def test_group_without_the_key_is_an_error(tmp_path):
    (tmp_path / "memory.events").write_text("oom 1\n")
    with pytest.raises(OSError, match="oom_kill"):
        _ = Cgroup(tmp_path).out_of_memory


def test_child_sees_its_input_at_the_end(machine):
    machine.script = "wc -c"
    machine.go()
    assert [record.data.split() for record in machine.records()] == [[b"0"]]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces")
def test_a_job_with_destinations_gets_their_names_and_their_namespace(machine, monkeypatch):
    lend_namespaces(monkeypatch)
    monkeypatch.setattr(egress, "open_way_out", lambda destinations: egress.WayOut(destinations, card="lo"))
    places = (
        Destination(host="192.0.2.1", port=443, addresses=("192.0.2.1",), tls=True),
        Destination(host="a.example", port=443, addresses=("192.0.2.7", "2001:db8::7"), tls=True),
    )
    client = machine.rooms.work.parent / "client.py"
    client.write_text(
        "import ctypes, json, os, socket, sys\n"
        "spaces = json.load(open(sys.argv[1] + '/bundle/config.json'))['linux']['namespaces']\n"
        "(path,) = [item['path'] for item in spaces if 'path' in item]\n"
        "assert ctypes.CDLL(None).setns(os.open(path, os.O_RDONLY), 0x40000000) == 0\n"
        "socket.socket().connect_ex(('192.0.2.9', 443))\n"
        "print(open(sys.argv[1] + '/skeleton/etc/hosts').read(), end='')\n"
    )
    machine.script = f"exec {sys.executable} {client} {machine.rooms.work}"
    outcome = machine.go(network=Network.ALLOW, destinations=places)
    said = b"".join(record.data for record in machine.records()).decode()
    assert outcome.exit_code == 0, said
    assert said.splitlines() == [
        "127.0.0.1 localhost",
        "::1 localhost",
        "192.0.2.7 a.example",
        "2001:db8::7 a.example",
    ]
    assert [flow.destination for flow in outcome.egress.flows] == list(places)
    assert outcome.egress.turned_away == 1


def test_a_card_that_is_not_there_keeps_the_container_from_running(machine, monkeypatch):
    def fail(_):
        raise OSError("the machine has 0 network cards")

    monkeypatch.setattr(egress, "open_way_out", fail)
    place = Destination(host="192.0.2.1", port=443, addresses=("192.0.2.1",), tls=True)
    outcome = machine.go(network=Network.ALLOW, destinations=(place,))
    assert (outcome.exit_code, outcome.cause, outcome.egress) == (125, Cause.RUNTIME, None)
    assert b"0 network cards" in b"".join(record.data for record in machine.records())


def test_a_job_without_destinations_has_nothing_of_that(machine):
    code = "import sys, cvmtool.guest.agent; print([name for name in sys.modules if name.startswith('cvmtool.guest.egress')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded == "[]\n"
    assert machine.go().egress is None
    assert not (machine.rooms.work / "skeleton/etc").exists()
    config = json.loads((machine.rooms.work / "bundle/config.json").read_text())
    assert {"type": "network"} in config["linux"]["namespaces"]
