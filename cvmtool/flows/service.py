# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Stand by a job that answers requests: say when it does, and end it in order when its owner wants that.

Zone: flows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from cvmtool.errors import CvmError
from cvmtool.flows.ending import follow_to_the_end
from cvmtool.flows.jobevents import Recorder
from cvmtool.flows.tunnel import await_port
from cvmtool.formats.job import JobManifest
from cvmtool.host.channel import AgentChannel

_GRACE_SECONDS = 10  # for its last answers


def stand_by(
    channel: AgentChannel, manifest: JobManifest, job: str, follow: Callable[[], None], reporter: Recorder
) -> None:
    """Follow the log of a service until its container has ended; an interruption ends that first, and then goes on to the receipt.

    Raises:
        CvmError: what `follow` raises.
        KeyboardInterrupt: a second one.
    """
    over = threading.Event()

    def follow_log() -> None:
        threading.Thread(target=look_out, name="ready", daemon=True).start()
        try:
            follow()
        finally:
            over.set()

    def look_out() -> None:
        with suppress(CvmError):  # whoever follows the log meets the same
            for port in manifest.access.tunnels:
                if await_port(channel, port, give_up=over.is_set):
                    reporter.notice(f"port {port} answers: cvmtool jobs tunnel {job} {port}")

    follow_to_the_end(
        channel, follow_log, grace_seconds=_GRACE_SECONDS, notice=lambda: reporter.notice("ending the service")
    )
