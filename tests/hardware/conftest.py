# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The image, the example and the settings of the scenario tests."""

from tests.scenario.conftest import bundle, example, place, prepared, settings  # noqa: F401
