# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool doctor` as people and scripts meet it; what a host wrote never reaches a terminal raw."""

import json

import pytest
from typer.testing import CliRunner

from cvmtool.cli.app import app
from cvmtool.flows import doctor as flow
from cvmtool.flows.doctor import Examination, Told


def told(code="bios-sme", verdict="fail", evidence="no flag sme", remedy="SMEE = Enabled"):
    return Told(code=code, verdict=verdict, evidence=evidence, why="the ground", remedy=remedy, uses=("sev-snp",))


FAILED = Examination(
    host="qemu:///system",
    lines=(
        told("cpu-vendor", "ok", "AMD", ""),
        told(),
        told("bios-sev", "skipped", "needs bios-sme", ""),
        told("bios-snp", "skipped", "needs bios-sme", ""),
    ),
    best="dry-run-kvm",
    obstacles={"sev-snp": told()},
)
ABLE = Examination(host="qemu:///system", lines=(told("cpu-vendor", "ok", "AMD", ""),), best="sev-snp", obstacles={})


@pytest.fixture
def examined(monkeypatch):
    def answer(examination):
        def examine(settings, *, dry_run, step):
            step("looking")
            return examination

        monkeypatch.setattr(flow, "examine", examine)

    return answer


def run(*words):
    return CliRunner().invoke(app, ["doctor", *words])


def test_a_host_that_can(examined):
    examined(ABLE)
    ran = run()
    assert ran.exit_code == 0
    assert ran.stdout.splitlines()[-1] == "this host can run: SEV-SNP"


def test_a_host_that_cannot_ends_in_its_cause(examined):
    examined(FAILED)
    ran = run()
    assert ran.exit_code == 8
    assert ran.stdout.splitlines()[-3:] == [
        "this host can run: dry runs with KVM",
        "not SEV-SNP: bios-sme: no flag sme",
        "  next: SMEE = Enabled",
    ]
    assert "skipped  needs bios-sme: bios-sev, bios-snp" in ran.stdout.splitlines()


def test_one_cause_of_several_is_told_once(examined):
    both = {"dry-run-kvm": told("disk", evidence="full"), "dry-run-tcg": told("disk", evidence="full")}
    examined(Examination(host="h", lines=FAILED.lines, best=None, obstacles={"sev-snp": told(), **both}))
    assert run().stdout.splitlines()[-5:] == [
        "this host can run: nothing",
        "not SEV-SNP: bios-sme: no flag sme",
        "  next: SMEE = Enabled",
        "not dry runs with KVM nor dry runs emulated (TCG): disk: full",
        "  next: SMEE = Enabled",
    ]


@pytest.mark.parametrize(("best", "code"), [("dry-run-kvm", 0), ("dry-run-tcg", 0), (None, 8)])
def test_a_dry_run_asks_for_less(examined, best, code):
    examined(Examination(host="h", lines=FAILED.lines, best=best, obstacles={}))
    assert run("--dry-run").exit_code == code
    assert run("--dry-run", "--json").exit_code == code


def test_json_is_one_document_with_every_line(examined):
    examined(FAILED)
    ran = run("--json")
    document = json.loads(ran.stdout)
    assert ran.exit_code == 8
    assert (document["able"], document["best"], document["obstacles"]) == (
        False,
        "dry-run-kvm",
        {"sev-snp": "bios-sme"},
    )
    assert [line["verdict"] for line in document["lines"]] == ["ok", "fail", "skipped", "skipped"]


def test_what_a_host_wrote_is_made_printable(examined):
    evil = "\x1b]0;owned\x07 \x1b[2J\nok      bare-metal [red]x[/]"
    examined(Examination(host="h", lines=(told(evidence=evil),), best=None, obstacles={"sev-snp": told(evidence=evil)}))
    ran = run()
    assert "\x1b" not in ran.stdout
    assert "[red]x[/]" in ran.stdout
    assert not any(line.startswith("ok ") for line in ran.stdout.splitlines())


def test_an_error_is_explained():
    ran = run("--explain", "qemu-system-x86_64: SNP_LAUNCH_FINISH ret=-5 fw_error=11 'Bad measurement'")
    assert ran.exit_code == 0
    assert ran.stdout.startswith("id-block-measurement: the launch digest is not the one")
    document = json.loads(run("--json", "--explain", "No space left on device\x1b[2J").stdout)
    assert document["known"] is True
    assert document["causes"][0]["code"] == "disk-full"


def test_a_log_is_piped_in():
    log = b"\xff noise\n" * 9 + b"qemu: SEV-SNP does not support SMM.\n"
    ran = CliRunner().invoke(app, ["doctor", "--explain", "-"], input=log)
    assert ran.stdout.startswith("smm: ")


def test_an_error_that_nobody_knows():
    ran = run("--explain", "all is lost")
    assert ran.exit_code == 8
    assert ran.stdout == ""
    document = json.loads(run("--explain", "all is lost", "--json").stdout)
    assert (document["known"], document["causes"]) == (False, [])


def test_an_explanation_quotes_without_escapes():
    ran = run(
        "--explain",
        "ccp 0000:42:00.1: SEV-SNP: failed to INIT rc -5, error 0x3 SNP: IOMMU \x1b[2J SNP cannot be supported",
    )
    assert ran.exit_code == 0
    assert "\x1b" not in ran.stdout
    assert "\\x1b" in ran.stdout


@pytest.mark.vm
def test_this_machine_can_at_least_be_looked_at():
    ran = run("--dry-run", "--json")
    document = json.loads(ran.stdout)
    lines = {line["code"]: line["verdict"] for line in document["lines"]}
    assert lines["qemu"] == "ok"
    assert lines["tcg-trial"] == "ok"
    assert ran.exit_code == (0 if document["best"] else 8)
