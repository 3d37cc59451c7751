# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""How long it takes the guest to seal an output to a recipient, compared with `age -r` on the same bytes in the same run.

    python -m benchmarks.export            rounds of age and of the guest's stream, 1 GiB
    python -m benchmarks.export --mib 256  of another size

Each is a whole process, the guest's with its interpreter, that reads a file in memory (`--folder`) and writes to /dev/null: what is
sealed goes on into a connection, and a file system would only add the same to both. `age` is that of the PATH (Debian's package
`age`); it opens what the guest made before anything is measured. Bars, for the medians: age takes at
least 1.5 times as long as the guest, whose process has at most 64 MiB at its largest. Times are of the clock, so they need an idle
machine; the processors' time stands beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.sealing import Taken, measured
from cvmtool.owner.age import parse_recipient

AGE_BAR = 1.5
MEMORY_BAR = 64  # MiB
EXPORT = """
import os, sys
from cvmtool.guest.age import AgeFile
source = os.open(sys.argv[1], os.O_RDONLY)
size = os.fstat(source).st_size
sealed = AgeFile(lambda into, at: os.preadv(source, [into], at), size, (bytes.fromhex(sys.argv[3]),))
with open(sys.argv[2], "wb", buffering=0) as out:
    for piece in sealed.read_from(0):
        out.write(piece)
"""


def main() -> None:
    """Measure rounds, print and judge them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", default="/dev/shm")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not shutil.which("age") or not shutil.which("age-keygen"):
        raise SystemExit("age is not installed: apt-get install age")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        source, out, identity = folder / "source", folder / "out", folder / "identity"
        with source.open("wb") as file:
            for _ in range(options.mib):
                file.write(os.urandom(1 << 20))
        subprocess.run(["age-keygen", "-o", str(identity)], check=True, capture_output=True)
        made = subprocess.run(["age-keygen", "-y", str(identity)], check=True, capture_output=True, text=True)
        recipient = made.stdout.strip()
        export = [sys.executable, "-c", EXPORT, str(source), str(out), parse_recipient(recipient).hex()]
        measured(export)
        require_opened(out, identity, source)
        out.unlink()
        commands = {
            "age": ["age", "-r", recipient, "-o", os.devnull, str(source)],
            "export": [os.devnull if word == str(out) else word for word in export],
        }
        rounds = [{tool: measured(command) for tool, command in commands.items()} for _ in range(options.rounds)]
    report(rounds, as_json=options.json)


def require_opened(sealed: Path, identity: Path, source: Path) -> None:
    """End with an error unless age opens what was sealed, and finds the source."""
    opening = subprocess.Popen(["age", "-d", "-i", str(identity), str(sealed)], stdout=subprocess.PIPE)
    same = subprocess.run(["cmp", "-s", "-", str(source)], stdin=opening.stdout, check=False).returncode == 0
    if opening.wait() or not same:
        raise SystemExit("age does not open what the guest sealed")


def report(rounds: list[dict[str, Taken]], *, as_json: bool) -> None:
    """Print the rounds and their medians; exit with 1 if a bar is missed."""
    ratio = {
        "wall": round(statistics.median(taken["age"].wall / taken["export"].wall for taken in rounds), 2),
        "cpu": round(statistics.median(taken["age"].cpu / taken["export"].cpu for taken in rounds), 2),
    }
    peak = max(taken["export"].peak for taken in rounds)
    passed = ratio["wall"] >= AGE_BAR and peak <= MEMORY_BAR
    if as_json:
        document = {
            "schema": "cvmtool/bench-export/v1",
            "rounds": [{tool: [each.wall, each.cpu, each.peak] for tool, each in taken.items()} for taken in rounds],
            "age_over_export": ratio,
            "peak_mib": round(peak, 1),
            "bars": {"age_over_export": AGE_BAR, "peak_mib": MEMORY_BAR},
        }
        print(json.dumps(document))
    else:
        for taken in rounds:
            print("  ".join(f"{tool} {each.wall:6.2f} s ({each.cpu:.2f} s cpu)" for tool, each in taken.items()))
        print(f"age / export {ratio['wall']:.2f} (at least {AGE_BAR}); of processors' time {ratio['cpu']:.2f}")
        print(f"export at its largest {peak:.0f} MiB (at most {MEMORY_BAR})")
    raise SystemExit(0 if passed else 1)


if __name__ == "__main__":
    main()
