# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Answer a challenge: evidence over the owner's nonce, for the owner and the job that the launch committed to.

Zone: guest (measured).
Spec: docs/protocol.md sections 1 to 3.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from pathlib import Path

from cvmtool.errors import FreshnessError, HostError
from cvmtool.formats.channel import Open, Refusal, ready_line, refused_line
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
    """Answers challenges with this boot's keys. `current` is the last one that was answered with evidence."""

    def __init__(self, keys: BootKeys, paths: device.Paths, authorized_keys: Path, shell: Shell) -> None:
        self._keys = keys
        self._paths = paths
        self._authorized_keys = authorized_keys
        self._shell = shell
        self.current: Attested | None = None

    def answer(self, challenge: Open) -> Answer:
        """Return READY with evidence, or REFUSED.

        1. HOST_DATA is recomputed from the challenge.
        2. The report is over the nonce, this boot's keys and that HOST_DATA.
        3. The report's own HOST_DATA, which the launch fixed, must be the same.
        4. Only then may the key that HOST_DATA commits to log in.

        Raises:
            OSError: the key file cannot be written.
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
            return Answer(line=refused_line(challenge.nonce, Refusal.BAD_REPORT), ready=False)
        except HostError:
            return Answer(line=refused_line(challenge.nonce, Refusal.NO_REPORT), ready=False)
        if not hmac.compare_digest(raw.host_data, expected):  # (3)
            return Answer(line=refused_line(challenge.nonce, Refusal.HOST_DATA), ready=False)
        evidence = Evidence(
            report=raw.report,
            cert_table=raw.cert_table,
            ssh_host_key=keys.ssh_host_key,
            hpke_key=keys.hpke_key,
            receipt_key=keys.receipt_key,
        )
        # sshd reads this file as the user who logs in, so that user must be able to: it holds a public key.
        line = authorized_key(challenge.owner_key, terminal=self._shell.granted)
        write_private(self._authorized_keys, line, mode=0o644)  # (4)
        self.current = Attested(challenge=challenge, evidence=evidence, report_data=bound, host_data=expected)
        return Answer(line=ready_line(challenge.nonce, evidence), ready=True)
