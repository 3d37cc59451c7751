# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.fuzz [--runs N] [--jobs N] [--out DIR] [NAME ...]`: coverage-guided fuzzing, a process a parser.

Needs atheris (`pip install -e '.[fuzz]'`). Every parser of `tests/fuzz/parsers.py`, or those whose names are given, gets N
inputs (a million): libFuzzer's guided by the branches of cvmtool that they reach, half of them changed by
`tests/fuzz/mutate.py` where their structure is. DIR (build/fuzz) keeps the corpus of each parser for the next run, and what
crashed, ran out of memory or took over two minutes. Exit 1: something did.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

_LEAST, _MOST = 1 << 12, 1 << 16  # bytes: an input may be twice as long as a sample, within these
_ONE = "CVMTOOL_FUZZ_ONE"


def fuzz_one(name: str, runs: int, out: Path) -> None:
    """Fuzz one parser in this process; libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["cvmtool"], enable_loader_override=False):
        from tests.fuzz.mutate import mutate
        from tests.fuzz.parser import show
        from tests.fuzz.parsers import PARSERS
    parser = PARSERS[name]
    corpus = out / name / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    samples = parser.seeds()
    for number, sample in enumerate(samples):
        (corpus / f"sample-{number}").write_bytes(sample)

    def change(data: bytes, most: int, number: int) -> bytes:
        random = Random(number)
        if random.random() < 0.5:
            return atheris.Mutate(data, most)
        return mutate(data, random, samples)[:most]

    def one_input(data: bytes) -> None:
        show(parser, data)

    longest = min(_MOST, max(_LEAST, 2 * max(map(len, samples))))
    options = [f"-runs={runs}", f"-max_len={longest}", "-timeout=120", "-rss_limit_mb=2048", "-print_final_stats=1"]
    atheris.Setup(["fuzz", *options, f"-artifact_prefix={out / name}/", str(corpus)], one_input, custom_mutator=change)
    atheris.Fuzz()


def fuzz(name: str, runs: int, out: Path) -> bool:
    """Fuzz one parser in a process of its own, print a line about it, and say whether it held."""
    (out / name).mkdir(parents=True, exist_ok=True)
    log = out / name / "log"
    started = time.monotonic()
    with log.open("wb") as stream:
        environment = {**os.environ, _ONE: name}
        command = [sys.executable, "-m", "tests.fuzz", "--runs", str(runs), "--out", str(out)]
        code = subprocess.run(command, env=environment, stdout=stream, stderr=stream, check=False).returncode
    said = log.read_text("utf-8", "replace")
    done = re.search(r"^stat::number_of_executed_units: *(\d+)", said, re.MULTILINE)
    reached = re.findall(r"cov: (\d+) ft: (\d+)", said)
    held = code == 0 and done is not None and int(done[1]) >= runs
    count, branches = (done[1] if done else "0"), (reached[-1][0] if reached else "0")
    seconds = time.monotonic() - started
    print(
        f"{name:44} {count:>9} inputs {branches:>5} edges {seconds:6.0f} s  {'held' if held else f'FAILED, see {log}'}",
        flush=True,
    )
    return held


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz every parser of hostile bytes.")
    options.add_argument("names", nargs="*", metavar="NAME", help="a parser of tests/fuzz/parsers.py (default: all)")
    options.add_argument("--runs", type=int, default=1_000_000, help="inputs for each parser")
    options.add_argument("--jobs", type=int, default=os.cpu_count(), help="parsers at a time")
    options.add_argument("--out", type=Path, default=Path("build/fuzz"), help="corpora, logs and findings")
    given = options.parse_args()
    if one := os.environ.get(_ONE):
        fuzz_one(one, given.runs, given.out)
        return 0
    from tests.fuzz.parsers import PARSERS

    names = given.names or list(PARSERS)
    with ThreadPoolExecutor(given.jobs) as pool:
        held = list(pool.map(lambda name: fuzz(name, given.runs, given.out), names))
    print(f"{sum(held)} of {len(held)} parsers held")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
