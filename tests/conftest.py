# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What every test gets: a home of its own, and skips that fail where they are not allowed.

`CVMTOOL_REQUIRE` is a comma list of markers (`vectors,vm`); a skipped test that carries one of them has failed, and with
`all` every skipped test has.
`--update-golden` writes tests/golden anew from what the code renders now; review the difference.
"""

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from tests.vectors import VECTORS

_OWN_HOME = itertools.count()

# How long an example takes says how busy the machine is.
settings.register_profile(
    "cvmtool",
    settings(),  # of a CI, say
    deadline=None,
    suppress_health_check=[*settings().suppress_health_check, HealthCheck.too_slow],
)
settings.load_profile("cvmtool")


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write tests/golden anew")


def required_markers() -> set[str]:
    return set(os.environ.get("CVMTOOL_REQUIRE", "").replace(",", " ").split())


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    wanted = sorted(required_markers() & {"all", *(marker.name for marker in item.iter_markers())})
    if report.skipped and wanted and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"CVMTOOL_REQUIRE={','.join(wanted)} allows no skip: {reason}"


def pytest_collection_modifyitems(config, items):
    """Leave out what reads NVIDIA's own samples where they are not: they are NVIDIA's to hand out (CONTRIBUTING.md)."""
    if not (VECTORS / "nvidia").is_dir():
        absent = [item for item in items if item.get_closest_marker("nvidia")]
        config.hook.pytest_deselected(items=absent)
        items[:] = [item for item in items if item not in absent]


class ByFile(LoadScopeScheduling):
    """Gives the machines' tests to a process file by file, for they share machines, and every other test by itself (`make test`).

    A scheduler of our own, because xdist's groups are no groups under pytest 9.2 (pytest-xdist issue 1386), and nothing says so.
    """

    def _split_scope(self, nodeid):
        return nodeid.split("::")[0] if nodeid.startswith("tests/scenario/") else nodeid


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


@pytest.fixture(scope="session")
def _homes(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(autouse=True)
def _own_home(request, monkeypatch, _homes):
    """Point every place of cvmtool's at an empty one, so that no test reads or writes its user's keys, jobs or machines.

    Tests of real machines and images (`vm`, `image`) keep the user's: building an image for each would take hours.
    """
    if {"vm", "image"} & {marker.name for marker in request.node.iter_markers()}:
        return
    home = _homes / str(next(_OWN_HOME))
    for name in [name for name in os.environ if name.startswith("CVMTOOL_")]:
        if name not in {"CVMTOOL_REQUIRE", "CVMTOOL_VECTORS"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    for name in ("CONFIG", "STATE", "DATA", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(home / name.lower()))
    monkeypatch.setenv("CVMTOOL_MACHINES_DIR", str(home / "machines"))


@pytest.fixture
def golden(request):
    """Compare text with a file of tests/golden, or write it there with `--update-golden`."""

    def compare(name: str, text: str) -> None:
        path = Path(__file__).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.write_text(text, "utf-8")
        assert text == path.read_text("utf-8"), f"{path} differs; if that is meant: pytest --update-golden"

    return compare
