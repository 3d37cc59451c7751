# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool bench`: one job natively, in a plain VM and as it is meant to run, with the time of each phase.

Zone: cli.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvmtool.cli.options import Host, Json

if TYPE_CHECKING:
    from cvmtool.flows.bench import Comparison

app = typer.Typer()

JSON_FILE = "bench.json"
PAGE_FILE = "bench.html"
PNG_FILE = "bench.png"


@app.command()
def bench(
    job: Annotated[Path, typer.Argument(help="The job file.", metavar="JOB.yaml")],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Compare with a dry run, which needs no SEV-SNP and encrypts no memory.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where table and plot go; results/bench-JOB by default.", metavar="DIR")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Runs in each place, one place after the other.", min=1)] = 1,
    host: Host = None,
    as_json: Json = False,
) -> None:
    """Say what confidentiality costs a job: its time by phase natively, in a plain VM and in the confidential VM.

    For the native run and the plain VM the inputs are unpacked in clear on this machine, into a directory that is gone afterwards.
    Writes bench.json, bench.html and, where Pillow is installed, bench.png.
    """
    from cvmtool.cli.render import JsonReporter, TerminalReporter, emit
    from cvmtool.config import load_settings
    from cvmtool.flows.bench import compare, require_comparable
    from cvmtool.flows.fit import refuse_unfit
    from cvmtool.flows.images import bring_up_to_date
    from cvmtool.flows.jobplan import Plan
    from cvmtool.flows.prepare import prepare, read_job
    from cvmtool.flows.reporter import Stage
    from cvmtool.owner.kds import AMD_URL

    settings = load_settings(host=host)
    reporter = JsonReporter() if as_json else TerminalReporter()
    if dry_run and isinstance(reporter, TerminalReporter):
        reporter.banner()
    plan = Plan(simulated=dry_run, host=settings.host, key_service=AMD_URL)
    gate, platform, file = plan.gate(settings), plan.platform(settings), read_job(job)
    require_comparable(file)
    folder = out or Path("results") / f"bench-{file.name}"
    folder.mkdir(parents=True, exist_ok=True)
    with reporter.stage(Stage.BUILD, f"guest image {file.image}"):
        bundle = bring_up_to_date(file.image, settings, progress=reporter.step, notice=reporter.notice)
    refuse_unfit(file, job.resolve().parent, bundle, settings=settings, simulated=dry_run, reporter=reporter)
    prepared = prepare(job, bundle, settings=settings, reporter=reporter, gate=gate)
    comparison = compare(prepared, platform=platform, settings=settings, reporter=reporter, gate=gate, rounds=rounds)
    document = _document(comparison)
    for note in _keep(comparison, document, folder):
        reporter.notice(note)
    if as_json:
        emit(document)
    else:
        _show(comparison, folder)


def _document(comparison: Comparison) -> dict[str, Any]:
    from cvmtool.flows.benchphases import ratios
    from cvmtool.flows.benchreport import notes

    places = [
        {
            "where": item.where,
            "seconds": item.seconds,
            "total": round(item.total, 3),
            "ratios": {base.where: ratios(item, base) for base in comparison.taken if base is not item},
        }
        for item in comparison.taken
    ]
    return {
        "schema": "cvmtool/bench/v1",
        "job": comparison.job,
        "simulated": comparison.simulated,
        "emulated": comparison.emulated,
        "rounds": comparison.rounds,
        "spread": comparison.spread,
        "places": places,
        "skipped": comparison.skipped,
        "notes": list(notes(comparison)),
    }


def _keep(comparison: Comparison, document: dict[str, Any], folder: Path) -> list[str]:
    """Write every form of it; return what is to be said about what could not be."""
    from cvmtool.config import resources
    from cvmtool.errors import ConfigError
    from cvmtool.flows.benchplot import draw_page, draw_png

    (folder / JSON_FILE).write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    (folder / PAGE_FILE).write_text(draw_page(comparison, resources("templates")), "utf-8")
    try:
        (folder / PNG_FILE).write_bytes(draw_png(comparison))
    except ConfigError as error:
        return [f"no {PNG_FILE}: {error.message}; {error.hint}"]
    return []


def _show(comparison: Comparison, folder: Path) -> None:
    from cvmtool.cli.render import print_table
    from cvmtool.flows.benchreport import notes, rows

    head, *figures = rows(comparison)
    print_table([cell.upper() for cell in head], figures)
    for note in notes(comparison):
        typer.echo(f"- {note}")
    typer.echo(f"the same as a page: {folder / PAGE_FILE}", err=True)
