# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m cvmtool`."""

from cvmtool.cli.app import main

main()
