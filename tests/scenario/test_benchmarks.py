# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The half of a benchmark that no run of cvmtool goes through: a bare boot."""

import pytest

from benchmarks.first_output import bare

pytestmark = pytest.mark.vm


def test_firmware_kernel_and_initrd_alone_speak(prepared):
    assert bare(prepared) > 0
