# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""How long it takes to seal a pack, compared with `qemu-img convert -O luks` and `cp` of the same bytes in the same run.

    python -m benchmarks.sealing            rounds of cp, qemu-img and a pack of 1 GiB that does not compress
    python -m benchmarks.sealing --mib 256  of another size

Each is a whole process, pack's interpreter and programs included; every file lies in memory (`--folder`). qemu-img makes LUKS1
without a hash tree and without compression; a pack is squashfs in LUKS2 under dm-verity. Bars, for the medians: qemu-img takes
at least 4 times as long as a pack, a pack at most 2.5 times as long as cp, and its process at most 150 MiB at its largest.
Times are of the clock, so they need an idle machine; the processors' time stands beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

QEMU_BAR = 4.0
CP_BAR = 2.5
MEMORY_BAR = 150  # MiB
PACK = """
import sys
from pathlib import Path
from cvmtool.data.pack import TreeSource, make_pack
from cvmtool.formats.pack import Role
source, out = map(Path, sys.argv[1:])
make_pack(TreeSource(path=source), out, name="data", role=Role.INPUT, passphrase_for=lambda _uuid: bytes(32))
"""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a process took, with those it started: seconds of the clock and of processors, MiB of the largest of them."""

    wall: float
    cpu: float
    peak: float


def measured(arguments: list[str]) -> Taken:
    """Run a program in a process group of its own account."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.01)
    wall, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(f"{arguments[0]} ended with {process.returncode}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Taken(wall, cpu, peak / 1024)


def resident(pid: int) -> int:
    """Return the KiB that a process holds in memory now, files in memory included where they are mapped."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def main() -> None:
    """Measure rounds, print and judge them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", default="/dev/shm")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        source, out = folder / "source", folder / "out"
        with source.open("wb") as file:
            for _ in range(options.mib):
                file.write(os.urandom(1 << 20))
        luks = ["qemu-img", "convert", "-O", "luks", "--object", "secret,id=s,data=abc", "-o", "key-secret=s"]
        commands = {
            "cp": ["cp", str(source), str(out)],
            "qemu-img": [*luks, str(source), str(out)],
            "pack": [sys.executable, "-c", PACK, str(source), str(out)],
        }
        for _ in range(options.rounds):
            taken = {}
            for tool, command in commands.items():
                taken[tool] = measured(command)
                out.unlink()
            rounds.append(taken)
    report(rounds, as_json=options.json)


def report(rounds: list[dict[str, Taken]], *, as_json: bool) -> None:
    """Print the rounds and their medians; exit with 1 if a bar is missed."""

    def medians(one: str, other: str) -> dict[str, float]:
        wall = statistics.median(taken[one].wall / taken[other].wall for taken in rounds)
        cpu = statistics.median(taken[one].cpu / taken[other].cpu for taken in rounds)
        return {"wall": round(wall, 2), "cpu": round(cpu, 2)}

    ratios = {"qemu_img_over_pack": medians("qemu-img", "pack"), "pack_over_cp": medians("pack", "cp")}
    peak = max(taken["pack"].peak for taken in rounds)
    passed = (
        ratios["qemu_img_over_pack"]["wall"] >= QEMU_BAR
        and ratios["pack_over_cp"]["wall"] <= CP_BAR
        and peak <= MEMORY_BAR
    )
    if as_json:
        bars = {"qemu_img_over_pack": QEMU_BAR, "pack_over_cp": CP_BAR, "peak_mib": MEMORY_BAR}
        print(json.dumps({"schema": "cvmtool/bench-sealing/v1", **ratios, "peak_mib": round(peak, 1), "bars": bars}))
    else:
        for taken in rounds:
            print("   ".join(f"{tool} {it.wall:.2f} s ({it.cpu:.2f} s of CPU)" for tool, it in taken.items()))
        for name, ratio in ratios.items():
            print(f"{name.replace('_', ' ')}: {ratio['wall']} by the clock, {ratio['cpu']} by CPU")
        print(f"a pack's process held {peak:.0f} MiB at most (bar: {MEMORY_BAR})")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
