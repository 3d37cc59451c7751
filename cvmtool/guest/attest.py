# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Answer a challenge: evidence over the owner's nonce, for the owner and the job that the launch committed to.

Zone: guest (measured).
Spec: docs/protocol.md sections 1 to 3.
"""

from __future__ import annotations

import hmac
import threading
from dataclasses import dataclass
from pathlib import Path

from cvmtool.errors import FreshnessError, HostError
from cvmtool.formats.channel import Open, Refusal, ready_line, refused_line
from cvmtool.formats.control import CLIENT_ADDRESS
from cvmtool.formats.evidence import Evidence, host_data, report_data
from cvmtool.guest import device
from cvmtool.guest.channel import Answer
from cvmtool.guest.keys import BootKeys, authorized_key, write_private
from cvmtool.guest.shell import Shell


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """A challenge that was answered with evidence; what the owner seals is tied to it."""

    challenge: Open
    evidence: Evidence
    report_data: bytes
    host_data: bytes


class Attestor:
    """Answers challenges with this boot's keys, from any thread, one after the other.

    `current` is the last one that was answered with evidence on the agent port: what the owner seals is for its session.
    """

    def __init__(self, keys: BootKeys, paths: device.Paths, authorized_keys: Path, shell: Shell) -> None:
        self._keys = keys
        self._paths = paths
        self._authorized_keys = authorized_keys
        self._shell = shell
        self._answering = threading.Lock()
        self._clients: tuple[bytes, ...] = ()
        self.current: Attested | None = None

    def admit(self, clients: tuple[bytes, ...]) -> None:
        """Let these Ed25519 keys log in, too, at sessions that begin from now on; they reach what is clients' alone."""
        self._clients = clients

    def answer(self, challenge: Open, *, beside: bool = False) -> Answer:
        """Return READY with evidence, or REFUSED. `beside`: the session is another's than that of the agent port.

        Raises:
            OSError: the key file cannot be written.
        """
        with self._answering:
            found = self._attest(challenge)
        if isinstance(found, Refusal):
            return Answer(line=refused_line(challenge.nonce, found), ready=False)
        if not beside:
            self.current = found
        return Answer(line=ready_line(challenge.nonce, found.evidence), ready=True)

    def _attest(self, challenge: Open) -> Attested | Refusal:
        """Return evidence, or why there is none.

        1. HOST_DATA is recomputed from the challenge.
        2. The report is over the nonce, this boot's keys and that HOST_DATA.
        3. The report's own HOST_DATA, which the launch fixed, must be the same.
        4. Only then may the key that HOST_DATA commits to log in, and those that the manifest below it names.
        """
        keys = self._keys
        expected = host_data(owner_key=challenge.owner_key, manifest_sha256=challenge.manifest_sha256)  # (1)
        bound = report_data(
            nonce=challenge.nonce,
            ssh_host_key=keys.ssh_host_key,
            hpke_key=keys.hpke_key,
            receipt_key=keys.receipt_key,
            host_data=expected,
        )
        try:
            raw = device.get_report(bound, self._paths)  # (2)
        except FreshnessError:
            return Refusal.BAD_REPORT
        except HostError:
            return Refusal.NO_REPORT
        if not hmac.compare_digest(raw.host_data, expected):  # (3)
            return Refusal.HOST_DATA
        evidence = Evidence(
            report=raw.report,
            cert_table=raw.cert_table,
            ssh_host_key=keys.ssh_host_key,
            hpke_key=keys.hpke_key,
            receipt_key=keys.receipt_key,
        )
        # sshd reads this file as the user who logs in, so that user must be able to: it holds public keys.
        lines = [authorized_key(challenge.owner_key, terminal=self._shell.granted)]
        lines += [authorized_key(key, address=CLIENT_ADDRESS) for key in self._clients]
        write_private(self._authorized_keys, b"".join(lines), mode=0o644)  # (4)
        return Attested(challenge=challenge, evidence=evidence, report_data=bound, host_data=expected)
