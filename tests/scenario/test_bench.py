# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool bench` for real: the example natively, in a plain VM and in a dry run."""

import pytest

from cvmtool.cli.render import JsonReporter
from cvmtool.flows.bench import compare
from cvmtool.flows.jobplan import Plan

pytestmark = [pytest.mark.vm, pytest.mark.image, pytest.mark.soak]


def test_the_example_in_three_places(prepared, settings):
    plan = Plan(simulated=True)
    found = compare(
        prepared,
        platform=plan.platform(settings),
        settings=settings,
        reporter=JsonReporter(),
        gate=plan.gate(settings),
    )
    assert [item.where for item in found.taken] == ["native", "plain-vm", "dry-run"]
    assert found.skipped == {}
    for item in found.taken:
        assert item.seconds.keys() == {"start", "load", "compute", "export"}
    assert list(settings.machines_dir.glob("bench-*")) == []
    assert list(settings.state_dir.glob(".bench-*")) == []
