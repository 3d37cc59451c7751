# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Hostile input for every parser: one table, a short pass in the ordinary tests, a long one with `make fuzz`."""
