# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
from tests.fakes import amd, genoa  # noqa: F401 - fixtures
