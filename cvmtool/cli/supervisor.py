# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The process that carries out a run in the background. Started by `cvmtool.flows.supervise`, by nobody else.

Zone: cli. It inherits the descriptor that holds the run; one line on standard output says that nothing is missing. What the run
does is in its record; standard error is a file beside it, where a bug leaves its traceback.
"""

from __future__ import annotations

import os
import sys

from cvmtool.cli import interrupt
from cvmtool.config import load_settings
from cvmtool.errors import CvmError
from cvmtool.flows.jobs import JobDir
from cvmtool.flows.supervise import READY, supervise

_INTERRUPTED = 130


def main(job_id: str, lock: int) -> int:
    """Carry out the run that the descriptor `lock` holds; return the exit code of `cvmtool train`."""
    os.set_inheritable(lock, False)
    interrupt.install()
    settings = load_settings()

    def ready() -> None:
        os.write(1, READY)
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, 1)
        os.close(nowhere)

    try:
        supervise(JobDir.inherit(settings.jobs_dir, job_id, lock), settings, ready=ready)
    except CvmError as error:
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
