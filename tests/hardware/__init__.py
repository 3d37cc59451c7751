# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What only a machine with SEV-SNP can prove; needs `make hardware` on one."""
