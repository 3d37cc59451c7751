# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A launch step by step, as tables and as JSON.

Zone: cli.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from cvmtool.measure.trace import Step


def trace_fields(steps: Sequence[Step]) -> dict[str, Any]:
    """Return the steps for scripts: `page_counts` (by type) and `trace` (runs of pages with the digest after each)."""
    from cvmtool.measure.trace import page_counts

    return {
        "page_counts": {kind.name.lower(): count for kind, count in page_counts(steps).items()},
        "trace": [
            {
                "pages": step.kind.name.lower(),
                "gpa": hex(step.gpa),
                "count": step.count,
                "digest": step.digest.hex(),
            }
            for step in steps
        ],
    }


def show_trace(steps: Sequence[Step], *, to: TextIO | None = None) -> None:
    """Write the steps as a table to standard output or to `to`, and below it how many pages of each type there are."""
    from cvmtool.cli.render import print_table
    from cvmtool.measure.trace import page_counts

    print_table(
        ("PAGES", "FROM", "COUNT", "DIGEST AFTER"),
        ((step.kind.name.lower(), hex(step.gpa), str(step.count), step.digest.hex()) for step in steps),
        to=to,
    )
    print_table(
        ("PAGES", "IN ALL"),
        ((kind.name.lower(), str(count)) for kind, count in page_counts(steps).items()),
        to=to,
    )
