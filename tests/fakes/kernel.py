# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Where a guest's kernel settings go in tests: the real ones would be those of the machine that runs them."""


class OtherKernel:
    """Remembers what it was told."""

    def __init__(self):
        self.told = []

    def lock_down(self):
        self.told.append("lock down")

    def bring_up(self):
        self.told.append("bring up")
