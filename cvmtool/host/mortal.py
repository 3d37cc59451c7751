# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Programs that die with whoever started them: a guest that hangs under KVM must not outlive a killed cvmtool.

Zone: host.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence


def mortal(arguments: Sequence[str]) -> list[str]:
    """Return a command line that becomes that program, in the same process, and is killed when the thread that starts it ends.

    Raises:
        FileNotFoundError: there is no such program.
    """
    if shutil.which(arguments[0]) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), arguments[0])
    return ["setpriv", "--pdeathsig", "KILL", *arguments]
