# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Benchmarks run, small, and judge what they measured. (Their bars are not judged here: tests know no clock.)"""

import json
import shutil

import pytest

from benchmarks import checkpoint, export, sealing
from benchmarks.sealing import Taken
from cvmtool.formats.control import LogRecord, Stream
from cvmtool.owner.jobfile import parse_job_file


def taken(cp: float, luks: float, pack: float, peak: float = 40.0) -> dict[str, Taken]:
    return {
        "cp": Taken(wall=cp, cpu=cp, peak=1),
        "qemu-img": Taken(wall=luks, cpu=luks, peak=1),
        "pack": Taken(wall=pack, cpu=pack, peak=peak),
    }


def judged(capsys, *rounds) -> tuple[int, dict]:
    with pytest.raises(SystemExit) as ended:
        sealing.report(list(rounds), as_json=True)
    return ended.value.code, json.loads(capsys.readouterr().out)


def test_medians_of_rounds_are_judged(capsys):
    code, document = judged(capsys, taken(1, 8, 2), taken(1, 9, 2), taken(1, 2, 2))
    assert code == 0
    assert document["qemu_img_over_pack"]["wall"] == 4
    assert document["pack_over_cp"]["wall"] == 2


@pytest.mark.parametrize("missed", [taken(1, 7.9, 2), taken(1, 11, 2.6), taken(1, 8, 2, peak=151)])
def test_a_bar_that_is_missed_shows_in_the_exit_code(capsys, missed):
    assert judged(capsys, missed)[0] == 1


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_sealing_is_measured(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["sealing", "--mib", "1", "--rounds", "1", "--json"])
    with pytest.raises(SystemExit):
        sealing.main()
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "cvmtool/bench-sealing/v1"
    assert document["peak_mib"] > 1


@pytest.mark.parametrize(("where", "every"), [("memory", None), ("volume", 3600), ("marked", 5)])
def test_the_checkpoints_job_is_one_and_its_program_a_program(where, every):
    job = parse_job_file(checkpoint.job_text(where, mib=16, steps=20, every="5s"))
    assert (job.checkpoint.every_seconds if job.checkpoint else None) == every
    _, _, program, target, *numbers = job.command
    compile(program, "program", "exec")
    assert (target, numbers) == ("/scratch" if where == "memory" else "/checkpoint", ["16", "20"])


def test_a_step_s_times_are_found_in_what_the_container_prints():
    saves = checkpoint.Saves(at={"unlock begun": 1.0, "unlock done": 3.5})
    for line in (
        b'begun\n{"step": 1, "compute": 1.0, "sa',
        b've": 0.1}\n',
        b'{"step": 2, "compute": 3.0, "save": 0.3}\n',
    ):
        saves.log(LogRecord(stream=Stream.STDOUT, microseconds=0, data=line))
    assert saves.medians() == {"unlock": 2.5, "compute": 2.0, "save": 0.2}


def exported(capsys, age: float, ours: float, peak: float = 40.0) -> tuple[int, dict]:
    taken = {"age": Taken(wall=age, cpu=age, peak=8), "export": Taken(wall=ours, cpu=ours, peak=peak)}
    with pytest.raises(SystemExit) as ended:
        export.report([taken], as_json=True)
    return ended.value.code, json.loads(capsys.readouterr().out)


def test_the_export_is_held_to_its_bars(capsys):
    code, document = exported(capsys, 1.5, 1.0)
    assert (code, document["age_over_export"]["wall"]) == (0, 1.5)
    assert exported(capsys, 1.49, 1.0)[0] == 1
    assert exported(capsys, 3.0, 1.0, peak=64.5)[0] == 1


@pytest.mark.skipif(shutil.which("age") is None, reason="age is not installed")
def test_the_export_is_measured_against_age(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["export", "--mib", "1", "--rounds", "1", "--folder", str(tmp_path), "--json"])
    with pytest.raises(SystemExit):
        export.main()
    assert json.loads(capsys.readouterr().out)["schema"] == "cvmtool/bench-export/v1"
