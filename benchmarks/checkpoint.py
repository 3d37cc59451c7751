# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What checkpoints cost: one job three times, that computes and saves its state after each step, and times both itself.

    python -m benchmarks.checkpoint [--mib 16] [--steps 20] [--every 5s] [--json]

    memory   saves to /scratch: memory, gone with the machine
    volume   saves to /checkpoint, and syncs: encrypted and authenticated sectors, under btrfs
    marked   the same, and its owner has the volume marked every few seconds, so that no older state is taken

Under TCG the guest's cryptography is emulated, so these are upper bounds; there is no bar.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.first_output import Clock
from cvmtool.config import Settings, load_settings
from cvmtool.flows.images import bring_up_to_date
from cvmtool.flows.jobmetrics import parse_metrics
from cvmtool.flows.platform import dry_run
from cvmtool.flows.prepare import prepare
from cvmtool.flows.train import train
from cvmtool.formats.control import LogRecord
from cvmtool.image.bundle import Bundle

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("memory", "volume", "marked")
WORK = """
import hashlib, json, os, sys, time
folder, size, steps = sys.argv[1], int(sys.argv[2]) << 20, int(sys.argv[3])
state = os.urandom(size)
for step in range(1, steps + 1):
    begun = time.monotonic()
    for _ in range(100_000):
        hashlib.sha256(state[:64]).digest()
    computed = time.monotonic()
    with open(f"{folder}/new", "wb") as file:
        file.write(state)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{folder}/new", f"{folder}/state")
    took = {"compute": computed - begun, "save": time.monotonic() - computed}
    print(json.dumps({"step": step, "steps": steps, **took}), flush=True)
open("/outputs/done", "wb").write(b"done")
"""


@dataclass
class Saves(Clock):
    """Notes what the container says of each step, besides when the stages of its run began and ended."""

    held: bytes = b""

    def log(self, record: LogRecord) -> None:
        self.held += record.data

    def medians(self) -> dict[str, float]:
        """Return the medians of a step, in seconds, and what unlocking took, in which the volume is made."""
        found = [values for values in map(parse_metrics, self.held.split(b"\n")) if values]
        medians = {name: statistics.median(float(values[name]) for values in found) for name in ("compute", "save")}
        unlocked = self.at["unlock done"] - self.at["unlock begun"]
        return {name: round(value, 3) for name, value in {"unlock": unlocked, **medians}.items()}


def job_text(where: str, *, mib: int, steps: int, every: str) -> str:
    """Return the job: the example's container with another program."""
    digits = ROOT / "examples" / "digits"
    head = (digits / "job.yaml").read_text("utf-8").split("\ncommand:")[0]
    head = head.replace("oci-archive:container.oci.tar", f"oci-archive:{digits / 'container.oci.tar'}")
    target, volume = "/scratch", ""
    if where != "memory":
        target = "/checkpoint"
        volume = f"checkpoint: {{size: {256 + 8 * mib}MiB, every: {every if where == 'marked' else '1h'}}}\n"
    program = WORK.replace("\n", "\n    ")
    return (
        f'{head}\ncommand:\n  - python3\n  - -c\n  - |{program}\n  - "{target}"\n  - "{mib}"\n  - "{steps}"\n'
        f"outputs: {{done: {{kind: file, max: 1KiB}}}}\nresources: {{vcpus: 1, memory: 1GiB}}\n"
        f"limits: {{scratch: {3 * mib}MiB}}\n{volume}"
    )


def run(text: str, bundle: Bundle, settings: Settings) -> dict[str, float]:
    """Run a job once; return what it took."""
    with tempfile.TemporaryDirectory() as name:
        job, clock = Path(name) / "job.yaml", Saves()
        job.write_text(text, "utf-8")
        prepared = prepare(job, bundle, settings=settings, reporter=clock)
        results = Path(name) / "results"
        train(prepared, platform=dry_run(settings), settings=settings, reporter=clock, results=results)
    return clock.medians()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=16, help="size of a state")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", default="5s", help="time between two marks")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    settings = load_settings()
    bundle = bring_up_to_date("base", settings, progress=lambda _: None, notice=lambda _: None)
    found = {}
    for where in PLACES:
        text = job_text(where, mib=options.mib, steps=options.steps, every=options.every)
        found[where] = run(text, bundle, settings)
    if options.json:
        print(json.dumps({"schema": "cvmtool/bench-checkpoint/v1", "mib": options.mib, "seconds": found}))
        sys.exit(0)
    for where, seconds in found.items():
        rate = options.mib / seconds["save"]
        told = "  ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
        print(f"{where:<8} {told}  ({rate:.0f} MiB/s)")


if __name__ == "__main__":
    main()
