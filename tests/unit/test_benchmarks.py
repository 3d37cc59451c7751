# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Benchmarks run, small, and judge what they measured. (Their bars are not judged here: tests know no clock.)"""

import json
import shutil

import pytest

from benchmarks import sealing
from benchmarks.sealing import Taken


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
