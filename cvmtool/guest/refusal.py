# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""How the guest says no to the owner: a word of the protocol, and a sentence.

Zone: guest (measured).
Spec: docs/protocol.md section 5.
"""

from __future__ import annotations

from cvmtool.errors import CvmError
from cvmtool.formats.control import ControlError


class RefusedError(CvmError):
    """An operation that was not done. Nothing of it holds a secret: it is sent to the owner."""

    def __init__(self, error: ControlError, detail: str, *, pack: str | None = None, volume: str | None = None) -> None:
        super().__init__(error.value, detail=detail)
        self.error = error
        self.pack = pack
        self.volume = volume
