# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Parsers of machines, volumes, GPUs and of where a host is, each with samples that it accepts."""

import base64

from cryptography.hazmat.primitives.serialization import Encoding

from cvmtool.errors import ConfigError, CvmError, FormatError
from cvmtool.formats import gpu, job, machine, pack, spdm, volume, wire
from cvmtool.host import address
from cvmtool.owner import epochs, gpupolicy, nvidia, rim
from tests import samples
from tests.fakes.nvidia import NOW
from tests.fuzz.mutate import read_der, write_der
from tests.fuzz.parser import Parser, encode, json_object, seeds, text
from tests.unit.formats import test_gpu, test_machine, test_spdm, test_volume
from tests.unit.owner import test_epochs, test_gpupolicy, test_nvidia, test_ocsp, test_rim

_URIS = (
    b"qemu+ssh://root@h.example:2222/session",
    b"qemu+libssh2://u@h/system?socket=/run/x",
    b"qemu+libssh://u@[::1]/system",
)


def _gpus(value: wire.JsonObject) -> bytes:
    return wire.canonical_json({"gpus": [one.to_json() for one in value]})


_GPU = test_nvidia.NVIDIA.gpu()
_CHAIN = (_GPU.leaf, _GPU.brom, test_nvidia.NVIDIA.identity, test_nvidia.NVIDIA.device_root)


def _gpu_chain(data: bytes) -> object:
    """Certificates in DER, one behind the other, as PEM through all that reads and verifies them."""
    row = b"".join(
        b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(write_der([one])) + b"-----END CERTIFICATE-----\n"
        for one in read_der(data)
    )
    chain = nvidia.verify_chain(nvidia.parse_chain(row), test_nvidia.NVIDIA.roots.device, NOW, what="sample")
    return chain.chip, chain.device, chain.firmware_id, chain.key.curve.name


def _status(data: bytes) -> object:
    if fault := test_ocsp.fault(data):
        raise FormatError(fault)
    return None


PARSERS: dict[str, Parser] = {
    "formats.gpu.parse_gpu_evidence": Parser(
        json_object(gpu.parse_gpu_evidence), seeds(_gpus([test_gpu.ONE, test_gpu.ONE])), write=_gpus
    ),
    "formats.job.parse_resources": Parser(
        json_object(job.parse_resources), seeds(b'{"cpu":"EPYC-Genoa","memory_mib":1024,"vcpus":2}')
    ),
    "formats.machine.parse_machine_manifest": Parser(
        machine.parse_machine_manifest, seeds(test_machine.MANIFEST.encode()), write=encode
    ),
    "formats.machine.parse_manifest": Parser(
        machine.parse_manifest, seeds(test_machine.MANIFEST.encode(), samples.manifest().encode()), write=encode
    ),
    "formats.pack.parse_uuid": Parser(
        text(lambda value: pack.parse_uuid(value, what="sample")), seeds(b"01234567-89ab-cdef-0123-456789abcdef")
    ),
    "formats.spdm.parse_gpu_report": Parser(
        spdm.parse_gpu_report, seeds(test_spdm.report(), test_spdm.report(opaque=bytes.fromhex("03000400") + b"1.2\0"))
    ),
    "formats.volume.parse_epoch": Parser(volume.parse_epoch, seeds(test_volume.EPOCH.encode()), write=encode),
    "formats.volume.parse_volume": Parser(
        json_object(volume.parse_volume), lambda: (wire.canonical_json(test_volume.VOLUME.to_json()),)
    ),
    "host.address.parse_remote": Parser(text(address.parse_remote), seeds(*_URIS, b"qemu:///system"), ConfigError),
    "host.address.parse_sftp": Parser(text(address.parse_sftp), seeds(b"sftp://u@h:2222", b"sftp://h/"), ConfigError),
    "owner.epochs.parse_history": Parser(
        epochs.parse_history,
        lambda: (epochs.History().encode(), epochs.History().begin(test_epochs.mark(1)).encode()),
        write=encode,
    ),
    "owner.gpupolicy.parse_gpu_policy": Parser(
        text(gpupolicy.parse_gpu_policy),
        lambda: tuple(gpupolicy.encode_gpu_policy(p).encode() for p in (test_gpupolicy.POLICY, test_gpupolicy.LOOSE)),
        ConfigError,
        write=lambda value: gpupolicy.encode_gpu_policy(value).encode(),
    ),
    "owner.ocsp.status_fault": Parser(
        _status, lambda: tuple(test_ocsp.status(signer=signer) for signer in (None, test_ocsp.CA, test_ocsp.ROOT))
    ),
    "owner.rim.verify_manifest": Parser(
        lambda data: rim.verify_manifest(data, NOW, root=test_rim.ROOT), lambda: (test_rim.GOOD,), CvmError
    ),
    "owner.nvidia.verify_chain": Parser(
        _gpu_chain, lambda: (b"".join(one.certificate.public_bytes(Encoding.DER) for one in _CHAIN),), CvmError
    ),
    "owner.nvidia.parse_chain": Parser(nvidia.parse_chain, lambda: (test_nvidia.NVIDIA.gpu().pem,)),
}
