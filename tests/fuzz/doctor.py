# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a host shows of itself to `cvmtool doctor`: each parser with a sample that it accepts."""

from cvmtool.host.doctor import texts
from tests.unit.host.doctor import test_texts

_DF = b"Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/sda1 100 50 50 50% /\n"
_DMESG = (
    b"[    0.0] Linux version 6.11.0\n[    0.1] AMD-Vi: IOMMU SNP support enabled\n"
    b"[    0.2] SEV-SNP: RMP table physical range [0x0000000035600000 - 0x0000000075bfffff]\n"
    b"[    0.3] ccp 0000:01:00.5: sev enabled\n[    0.4] ccp 0000:01:00.5: SEV-SNP API:1.55 build:21\n"
)

SAMPLES = {
    texts.parse_version: (b"6.11.0-29-generic", b"10"),
    texts.parse_cpuinfo: (test_texts.CPUINFO,),
    texts.parse_kernel_log: (_DMESG,),
    texts.parse_flag: (b"Y\n", b"-1\n"),
    texts.parse_misc: (b"sev 410\nsev_es max\n",),
    texts.parse_meminfo: (b"MemTotal: 1000 kB\nMemAvailable: 900 kB\nHugepagesize: 2048 kB\nHugePages_Total: 1\n",),
    texts.parse_memlock: (test_texts.LIMITS % b"8388608", test_texts.LIMITS % b"unlimited"),
    texts.parse_capabilities_mask: (b"CapEff:\t000001ffffffffff\n",),
    texts.parse_free_bytes: (_DF,),
    texts.parse_clock: (b"1780000000.25\n",),
    texts.parse_nvidia_functions: (b"4100\t10de2331\t0" + b"\t0" * 14 + b"\tvfio-pci\n",),
    texts.parse_qmp: (test_texts.qmp(),),
    texts.parse_platform_status: (bytes(range(32)),),
    texts.parse_cpu_features: (test_texts.qmp(test_texts.FEATURES),),
    texts.parse_online: (b"0-7,16-23\n",),
}
