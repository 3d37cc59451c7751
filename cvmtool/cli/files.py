# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Files named on the command line, read whole within a bound.

Zone: cli.
"""

from __future__ import annotations

from pathlib import Path

from cvmtool.errors import ConfigError


def read_file(path: Path, *, most: int) -> bytes:
    """Return the content of a file of at most `most` bytes. A device or pipe without end is not read without end.

    Raises:
        ConfigError: it cannot be read, or is longer.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > most:
        raise ConfigError(f"{path} has more than {most} bytes; required: fewer")
    return data
