# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Every attack that `cvmtool drill` knows, against real machines: refused with the right exit code, and no pack opened."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from cvmtool.cli.render import JsonReporter
from cvmtool.config import Settings
from cvmtool.errors import CvmError
from cvmtool.flows.attacks import all_drills
from cvmtool.flows.cases import read_case
from cvmtool.flows.drill import DrillResult, run_drills
from cvmtool.flows.volumes import Volumes
from cvmtool.image.bundle import Bundle

pytestmark = [pytest.mark.vm, pytest.mark.image]

DRILLS = {drill.name: drill for drill in all_drills()}


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, bundle: Bundle, settings: Settings) -> dict[str, DrillResult]:
    """Run the drills that were selected; the faults of the processor share one machine."""
    selected = [
        DRILLS[item.callspec.params["name"]]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == "test_attack_is_refused"
    ]
    results = run_drills(
        selected, bundle, settings=settings, reporter=JsonReporter(), stage=lambda _stage, _text: nullcontext()
    )
    return {result.drill.name: result for result in results}


@pytest.mark.parametrize("name", DRILLS)
def test_attack_is_refused(name: str, outcomes: dict[str, DrillResult]) -> None:
    result = outcomes[name]
    assert (result.exit_code, result.refused) == (DRILLS[name].exit_code, True), result.message


@pytest.mark.parametrize("name", ["changed-kernel", "changed-initrd", "changed-cmdline", "changed-rootfs"])
def test_refused_boot_names_the_component(name: str) -> None:
    # The finding's code is part of the drill, so test_attack_is_refused holds it; this holds that each drill asks for one.
    assert DRILLS[name].code == f"boot-{name.removeprefix('changed-')}"


def test_every_class_of_refusal_is_drilled() -> None:
    assert {drill.exit_code for drill in DRILLS.values()} >= {4, 5, 6, 7}


def test_saved_cases_replay_the_same(outcomes: dict[str, DrillResult], settings: Settings) -> None:
    cases = [read_case(folder) for folder in sorted(settings.cases_dir.iterdir())]
    for case in cases:
        with pytest.raises(CvmError) as refused:
            case.decide()
        assert case.is_same(refused.value), refused.value.message
    # What the owner refused by its evidence is saved; what the guest or the firmware refused never showed any.
    messages = {case.message for case in cases}
    assert {result.message for result in outcomes.values() if "policy refuses" in result.message} <= messages


def test_machines_leave_nothing_behind(outcomes: dict[str, DrillResult], settings: Settings) -> None:
    assert outcomes
    assert [path.name for path in settings.machines_dir.iterdir() if path.name.startswith("drill-")] == []
    assert [record for record in Volumes(settings.volumes_dir).all() if record.machine.startswith("drill-")] == []
