# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Every broken host is named by its true cause, and no healthy one is failed."""

import pytest

from cvmtool.host.doctor.checks import CHECKS
from cvmtool.host.doctor.line import Use, Verdict
from tests.unit.host.doctor.recorded import NAMES, RecordedHost, examine

ABOUT = {name: RecordedHost(name).about for name in NAMES}
HEALTHY = [name for name in NAMES if "cause" not in ABOUT[name]]
BROKEN = [name for name in NAMES if "cause" in ABOUT[name]]


def by_verdict(diagnosis, verdict):
    return [line.check.code for line in diagnosis.lines if line.outcome.verdict is verdict]


def test_there_are_hosts_of_each_line_and_most_causes():
    assert {"milan", "genoa", "turin"} <= set(HEALTHY)
    told = {ABOUT[name]["cause"] for name in BROKEN}
    # The trials are tried on this machine (test_trial.py); a missing certificate service is no failure, a held GPU none.
    assert {check.code for check in CHECKS} - told == {"kvm-trial", "tcg-trial", "gpu", "key-service", "qemu-sev"}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_host_is_not_failed(name):
    diagnosis = examine(name)
    assert by_verdict(diagnosis, Verdict.FAIL) == []
    assert by_verdict(diagnosis, Verdict.SKIPPED) == []
    assert (diagnosis.best, diagnosis.obstacles) == (Use.SNP, {})


@pytest.mark.parametrize("name", ["milan", "genoa", "turin"])
def test_of_a_healthy_host_everything_is_known_to_root(name):
    assert by_verdict(examine(name), Verdict.UNKNOWN) == ["key-service"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_host_is_named_by_its_cause(name):
    diagnosis = examine(name)
    assert by_verdict(diagnosis, Verdict.FAIL)[:1] == [ABOUT[name]["cause"]]
    assert diagnosis.obstacles[Use.SNP].check.code == ABOUT[name]["cause"]
    assert diagnosis.obstacles[Use.SNP].outcome.remedy
    assert (diagnosis.best.value if diagnosis.best else "nothing") == ABOUT[name]["best"]


@pytest.mark.parametrize("name", [name for name in BROKEN if name not in {"debian-12", "nested-pvm"}])
def test_one_cause_gives_one_failure(name):
    assert by_verdict(examine(name), Verdict.FAIL) == [ABOUT[name]["cause"]]


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_asks_for_less(name):
    diagnosis = examine(name, dry_run=True)
    assert {"kvm-amd", "dev-sev", "tcb-floors"}.isdisjoint(line.check.code for line in diagnosis.lines)
    best = ABOUT[name]["best"].replace("sev-snp", "dry-run-kvm")
    assert (diagnosis.best.value if diagnosis.best else "nothing") == best


def test_a_line_is_skipped_for_the_root_of_its_trouble():
    lines = {line.check.code: line.outcome for line in examine("bios-sme-off").lines}
    for code in ("bios-sev", "bios-snp", "rmp-coverage", "kvm-amd", "libvirt-snp"):
        assert (lines[code].verdict, lines[code].evidence) == (Verdict.SKIPPED, "needs bios-sme")


def test_what_cannot_be_read_is_unknown_and_promises_nothing_essential():
    lines = {line.check.code: line.outcome.verdict for line in examine("genoa-unprivileged").lines}
    for code in ("rmp-coverage", "psp-firmware", "tcb-floors", "platform"):
        assert lines[code] is Verdict.UNKNOWN
    assert lines["kvm-amd"] is Verdict.OK


def test_codes_are_unique_and_needs_come_before():
    known = []
    for check in CHECKS:
        assert set(check.needs) <= set(known)
        known.append(check.code)
    assert len(set(known)) == len(known)
