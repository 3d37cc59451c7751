# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What verifiers that share no code with cvmtool say; needs `make foreign`."""
