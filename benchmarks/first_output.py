# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""How long until the container speaks, as a multiple of a bare boot of the same firmware, kernel and initrd. Paired, in one run.

    .venv/bin/python benchmarks/first_output.py [--pairs 5] [--json]

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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cvmtool.config import load_settings
from cvmtool.flows.images import bring_up_to_date
from cvmtool.flows.platform import dry_run
from cvmtool.flows.prepare import Prepared, prepare
from cvmtool.flows.train import train
from cvmtool.formats.manifest import Mode
from cvmtool.host.accelerator import Acceleration

BAR = 3.0
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Clock:
    """A reporter that notes when things happened."""

    at: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, stage, text):
        self.at.setdefault(f"{stage.value} begun", time.monotonic())
        yield
        self.at.setdefault(f"{stage.value} done", time.monotonic())

    def log(self, record):
        self.at.setdefault("first output", time.monotonic())

    def step(self, text): ...
    def progress(self, done, total): ...
    def notice(self, text): ...
    def verdict(self, guest): ...


def whole(prepared: Prepared, settings) -> dict[str, float]:
    """Run the job; return seconds from the VM's start to the stages' ends and the first output."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as results:
        train(prepared, platform=dry_run(settings), settings=settings, reporter=clock, results=Path(results))
    # The VM runs when `start` is done; libvirt's own work before that (some 0.4 s) is in neither A nor B.
    begun = clock.at["start done"]
    names = ("boot done", "attest done", "unlock done", "first output")
    return {name: round(clock.at[name] - begun, 3) for name in names}


def bare(prepared: Prepared, acceleration: Acceleration) -> float:
    """Boot firmware, kernel and initrd alone; return seconds to the initrd's first word."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        launch = prepared.launch(Mode.DRYRUN)
        simulation = launch.simulation(name, accelerator=acceleration.domain_type)
        spec = launch.spec("bare", name, emulator="qemu-system-x86_64", launch=simulation)
        (folder / "hashes.bin").write_bytes(launch.hashes.table())
        console = folder / "console.log"
        console.touch()
        arguments = [
            spec.emulator,
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-machine",
            "q35",
        ]
        arguments += [
            "-accel",
            "tcg" if acceleration.domain_type == "qemu" else "kvm",
            "-cpu",
            spec.cpu,
            "-m",
            str(spec.memory_mib),
        ]
        arguments += ["-bios", str(prepared.bundle.firmware), "-kernel", str(prepared.bundle.kernel)]
        arguments += ["-initrd", str(prepared.bundle.initrd), "-append", spec.cmdline, "-serial", f"file:{console}"]
        arguments += ["-device", f"loader,addr={spec.hash_table_gpa:#x},file={folder / 'hashes.bin'},force-raw=on"]
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--job", type=Path, default=ROOT / "examples" / "digits" / "job.yaml")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    settings = load_settings()
    bundle = bring_up_to_date("base", settings, progress=lambda _: None, notice=lambda _: None)
    prepared = prepare(arguments.job, bundle, settings=settings, reporter=Clock())
    acceleration = Acceleration(domain_type="qemu", reason="the same for A and B")
    whole(prepared, settings)  # caches warm, for both
    pairs = []
    for _ in range(arguments.pairs):
        run = whole(prepared, settings)
        pairs.append({**run, "bare": round(bare(prepared, acceleration), 3)})
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
