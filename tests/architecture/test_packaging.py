# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What is installed beside the package: systemd itself reads the unit."""

import configparser
import shlex
import shutil
import subprocess

import pytest

from tests.architecture.source import ROOT

UNIT = ROOT / "packaging/systemd/cvmtool-vm@.service"


def parsed() -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, strict=True, delimiters=("=",), comment_prefixes=("#",))
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT.read_text("utf-8"))
    return unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_reads_the_unit_without_a_word(tmp_path):
    instance = tmp_path / "cvmtool-vm@db-1.service"
    text = UNIT.read_text("utf-8")
    # What the unit runs and names need not be installed where the tests run.
    instance.write_text(text.replace("/usr/bin/virsh", "/bin/true").replace("Documentation=man:cvmtool(1)\n", ""))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(instance)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_a_word_that_systemd_does_not_know_is_seen(tmp_path):
    instance = tmp_path / "cvmtool-vm@db-1.service"
    instance.write_text(UNIT.read_text("utf-8").replace("NoNewPrivileges", "NoNewPrivilege"))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(instance)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "NoNewPrivilege" in done.stderr


def test_the_unit_starts_a_machine_and_holds_nothing_secret():
    unit = parsed()
    words = shlex.split(unit["Service"]["ExecStart"])
    assert words[0] == "/usr/bin/virsh"
    assert words[-2:] == ["start", "%i"]
    assert not [key for key in unit["Service"] if "Credential" in key or "Environment" in key]
    assert unit["Unit"]["ConditionPathExists"] == "/dev/sev"


@pytest.mark.skipif(shutil.which("virsh") is None, reason="virsh is not installed")
def test_virsh_takes_the_command():
    """On libvirt's own test driver, whose one machine is stopped first."""
    words = shlex.split(
        parsed()["Service"]["ExecStart"].replace("%i", "test").replace("qemu:///system", "test:///default")
    )
    at = words.index("start")
    command = [*words[:at], "destroy test; " + shlex.join(words[at:]) + "; domstate test"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["running"]
