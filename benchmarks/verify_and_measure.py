# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What verifying and measuring cost, as ratios to a baseline of the same run.

    .venv/bin/python benchmarks/verify_and_measure.py [--firmware OVMF.amdsev.fd] [--vectors DIR] [--rounds 15] [--json]

Each pair alternates (ours, theirs, ours, theirs, ...), and the ratio is the median of the pairwise ratios, so that a drifting
machine does not decide. Times are processor time, of started processes too, so that other work on the machine counts less.
Bars:

    fleet     digests for 1..512 vCPUs against one call of sev-snp-measure for each    >= 500 (theirs is sampled at 17 counts)
    warm      one digest with a warm store against sev-snp-measure                     >= 20
    stored    one digest of a kept image, by a process that has hashed nothing: manifest and seed on disk
              against sev-snp-measure                                                  >= 20
    cold      one digest from the files against sev-snp-measure                        >= 1.2
    cached    a real report verified and judged, chain cached, against bare P-384      <= 1.25
    cold-verify   the same with nothing cached                                         <= 2.2
    help      the process of `cvmtool --help` against an empty Typer application's     <= 1.3
    raw       the process of `cvmtool measure raw`, its digest's time taken off        <= 1.3
    raw-option    the same against a Typer application whose command has one option          <= 1.3
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from sevsnpmeasure.guest import calc_launch_digest
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vmm_types import VMMType

from cvmtool.config import load_settings
from cvmtool.flows.seeds import SeedStore
from cvmtool.formats.report import SIGNED_BYTES, parse_report
from cvmtool.measure.hashes import KernelHashes, kernel_hashes
from cvmtool.measure.launch import launch_digest, launch_digests
from cvmtool.measure.store import MeasureStore
from cvmtool.measure.vmsa import CPU_SIGNATURES
from cvmtool.owner.amdroots import AmdRoots
from cvmtool.owner.certificate import p384_key, parse_certificate
from cvmtool.owner.chain import ChainCache
from cvmtool.owner.judge import judge
from cvmtool.owner.policy import RevocationRule, baseline
from cvmtool.owner.verify import verify_report

ROOT = Path(__file__).resolve().parents[1]
BARS = {
    "fleet": (">=", 500.0),
    "warm": (">=", 20.0),
    "stored": (">=", 20.0),
    "cold": (">=", 1.2),
    "cached": ("<=", 1.25),
    "cold-verify": ("<=", 2.2),
    "help": ("<=", 1.3),
    "raw": ("<=", 1.3),
    "raw-option": ("<=", 1.3),
}
CPU = "EPYC-Genoa"
COUNTS = (1, *range(32, 513, 32))
OPTION_APP = (
    "import typer\nfrom pathlib import Path\nfrom typing import Annotated\napp = typer.Typer()\n@app.command()\n"
    "def main(file: Annotated[Path, typer.Option()]) -> None:\n    pass\napp()\n"
)
EMPTY_APP = "import typer\napp = typer.Typer()\n@app.command()\ndef main() -> None:\n    pass\napp()\n"


def processor_time() -> float:
    """Seconds that this process and those it waited for have computed."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def timed(work: Callable[[], object], repeat: int = 1) -> float:
    """Seconds of one call, as the mean of `repeat`."""
    start = processor_time()
    for _ in range(repeat):
        work()
    return (processor_time() - start) / repeat


def paired(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int, repeat: tuple[int, int] = (1, 1)
) -> tuple[float, float, float]:
    """Median ours / theirs of alternating pairs, and both medians in seconds."""
    ours(), theirs()
    pairs = [(timed(ours, repeat[0]), timed(theirs, repeat[1])) for _ in range(rounds)]
    return (
        statistics.median(a / b for a, b in pairs),
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
    )


def measuring(firmware: Path, rounds: int) -> dict[str, tuple[float, float, float]]:
    """Launch digests. A kernel of 12 MB and an initrd of 8 MB of fixed bytes stand for real ones."""
    kernel, initrd, line = b"kernel--" * 1_500_000, b"initrd--" * 1_000_000, "console=ttyS0 root=/dev/mapper/root"
    image = firmware.read_bytes()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kernel").write_bytes(kernel)
        (folder / "initrd").write_bytes(initrd)
        files = (str(firmware), str(folder / "kernel"), str(folder / "initrd"), line)

        def theirs(vcpus: int = 4) -> bytes:
            signature = CPU_SIGNATURES[CPU]
            return bytes(calc_launch_digest(SevMode.SEV_SNP, vcpus, signature, *files, 1, vmm_type=VMMType.QEMU))

        def cold() -> bytes:
            parts = [Path(file).read_bytes() for file in files[:3]]
            return launch_digest(parts[0], hashes=kernel_hashes(parts[1], parts[2], line), cpu=CPU, vcpus=4)

        store = MeasureStore()

        def warm() -> bytes:
            return launch_digest(store.seed(image), hashes=store.kernel_hashes(kernel, initrd, line), cpu=CPU, vcpus=4)

        seeds = SeedStore(folder / "seeds")
        sums = [hashlib.sha256(part).hexdigest() for part in (image, kernel, initrd)]
        seeds.seed(image)

        def stored() -> bytes:
            # What `measure explain` does for a kept image: the manifest says every file's SHA-256.
            known = KernelHashes(
                kernel=bytes.fromhex(sums[1]),
                initrd=bytes.fromhex(sums[2]),
                cmdline=hashlib.sha256(line.encode() + b"\0").digest(),
            )
            return launch_digest(seeds.seed_of_file(firmware, sums[0]), hashes=known, cpu=CPU, vcpus=4)

        def fleet() -> tuple[bytes, ...]:
            return launch_digests(image, hashes=kernel_hashes(kernel, initrd, line), cpu=CPU, vcpus=512)

        every = fleet()
        if (
            not all(theirs(count) == every[count - 1] for count in COUNTS)
            or not theirs() == cold() == warm() == stored()
        ):
            sys.exit("the digests differ: a fast wrong answer is no answer")
        # Their time for all counts: 512 times the mean over counts that are spread evenly.
        their_fleet = 512 * statistics.mean(timed(partial(theirs, count)) for count in COUNTS)
        our_fleet = statistics.median(timed(fleet) for _ in range(rounds))
        ratios = {"fleet": (their_fleet / our_fleet, our_fleet, their_fleet)}
        for key, ours, repeat in (("warm", warm, (20, 1)), ("stored", stored, (20, 1)), ("cold", cold, (1, 1))):
            ratio, a, b = paired(ours, theirs, rounds, repeat)
            ratios[key] = (1 / ratio, a, b)
        return ratios


def verifying(folder: Path, rounds: int) -> dict[str, tuple[float, float, float]]:
    """A real Genoa report of version 5, with the whole baseline policy."""
    rows = json.loads((folder / "vectors.json").read_text())
    row = next(row for row in rows if row["name"] == "siena-bergamo-genoa-v5")
    report, vek = ((folder / row[key]).read_bytes() for key in ("report", "vek"))
    certificates = (vek, (folder / "amd-roots/ask_ark_genoa.pem").read_bytes())
    at = datetime.fromisoformat(row["vek_notbefore"]).astimezone(UTC) + timedelta(days=30)
    parsed = parse_report(report)
    policy = replace(
        baseline(roots=AmdRoots(), measurements=frozenset({parsed.measurement}), host_data=None),
        revocation=RevocationRule.REPORT,
    )
    key = p384_key(parse_certificate(vek).spki)
    if key is None:
        sys.exit("the vector's key is not on p-384")
    signature = utils.encode_dss_signature(parsed.signature_r, parsed.signature_s)

    def bare() -> None:
        key.verify(signature, report[:SIGNED_BYTES], ec.ECDSA(hashes.SHA384()))

    def whole(cache: ChainCache | None) -> None:
        checks = judge(verify_report(report, certificates, AmdRoots(), at, cache=cache), policy)
        if not all(check.passed for check in checks):
            sys.exit("the vector is refused: its policy is not the whole way")

    cache = ChainCache()
    return {
        "cached": paired(lambda: whole(cache), bare, rounds, (20, 20)),
        "cold-verify": paired(lambda: whole(None), bare, rounds, (10, 10)),
    }


def starting(firmware: Path, rounds: int) -> dict[str, tuple[float, float, float]]:
    """Whole processes, from start to end, with the byte code that an installed package has."""
    environment = {**os.environ, "COLUMNS": "100", "PYTHONDONTWRITEBYTECODE": ""}

    def process(*arguments: str) -> Callable[[], object]:
        return lambda: subprocess.run(
            [sys.executable, *arguments], check=True, capture_output=True, env=environment, cwd=ROOT
        )

    image = firmware.read_bytes()
    digest = statistics.median(timed(lambda: launch_digest(image, hashes=None, cpu=CPU, vcpus=1)) for _ in range(5))
    with tempfile.TemporaryDirectory() as name:
        empty = Path(name) / "empty.py"
        empty.write_text(EMPTY_APP)
        helped = paired(process("-m", "cvmtool", "--help"), process(str(empty), "--help"), rounds)
        option = Path(name) / "option.py"
        option.write_text(OPTION_APP)
        found = {"help": helped}
        for key, floor in (("raw", process(str(empty))), ("raw-option", process(str(option), "--file", "x"))):
            ours = process("-m", "cvmtool", "measure", "raw", "--firmware", str(firmware))
            ratio, a, b = paired(ours, floor, rounds)
            found[key] = (ratio * (a - digest) / a, a - digest, b)
    return found


def main() -> None:
    """Measure, print, and end with 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--firmware", type=Path, default=load_settings().bundles_dir / "base/OVMF.amdsev.fd")
    parser.add_argument(
        "--vectors", type=Path, default=Path(os.environ.get("CVMTOOL_VECTORS") or ROOT.parent / "shared/vectors")
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measuring(options.firmware, options.rounds)
    found |= verifying(options.vectors, options.rounds)
    found |= starting(options.firmware, options.rounds)
    met = True
    for name, (ratio, ours, theirs) in found.items():
        sense, bar = BARS[name]
        good = ratio >= bar if sense == ">=" else ratio <= bar
        met = met and good
        if not options.json:
            mark = "ok  " if good else "MISS"
            print(f"{mark} {name:12} {ratio:9.2f}  bar {sense} {bar:g}   {ours * 1e3:.3f} ms, {theirs * 1e3:.3f} ms")
    if options.json:
        print(json.dumps({name: dict(zip(("ratio", "ours", "theirs"), v, strict=True)) for name, v in found.items()}))
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
