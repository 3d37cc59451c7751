# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""CPU time and peak memory of cvmtool itself in a dry-run training of the example.

    python -m benchmarks.own_cpu [--runs 3] [--json]

`cvmtool train` as a whole process, from its first import to its exit: user and system time of its own threads, in which libvirt's
client and embedded driver and SSH have their part; not QEMU, and not the programs that build images and seal packs, which are
children. Cryptography is taken off, by samples: every 2 ms of CPU, whether a frame of the stack belongs to the library, or
its line calls a hash, a signature or a cipher. The image and the container are built and sealed before. The least of some runs
counts: what a shared core adds is not ours.
The bars are at most 1 s and at most 150 MiB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS, MEBIBYTES = 1.0, 150.0
ROOT = Path(__file__).resolve().parents[1]
# It runs in the process that is measured, and imports nothing that the command does not.
INSIDE = r"""
import collections, linecache, re, signal, sys
seen = collections.Counter()
def look(_number, frame):
    at = frame.f_code.co_filename, frame.f_lineno or 0
    while frame is not None:
        name = frame.f_code.co_filename
        if "/cryptography/" in name or name.endswith("/hashlib.py"):
            at = None
            break
        frame = frame.f_back
    seen[at] += 1
signal.signal(signal.SIGPROF, look)
signal.setitimer(signal.ITIMER_PROF, 0.002, 0.002)
from cvmtool.cli.app import main
try:
    status = main()
except SystemExit as ended:
    status = ended.code
signal.setitimer(signal.ITIMER_PROF, 0)
import resource
used = resource.getrusage(resource.RUSAGE_SELF)
calls = re.compile(r"sha(256|384|512)|digest\(|\.update\(|\.sign\(|\.verify\(|derive|_private_key\(|encrypt|decrypt|exchange\(")
ours = sum(n for at, n in seen.items() if at and not calls.search(linecache.getline(*at)))
print(status or 0, used.ru_utime, used.ru_stime, used.ru_maxrss / 1024, 1 - ours / max(seen.total(), 1))
"""


def measure() -> dict[str, float]:
    """Train the example once; return the CPU seconds and the peak memory of the process."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["train", "examples/digits/job.yaml", "--dry-run", "--results", f"{folder}/results"]
        ended = subprocess.run(
            [sys.executable, "-c", INSIDE, *command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
        )
    status, user, system, peak, share = map(float, ended.stdout.split("\n")[-2].split())
    if status:
        sys.exit("the training failed; make demo builds what it needs")
    own = (user + system) * (1 - share)
    return {"user": user, "system": system, "cryptography": share, "own": own, "mebibytes": peak}


def main() -> int:
    parser = argparse.ArgumentParser(description="CPU time and memory of cvmtool itself in a run.")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    runs = [measure() for _ in range(arguments.runs)]
    least = min(run["own"] for run in runs)
    most = max(run["mebibytes"] for run in runs)
    met = least <= SECONDS and most <= MEBIBYTES
    if arguments.json:
        print(json.dumps({"runs": runs, "seconds": least, "mebibytes": most, "bars": [SECONDS, MEBIBYTES], "met": met}))
        return 0
    for run in runs:
        print(
            f"{run['user']:.2f} s user, {run['system']:.2f} s system, {run['cryptography']:.0%} of it cryptography: "
            f"{run['own']:.2f} s; {run['mebibytes']:.0f} MiB"
        )
    print(
        f"least {least:.2f} s (bar {SECONDS:g}), most {most:.0f} MiB (bar {MEBIBYTES:g}): {'met' if met else 'MISSED'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
