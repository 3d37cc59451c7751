# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""How long until the container speaks, as a multiple of a bare boot of the same firmware, kernel and initrd. Paired, in one run.

    python -m benchmarks.first_output [--pairs 5] [--json]

A: from the start of the VM to the container's first byte at the owner: boot, report, verification, SSH, keys, dm-verity,
   LUKS, crun.
B: from the start of QEMU to the initrd's first word, with the same firmware, kernel, initrd, command line, CPU model and
   memory, and nothing else. A and B alternate, and the ratio is taken pair by pair, so a drifting machine does not decide.
The bar is a median ratio of at most 3.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cvmtool.config import Settings, load_settings
from cvmtool.flows.images import bring_up_to_date
from cvmtool.flows.platform import dry_run
from cvmtool.flows.prepare import Prepared, prepare
from cvmtool.flows.reporter import Stage
from cvmtool.flows.train import train
from cvmtool.formats.control import LogRecord
from cvmtool.formats.manifest import Mode
from cvmtool.owner.appraise import VerifiedGuest

BAR = 3.0
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Clock:
    """A reporter that notes when things happened."""

    at: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, stage: Stage, text: str) -> Iterator[None]:
        self.at.setdefault(f"{stage.value} begun", time.monotonic())
        yield
        self.at.setdefault(f"{stage.value} done", time.monotonic())

    def log(self, record: LogRecord) -> None:
        self.at.setdefault("first output", time.monotonic())

    def step(self, text: str) -> None: ...
    def progress(self, done: int, total: int) -> None: ...
    def usage(self, usage: Mapping[str, int]) -> None: ...
    def notice(self, text: str) -> None: ...
    def verdict(self, guest: VerifiedGuest) -> None: ...


def whole(prepared: Prepared, settings: Settings) -> dict[str, float]:
    """Run the job; return seconds from the VM's start to the stages' ends and the first output."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as results:
        train(prepared, platform=dry_run(settings), settings=settings, reporter=clock, results=Path(results))
    # The VM runs when `start` is done; libvirt's own work before that (some 0.4 s) is in neither A nor B.
    begun = clock.at["start done"]
    names = ("boot done", "attest done", "unlock done", "first output")
    return {name: round(clock.at[name] - begun, 3) for name in names}


def bare(prepared: Prepared) -> float:
    """Boot firmware, kernel and initrd alone, emulated as A is; return seconds to the initrd's first word."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        console = folder / "console.log"
        console.touch()
        arguments = bare_machine(prepared, folder, console)
        begun = time.monotonic()
        with subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as qemu:
            try:
                while b"CVM-STAGE initrd" not in console.read_bytes():
                    if qemu.poll() is not None:
                        sys.exit("QEMU ended before the initrd spoke")
                    time.sleep(0.01)
                return time.monotonic() - begun
            finally:
                qemu.kill()


def bare_machine(prepared: Prepared, folder: Path, console: Path) -> list[str]:
    """Return QEMU's command line for a bare boot, its table of hashes in `folder`; the initrd speaks on `console`."""
    launch = prepared.launch(Mode.DRYRUN)
    simulation = launch.simulation(str(folder), accelerator="qemu")
    spec = launch.spec("bare", str(folder), emulator="qemu-system-x86_64", launch=simulation)
    Path(simulation.hash_table).write_bytes(launch.hashes.table())
    arguments = [spec.emulator, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35"]
    arguments += ["-accel", "tcg", "-cpu", spec.cpu, "-m", str(spec.memory_mib), "-bios", str(prepared.bundle.firmware)]
    arguments += ["-kernel", str(prepared.bundle.kernel), "-initrd", str(prepared.bundle.initrd)]
    arguments += ["-append", spec.cmdline, "-serial", f"file:{console}"]
    loader = f"loader,addr={simulation.hash_table_gpa:#x},file={simulation.hash_table},force-raw=on"
    return [*arguments, "-device", loader]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--job", type=Path, default=ROOT / "examples" / "digits" / "job.yaml")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    settings = load_settings()
    bundle = bring_up_to_date("base", settings, progress=lambda _: None, notice=lambda _: None)
    prepared = prepare(arguments.job, bundle, settings=settings, reporter=Clock())
    whole(prepared, settings)  # caches warm, for both
    pairs = []
    for _ in range(arguments.pairs):
        run = whole(prepared, settings)
        pairs.append({**run, "bare": round(bare(prepared), 3)})
        pairs[-1]["ratio"] = round(pairs[-1]["first output"] / pairs[-1]["bare"], 3)
        if not arguments.json:
            print("  ".join(f"{name} {value}" for name, value in pairs[-1].items()), flush=True)
    median = statistics.median(pair["ratio"] for pair in pairs)
    if arguments.json:
        print(
            json.dumps({"schema": "cvmtool/bench-first-output/v1", "pairs": pairs, "median_ratio": median, "bar": BAR})
        )
    else:
        print(f"first output takes {median:.2f} x a bare boot (bar: {BAR:.0f})")
    sys.exit(0 if median <= BAR else 1)


if __name__ == "__main__":
    main()
