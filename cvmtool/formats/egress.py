# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What went out of a job's container, and to where: a part of its receipt.

Zone: shared. Pure: no I/O.
Spec: docs/protocol.md section 15; docs/reference/receipt.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from cvmtool.errors import FormatError
from cvmtool.formats.jobterms import Destination, parse_destinations
from cvmtool.formats.wire import JsonObject, members, natural, typed

_COUNTS = ("connections", "sent", "received")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """What went to and came from one destination of the manifest."""

    destination: Destination
    connections: int
    """Those that were answered."""
    sent: int
    """Bytes from the container, those of TLS included."""
    received: int
    """Bytes to the container."""

    def to_json(self) -> JsonObject:
        """Return the flow as it stands in a statement: the destination, and the counts beside it."""
        return self.destination.to_json() | {name: getattr(self, name) for name in _COUNTS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """What went out of a container that had destinations."""

    flows: tuple[Flow, ...]
    """One for each destination, in the manifest's order, used or not."""
    turned_away: int
    """How often the container tried to reach what it may not, or not in that way."""

    def to_json(self) -> JsonObject:
        """Return the egress as it stands in a statement."""
        return {"destinations": [flow.to_json() for flow in self.flows], "turnedAway": self.turned_away}


def parse_egress(value: object) -> Egress:
    """Read what went out.

    Raises:
        FormatError: a key is missing, unknown or out of range, or the destinations are none that a manifest could have.
    """
    what = "egress"
    if not isinstance(value, dict):
        raise FormatError(f"{what} is a {type(value).__name__}; an object is required")
    members(value, what=what, required={"destinations", "turnedAway"})
    entries = typed(value, "destinations", list, what=what)
    if not all(isinstance(entry, dict) for entry in entries):
        raise FormatError(f"{what}.destinations holds something else than objects")
    bare = [{key: item for key, item in entry.items() if key not in _COUNTS} for entry in entries]
    flows = tuple(
        Flow(destination=place, **{name: natural(entry, name, what=f"{what}.destinations") for name in _COUNTS})
        for place, entry in zip(parse_destinations(bare), entries, strict=True)
    )
    return Egress(flows=flows, turned_away=natural(value, "turnedAway", what=what))
