# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a comparison says: rows for a table, the ratio that counts, and the notes that go with every form of it.

Zone: flows. Pure.
"""

from __future__ import annotations

from cvmtool.flows.bench import CONFIDENTIAL, DRY_RUN, NATIVE, PLAIN, Comparison
from cvmtool.flows.benchphases import PHASES, ratios

MEANINGS = {
    "start": "until the container starts: mounts natively; boot besides in a VM; attestation and keys besides where it is attested",
    "load": "the container, until it names a phase",
    "compute": "what the container calls compute",
    "checkpoint": "what the container calls checkpoint",
    "run": "the container, which names no phases",
    "export": "writing outputs, and bringing them home",
}
"""Phase -> what is counted there."""


def rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return a head, and a row of seconds for each phase and for the total; last the ratio of the last place to the plain VM."""
    taken = comparison.taken
    plain = next((item for item in taken if item.where == PLAIN), None)
    against = ratios(taken[-1], plain) if plain and taken[-1] is not plain else {}
    ratio_head = (f"{taken[-1].where} / {PLAIN}",) if against else ()
    found: list[tuple[str, ...]] = [("phase", *(item.where for item in taken), *ratio_head)]
    for name in PHASES:
        cells = [f"{item.seconds[name]:.2f} s" if name in item.seconds else "" for item in taken]
        if any(cells):
            found.append((name, *cells, *(_times(against.get(name)) for _ in ratio_head)))
    totals = (f"{item.total:.2f} s" for item in taken)
    return [*found, ("total", *totals, *(_times(against.get("total")) for _ in ratio_head))]


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f} x"


def notes(comparison: Comparison) -> tuple[str, ...]:
    """Return what must be read with the figures."""
    where = DRY_RUN if comparison.simulated else CONFIDENTIAL
    found = [f"{name} was left out: {why}" for name, why in comparison.skipped.items()]
    if comparison.simulated:
        found.append(
            "SIMULATED / NOT CONFIDENTIAL: a dry run's memory is not encrypted and its secure processor is a program, "
            "so what either costs on SEV-SNP is not in these figures"
        )
    if comparison.emulated is not None:
        found.append(
            f"the CPU of both VMs was emulated (TCG): {where} compares with {PLAIN}, and {NATIVE} shows what emulation costs"
        )
    found += [
        f"{PLAIN} is the same firmware, kernel and container without dm-verity, LUKS, attestation and SSH",
        "sealing is not counted: it happens once for each input, before its first run",
        _rounds(comparison),
    ]
    return tuple(found)


def _rounds(comparison: Comparison) -> str:
    if comparison.rounds == 1:
        return "each figure is of one run; --rounds 3 tells how much runs differ"
    differ = f"runs in one place differed by up to {comparison.spread:.0%}"
    return f"each figure is the median of {comparison.rounds} rounds; {differ}: what places differ by less says nothing"
