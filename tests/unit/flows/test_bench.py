# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Places one after the other, medians of their rounds, and places that are left out. (For real: tests/scenario/test_bench.py.)"""

from dataclasses import replace

import pytest

from cvmtool.cli.render import JsonReporter
from cvmtool.config import load_settings
from cvmtool.errors import ConfigError, HostError
from cvmtool.flows import bench
from cvmtool.flows.bench import compare, require_comparable
from cvmtool.flows.benchphases import Watch
from cvmtool.flows.jobplan import Plan
from cvmtool.flows.reporter import Stage
from cvmtool.formats.control import LogRecord, Stream
from cvmtool.owner.jobfile import parse_job_file
from tests.samples import JOB_YAML
from tests.unit.flows.runs import prepared_job

PLAN = Plan(simulated=True)
RECIPIENT = "age1rr9qp5h3wv86muadxqhv49r8j7j7d4g57uq9dauvnv4takrn8pvqew7s76"


def watch(run: float) -> Watch:
    return Watch(start=1.0, run=run, export=0.25, records=())


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Compare a job whose runs take what `native` and `plain` yield, and whose whole run has the stages of one."""
    settings = load_settings()
    prepared = prepared_job(tmp_path, settings)

    def train(_prepared, *, reporter, results, **_rest) -> None:
        assert not results.exists()
        reporter.notice("emulating the CPU (TCG), which is slow: no KVM")
        reporter.notice("something else")
        for stage in (Stage.START, Stage.UNLOCK, Stage.TRAIN):
            with reporter.stage(stage, "text"):
                if stage is Stage.TRAIN:
                    reporter.log(LogRecord(stream=Stream.STDOUT, microseconds=0, data=b'{"phase": "compute"}\n'))
        with reporter.stage(Stage.RESULTS, "text"):
            pass

    def run(native, plain, *, rounds=1, train=train, text=None):
        monkeypatch.setattr(bench, "run_native", lambda *_: next(native))
        monkeypatch.setattr(bench, "run_plain", lambda *_: next(plain))
        monkeypatch.setattr(bench, "train", train)
        job = replace(prepared, file=parse_job_file(text)) if text else prepared
        return compare(
            job,
            platform=PLAN.platform(settings),
            settings=settings,
            reporter=JsonReporter(),
            gate=PLAN.gate(settings),
            rounds=rounds,
        )

    return run


def test_a_figure_is_the_median_of_its_rounds(ask):
    found = ask(iter(map(watch, (1.0, 9.0, 2.0))), iter(map(watch, (4.0, 5.0, 60.0))), rounds=3)
    assert [item.where for item in found.taken] == ["native", "plain-vm", "dry-run"]
    assert found.taken[0].seconds == {"start": 1.0, "run": 2.0, "export": 0.25}
    assert found.taken[1].seconds["run"] == 5.0
    assert found.taken[2].seconds.keys() == {"start", "load", "compute", "export"}
    assert (found.rounds, found.skipped) == (3, {})
    assert found.spread == pytest.approx(61.25 / 5.25 - 1, abs=0.001)
    assert found.emulated.startswith("emulating the CPU (TCG)")


def test_what_cannot_run_here_is_left_out_once(ask):
    def no_root():
        raise ConfigError("user is not root")
        yield

    found = ask(no_root(), iter(map(watch, (4.0, 5.0))), rounds=2)
    assert found.skipped == {"native": "user is not root"}
    assert [item.where for item in found.taken] == ["plain-vm", "dry-run"]


def test_a_run_as_it_is_meant_is_never_left_out(ask):
    def train(*_, **__):
        raise ConfigError("results cannot be written")

    with pytest.raises(ConfigError, match="results cannot be written"):
        ask(iter([watch(1.0)]), iter([watch(1.0)]), train=train)


def test_a_machine_that_fails_is_an_error(ask):
    def dies():
        raise HostError("QEMU ended")
        yield

    with pytest.raises(HostError):
        ask(iter([watch(1.0)]), dies())


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("kind: serve\nserve: {port: 80}\n", "kind: serve"),
        ("checkpoint: {size: 1GiB}\n", "checkpoint"),
        ("network: {allow: [example.org:443]}\n", "network"),
        (f"parties: {{clinic: {'9d' * 32}}}\nrecipients: [{RECIPIENT}]\n", "parties"),
    ],
)
def test_a_job_that_only_a_confidential_vm_runs_cannot_be_compared(text, named):
    with pytest.raises(ConfigError, match=f"has {named}; a job without is required"):
        require_comparable(parse_job_file(JOB_YAML + text))


def test_nor_one_with_gpus_and_all_reasons_are_told():
    text = JOB_YAML.replace("cpu: EPYC-Genoa", "cpu: EPYC-Genoa, gpus: 1") + "checkpoint: {size: 1GiB}\n"
    with pytest.raises(ConfigError, match=r"has checkpoint, resources\.gpus; "):
        require_comparable(parse_job_file(text))


def test_a_comparison_asks_as_well(ask):
    with pytest.raises(ConfigError, match="has checkpoint"):
        ask(iter(()), iter(()), text=JOB_YAML + "checkpoint: {size: 1GiB}\n")
