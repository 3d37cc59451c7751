# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Attach the simulated secure processor to a machine of a dry run.

Zone: flows. It measures what the live domain was really given, read back from the host at this moment, and never what
the owner expects: a host that swaps an artefact is found out by the same comparison as in production.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cvmtool.dryrun.amd import FakeAmd
from cvmtool.dryrun.faults import Fault
from cvmtool.dryrun.psp import LaunchFacts, SimulatedPsp
from cvmtool.errors import FormatError
from cvmtool.flows.machine import Machine
from cvmtool.formats.channel import PSP_PORT
from cvmtool.formats.idblock import LaunchIdentity, parse_id_auth, parse_id_block
from cvmtool.formats.reportmsg import ReportRequest
from cvmtool.formats.wire import parse_hex
from cvmtool.host.files import HostFiles
from cvmtool.host.live import LiveDomain

MAX_FIRMWARE = 64 << 20  # bytes; QEMU takes far less
MAX_HASH_TABLE = 4096  # bytes


def launch_facts(live: LiveDomain, files: HostFiles) -> LaunchFacts:
    """Read what a live domain was given, from the files it names.

    Raises:
        HostError: a file is gone.
        FormatError: the domain's metadata is malformed, or its ID block.
    """
    return LaunchFacts(
        firmware=files.read(live.firmware, MAX_FIRMWARE),
        hash_table=files.read(live.hash_table, MAX_HASH_TABLE),
        vcpus=live.vcpus,
        cpu=live.cpu,
        host_data=parse_hex(live.host_data, 32, what="the domain's host-data"),
        policy=_policy(live.policy),
        # New for each launch; a domain's name is never used twice.
        identity=_identity(live),
        report_id=hashlib.sha256(b"cvmtool/dryrun/report-id" + live.name.encode("utf-8")).digest(),
    )


def _identity(live: LiveDomain) -> LaunchIdentity | None:
    if not live.id_block and not live.id_auth:
        return None
    return LaunchIdentity(block=parse_id_block(live.id_block), auth=parse_id_auth(live.id_auth))


def _policy(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError as error:
        raise FormatError(f"the domain's policy is {text[:32]!r}; a hexadecimal number is required") from error


@contextmanager
def secure_processor(machine: Machine, amd: FakeAmd, *, fault: Fault = Fault.NONE) -> Iterator[None]:
    """Answer the guest's report requests while the block runs.

    Raises:
        HostError: the machine does not run, or its port cannot be opened.
    """
    psp = SimulatedPsp(amd, launch_facts(machine.hypervisor.live(machine.name), machine.host.files), fault)
    if fault is Fault.REPLAYED_REPORT:
        # A replay needs an earlier report: one over a challenge that nobody sent.
        psp.report(ReportRequest(report_data=secrets.token_bytes(64)))
    port = machine.hypervisor.open_port(machine.name, PSP_PORT)
    thread = threading.Thread(target=psp.serve, args=(port,), name="simulated-psp", daemon=True)
    thread.start()
    try:
        yield
    finally:
        with suppress(OSError):
            port.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        port.close()
