# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The status codes of the secure processor's firmware: number, name, and what it means to somebody who starts a guest.

Zone: host. Data alone.
Spec: AMD 56860 SEV-SNP Firmware ABI, status codes; those of trusted I/O as in Linux include/uapi/linux/psp-sev.h (v6.18).
"""

from __future__ import annotations

from typing import NamedTuple


class Status(NamedTuple):
    """A status of the secure processor, by number."""

    name: str
    meaning: str


STATUS: dict[int, Status] = {
    0x00: Status("SUCCESS", "the firmware had nothing against it; the kernel refused"),
    0x01: Status("INVALID_PLATFORM_STATE", "SNP is not initialised, or already is"),
    0x02: Status("INVALID_GUEST_STATE", "the guest is at another point of its launch"),
    0x03: Status(
        "INVALID_CONFIG", "the platform's configuration is not accepted, mostly the IOMMU's or the RMP table's"
    ),
    0x04: Status("INVALID_LENGTH", "a buffer is too small"),
    0x05: Status("ALREADY_OWNED", "the platform has an owner already"),
    0x06: Status("INVALID_CERTIFICATE", "a certificate cannot be used"),
    0x07: Status("POLICY_FAILURE", "the platform or the ID block does not meet the guest policy"),
    0x08: Status("INACTIVE", "the guest was not activated"),
    0x09: Status("INVALID_ADDRESS", "an address is misaligned or outside the memory"),
    0x0A: Status("BAD_SIGNATURE", "a signature is wrong"),
    0x0B: Status("BAD_MEASUREMENT", "the launch digest is not the expected one"),
    0x0C: Status("ASID_OWNED", "the ASID belongs to another guest"),
    0x0D: Status("INVALID_ASID", "the ASID is out of range"),
    0x0E: Status("WBINVD_REQUIRED", "a processor has not written back its cache; was one taken offline?"),
    0x0F: Status("DF_FLUSH_REQUIRED", "the data fabric must be flushed before an ASID is used again"),
    0x10: Status("INVALID_GUEST", "there is no such guest"),
    0x11: Status("INVALID_COMMAND", "the firmware does not know the command: it is older than the kernel expects"),
    0x12: Status("ACTIVE", "the guest is still active"),
    0x13: Status("HWERROR_PLATFORM", "a hardware error that concerns the platform: switch it off and on"),
    0x14: Status("HWERROR_UNSAFE", "a hardware error that makes going on unsafe: switch the machine off and on"),
    0x15: Status("UNSUPPORTED", "this chip or firmware does not have the feature"),
    0x16: Status(
        "INVALID_PARAM", "a parameter is out of its range, a reserved bit is set, or CPUID values are not this chip's"
    ),
    0x17: Status("RESOURCE_LIMIT", "the firmware has no room for another guest"),
    0x18: Status("SECURE_DATA_INVALID", "the firmware's stored state is damaged: a platform reset is needed"),
    0x19: Status("INVALID_PAGE_SIZE", "the RMP table has the page in another size"),
    0x1A: Status("INVALID_PAGE_STATE", "the RMP table has the page in another state"),
    0x1B: Status("INVALID_MDATA_ENTRY", "the metadata of a swapped page is wrong"),
    0x1C: Status("INVALID_PAGE_OWNER", "the page belongs to another guest"),
    0x1D: Status("AEAD_OFLOW", "a message counter is used up"),
    0x1F: Status("EXIT_RING_BUFFER", "the firmware left its ring-buffer mode"),
    0x20: Status("RMP_INIT_REQUIRED", "the RMP table must be initialised first: reboot"),
    0x21: Status("BAD_SVN", "the firmware image is older than the one that is committed"),
    0x22: Status("BAD_VERSION", "the firmware image has a version that may not follow"),
    0x23: Status("SHUTDOWN_REQUIRED", "SNP must be shut down before: stop every guest and reload kvm_amd and ccp"),
    0x24: Status("UPDATE_FAILED", "the firmware update failed"),
    0x25: Status("RESTORE_REQUIRED", "the firmware must be restored: reboot"),
    0x26: Status("RMP_INITIALIZATION_FAILED", "the RMP table cannot be initialised: BIOS"),
    0x27: Status("INVALID_KEY", "a key has another algorithm or curve than the firmware takes"),
    0x28: Status("SHUTDOWN_INCOMPLETE", "SNP is still shutting down"),
    0x30: Status("INCORRECT_BUFFER_LENGTH", "a buffer has the wrong length"),
    0x31: Status("EXPAND_BUFFER_LENGTH_REQUEST", "the firmware asks for a larger buffer"),
    0x32: Status("SPDM_REQUEST", "the firmware waits for a device's answer"),
    0x33: Status("SPDM_ERROR", "a device answers with an error"),
    0x35: Status("ERR_IN_DEV_CONN", "the connection to a device failed"),
    0x36: Status("INVALID_DEV_CTX", "a device's context is not valid"),
    0x37: Status("INVALID_TDI_CTX", "a device interface's context is not valid"),
    0x38: Status("INVALID_TDI", "there is no such device interface"),
    0x39: Status("RECLAIM_REQUIRED", "pages must be reclaimed first"),
    0x3A: Status("IN_USE", "it is in use"),
    0x3B: Status("INVALID_DEV_STATE", "the device is in another state"),
    0x3C: Status("INVALID_TDI_STATE", "the device interface is in another state"),
    0x3D: Status("DEV_CERT_CHANGED", "the device's certificate has changed"),
    0x3E: Status("RESYNC_REQ", "device and firmware must synchronise again"),
    0x3F: Status("RESPONSE_TOO_LARGE", "the device's answer is too large"),
}
