# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
import stat
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import ConfigError, CvmError, FormatError, HostError
from cvmtool.flows.attempts import Attempt, SessionNote
from cvmtool.flows.vmrecords import MAX_KEPT_ATTEMPTS, VmDir, VmRecord, find_vm, load_vm, load_vms
from cvmtool.flows.vmstate import Milestone
from cvmtool.owner.jobfile import Restart


def record(name="one", **changes):
    values = {
        "name": name,
        "image": "operator",
        "image_digest": "0a" * 32,
        "simulated": True,
        "host": "lab",
        "restart": Restart.ON_FAILURE,
        "created": "2026-11-21T00:00:00+00:00",
    }
    return VmRecord(**{**values, **changes})


def test_a_record_is_found_again(tmp_path):
    attempt = Attempt(started="now", sessions=[SessionNote(nonce="0a", boot="0b", released=True)])
    made = VmDir.create(tmp_path / "vms", record(volumes=["uuid"], attempts=[attempt], error="refused"))
    assert load_vm(tmp_path / "vms", "one").record == made.record
    assert [folder.record.name for folder in load_vms(tmp_path / "vms")] == ["one"]
    assert stat.S_IMODE((made.path / "vm.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700


def test_a_record_from_before_there_were_gpus_is_read_and_kept_as_ours(tmp_path):
    made = VmDir.create(tmp_path, record(volumes=["uuid"]))
    value = json.loads((made.path / "vm.json").read_text())
    assert value["schema"] == "cvmtool/vm-record/v2"
    del value["gpus"]
    (made.path / "vm.json").write_text(json.dumps({**value, "schema": "cvmtool/vm-record/v1"}))
    found = load_vm(tmp_path, "one")
    assert found.record == made.record
    found.save()
    assert json.loads((made.path / "vm.json").read_text())["gpus"] == []
    del value["schema"]
    (made.path / "vm.json").write_text(json.dumps({**value, "schema": "cvmtool/vm-record/v2"}))
    with pytest.raises(FormatError):
        load_vm(tmp_path, "one")


def test_the_policy_about_gpus_is_kept_as_it_was_written(tmp_path):
    made = VmDir.create(tmp_path, record())
    assert made.gpu_policy() is None
    made.record.gpus = ["0000:41:00.0"]
    with pytest.raises(ConfigError, match=r"gpu-policy\.toml cannot be read"):
        made.gpu_policy()
    made.write("gpu-policy.toml", b"# ours\n")
    assert made.gpu_policy() == "# ours\n"


def test_a_name_is_given_once(tmp_path):
    VmDir.create(tmp_path, record())
    with pytest.raises(HostError) as clash:
        VmDir.create(tmp_path, record(image="base"))
    assert clash.value.hint == "cvmtool vm start one starts it again"
    assert load_vm(tmp_path, "one").record.image == "operator"


def test_a_start_forgets_what_the_launch_before_had_proven(tmp_path):
    made = VmDir.create(tmp_path, record())
    for milestone in (Milestone.STARTED, Milestone.ATTESTED, Milestone.UNLOCKED):
        made.reach(milestone)
    assert set(made.record.times) == {"started", "attested", "unlocked"}
    made.reach(Milestone.STARTED)
    assert set(load_vm(tmp_path, "one").record.times) == {"started"}


def test_the_record_of_a_long_life_is_bounded(tmp_path):
    made = VmDir.create(tmp_path, record())
    made.record.attempts = [Attempt(started=str(number)) for number in range(200)]
    made.save()
    kept = load_vm(tmp_path, "one").record.attempts
    assert len(kept) == MAX_KEPT_ATTEMPTS
    assert kept[-1].started == "199"


def test_two_processes_take_turns(tmp_path):
    made = VmDir.create(tmp_path, record())
    script = (
        "import sys; from pathlib import Path; from cvmtool.flows.vmrecords import load_vm\n"
        "folder = load_vm(Path(sys.argv[1]), 'one')\n"
        "with folder.alone():\n"
        "    folder.record.error = 'noted'; folder.save(); print(flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(HostError, match="another cvmtool works with one"), made.alone():
            pass
        other.kill()
        other.wait()
    with made.alone():
        assert made.record.error == "noted"  # what the other one left


def test_what_another_command_leaves_is_waited_for(tmp_path):
    made = VmDir.create(tmp_path, record())
    entered, over = threading.Event(), threading.Event()

    def other():
        found = load_vm(tmp_path, "one")
        with found.alone():
            entered.set()
            over.wait(30)
            found.reach(Milestone.UNLOCKED)

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(30)
    threading.Timer(0.2, over.set).start()
    assert made.settled().milestone is Milestone.UNLOCKED
    thread.join()
    made.remove()
    assert made.settled() is None


@pytest.mark.parametrize("name", ["..", "../x", "", "/etc", "A"])
def test_no_name_leads_elsewhere(tmp_path, name):
    with pytest.raises(ConfigError):
        find_vm(tmp_path, name)
    with pytest.raises(ConfigError):
        VmDir.create(tmp_path, record(name))


def test_what_there_is_not(tmp_path):
    assert find_vm(tmp_path, "one") is None
    with pytest.raises(ConfigError) as missing:
        load_vm(tmp_path, "one")
    assert missing.value.hint == "cvmtool vm list"


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "cvmtool/vm-record/v3"},
        {"schema": "cvmtool/vm-record/v1"},  # which knew of no GPUs
        {"name": 5},
        {"simulated": "yes"},
        {"restart": "always"},
        {"milestone": "ready"},
        {"times": []},
        {"times": {"started": 5}},
        {"attempts": {}},
        {"attempts": [{}]},
        {"volumes": "uuid"},
        {"volumes": [5]},
        {"gpus": "0000:41:00.0"},
        {"gpus": [5]},
        {"error": 5},
        {"more": 1},
    ],
)
def test_a_damaged_record_is_named_and_hides_no_other(tmp_path, change):
    made = VmDir.create(tmp_path, record())
    VmDir.create(tmp_path, record("two"))
    value = json.loads((made.path / "vm.json").read_text())
    (made.path / "vm.json").write_text(json.dumps({**value, **change}))
    with pytest.raises(FormatError):
        load_vm(tmp_path, "one")
    assert [folder.record.name for folder in load_vms(tmp_path)] == ["two"]


@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("vms")
    (folder / "one").mkdir()
    (folder / "one" / "vm.json").write_bytes(content)
    with pytest.raises(CvmError):
        load_vm(folder, "one")


def test_what_was_never_finished_says_so(tmp_path):
    made = VmDir.create(tmp_path, record())
    for read in (made.manifest, made.policy, made.image):
        with pytest.raises(CvmError):
            read()
    made.remove()
    made.remove()
    assert find_vm(tmp_path, "one") is None
