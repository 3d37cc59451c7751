# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The wheel is whole: what a checkout reads beside the package stands in it, and verifying needs no host libraries."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cvmtool.formats.certtable import CertKind, parse_cert_table
from cvmtool.owner.amdroots import SimulatedRoot
from cvmtool.owner.policy import baseline
from cvmtool.owner.policyfile import encode_policy
from tests import fakes
from tests.architecture.source import PACKAGE, ROOT

SHARED = ("images", "templates")
# What only the driving of a host needs.
HIDDEN = ("libvirt", "libvirt_qemu", "paramiko")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy, so that the checkout stays as it is."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("cvmtool", "docs/man", *SHARED):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "--no-index", "--no-deps"]
    subprocess.run(
        [*command, "--no-build-isolation", "-w", out, source], check=True, capture_output=True, text=True, timeout=300
    )
    (built,) = out.glob("cvmtool-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Unpack the wheel as pip would, with the host's libraries hidden; return the directory to start Python in."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for name in HIDDEN:
        (site / f"{name}.py").write_text(f"raise ImportError('{name} is hidden')\n")
    return site


def python(site: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the unpacked wheel in front of everything; `-P` keeps the checkout out."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(site), "HOME": str(site / "home"), **settings}
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd=site,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_it_holds_every_module_and_every_shared_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {
            info.filename: hashlib.sha256(archive.read(info)).hexdigest()
            for info in archive.infolist()
            if info.filename.startswith("cvmtool/")
        }
    required = {
        f"cvmtool/{path.relative_to(PACKAGE).as_posix()}": path
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and "_share" not in path.parts
    }
    for name in SHARED:
        required |= {
            f"cvmtool/_share/{path.relative_to(ROOT).as_posix()}": path
            for path in (ROOT / name).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
    for name in ("owner/tcb-floors.toml", "py.typed", "_share/images/base/init", "_share/images/base/packages.lock"):
        assert f"cvmtool/{name}" in held
    assert "cvmtool/_share/templates/domain-dryrun.xml.j2" in held
    assert held == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in required.items()}


def test_it_brings_the_man_page(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("share/man/man1/cvmtool.1")]
        assert archive.read(name) == (ROOT / "docs/man/cvmtool.1").read_bytes()


def test_it_keeps_the_execute_bit(wheel):
    """The bit is part of a guest image; pip sets it again from the archive's attributes."""
    executable = {path.relative_to(ROOT).as_posix() for path in (ROOT / "images").rglob("*") if _is_executable(path)}
    assert "images/base/init" in executable
    with zipfile.ZipFile(wheel) as archive:
        found = {
            info.filename.removeprefix("cvmtool/_share/")
            for info in archive.infolist()
            if info.filename.startswith("cvmtool/_share/images/") and info.external_attr >> 16 & 0o100
        }
    assert found == executable


def test_it_names_its_licence_and_nothing_of_this_machine(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "setup", "docs/", "examples/")) for name in names)


def test_the_command_line_starts_without_the_host_libraries(installed):
    ran = python(installed, "-c", "import cvmtool.cli.app, cvmtool; print(cvmtool.__file__)")
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.strip()).parent == installed / "cvmtool"


def test_resources_come_from_the_wheel(installed):
    code = "from cvmtool.config import resources; print(resources('images'), resources('templates'))"
    ran = python(installed, "-c", code)
    assert ran.stdout.split() == [str(installed / "cvmtool/_share" / name) for name in SHARED]


def test_a_report_is_shown_and_judged_without_the_host_libraries(installed, tmp_path):
    amd, evidence = fakes.fake_amd(), fakes.launch(fakes.fake_amd())
    table = parse_cert_table(evidence.cert_table)
    policy = baseline(
        roots=SimulatedRoot(amd.root_fingerprint),
        measurements=frozenset({fakes.FACTS.digest()}),
        host_data=frozenset({fakes.HOST_DATA}),
    )
    (tmp_path / "report").write_bytes(evidence.report)
    (tmp_path / "policy").write_text(encode_policy(policy))
    for kind in (CertKind.VCEK, CertKind.ASK, CertKind.ARK, CertKind.CRL):
        (tmp_path / kind.name).write_bytes(table.get(kind) or b"")
    report = str(tmp_path / "report")
    shown = python(installed, "-m", "cvmtool", "attest", "show", report, "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["report"]["measurement"] == fakes.FACTS.digest().hex()
    arguments = ["verify", report, "--vek", "VCEK", "--chain", "ASK", "--chain", "ARK", "--crl", "CRL"]
    arguments += ["--policy", "policy", "--json"]
    paths = [str(tmp_path / word) if (tmp_path / word).is_file() else word for word in arguments]
    verified = python(installed, "-m", "cvmtool", "attest", *paths)
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["verdict"] == "accepted"


def test_driving_a_host_says_what_is_missing(installed):
    code = "from cvmtool.host.hypervisor import libvirt_module; libvirt_module()"
    ran = python(installed, "-c", code)
    assert ran.returncode != 0
    assert "libvirt-python is not installed" in ran.stderr


def _is_executable(path: Path) -> bool:
    return path.is_file() and bool(path.stat().st_mode & 0o100)
