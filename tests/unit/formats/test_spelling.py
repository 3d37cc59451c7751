# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Names and bounds that owner, guest and host must agree on, spelled out once more: who changes one makes another protocol.

Elsewhere tests use the constants; here stands what they are (docs/protocol.md).
"""

import pytest

from cvmtool.formats import (
    age,
    certtable,
    channel,
    control,
    dsse,
    evidence,
    exchange,
    gpu,
    grant,
    job,
    jobterms,
    machine,
    manifest,
    modelsig,
    pack,
    packheader,
    receipt,
    scrubbing,
    volume,
)
from cvmtool.owner import chain, crl, epochs, fit, jobfile, kds, pipeline, toml


@pytest.mark.parametrize(
    ("names", "spelling"),
    [
        (
            control.Op,
            "status configure gpu-evidence release run logs results fetch commit stop usage exec tunnel poweroff",
        ),
        (control.Stage, "waiting configured unlocked running done"),
        (
            control.ControlError,
            (
                "order request manifest sealed pack-missing pack-integrity pack-header pack-key output gpu "
                "volume-missing volume-header volume-key volume-integrity volume-rolled-back shell access kernel"
            ),
        ),
        (channel.Refusal, "host-data bad-report no-report busy"),
        (job.OutputKind, "safetensors json csv log file directory"),
        (job.Network, "none allow"),
        (job.Kind, "train serve"),
        (pack.Role, "container input"),
        (manifest.Mode, "production dryrun"),
        (chain.Revocation, "checked not-checked"),
        (fit.Verdict, "ok close short unknown"),
        (jobfile.Restart, "never on-failure"),
        (packheader.Sensitivity, "public internal confidential personal"),
        (packheader.ContentKind, "tree model container"),
        (packheader.Action, "packed scrubbed rekeyed"),
        (pipeline.Stage, "ingestion sealing launch release export"),
        (pipeline.SAID, "owner sensitivity origin handling licence created"),
        (scrubbing.FileFormat, "csv tsv jsonl json text keep drop"),
        (scrubbing.Encoding, "utf-8 utf-16 latin-1 windows-1252"),
        (scrubbing.Others, "keep drop refuse"),
        (scrubbing.Unreadable, "empty refuse"),
        (scrubbing.Period, "month year"),
    ],
)
def test_names(names, spelling):
    assert " ".join(names) == spelling


@pytest.mark.parametrize(
    ("constant", "value"),
    [
        (age.SUFFIX, ".age"),
        (channel.AGENT_PORT, "org.cvmtool.agent.0"),
        (channel.PSP_PORT, "org.cvmtool.psp.0"),
        (control.CONTROL_ADDRESS, ("127.0.0.1", 7010)),
        (control.CLIENT_ADDRESS, ("127.0.0.1", 7011)),
        (control.CLIENT_OPS, {"status", "tunnel"}),
        (jobterms.CHECKPOINT, "checkpoint"),
        (control.OWNER_USER, "owner"),
        (job.SCHEMA, "cvmtool/job/v1"),
        (job.RECEIPT_NAME, "receipt.json"),
        (machine.SCHEMA, "cvmtool/machine/v1"),
        (machine.SHELL_WORD, "cvmtool.shell=1"),
        (manifest.SCHEMA, "cvmtool/image/v1"),
        (manifest.DRYRUN_WORD, "cvmtool.dryrun=1"),
        (epochs.SCHEMA, "cvmtool/volume-history/v1"),
        (grant.SCHEMA, "cvmtool/grant/v1"),
        (dsse.PAYLOAD_TYPE, "application/vnd.in-toto+json"),
        (receipt.STATEMENT_TYPE, "https://in-toto.io/Statement/v1"),
        (receipt.PREDICATE_TYPE, "urn:cvmtool:training-receipt:v2"),
        (receipt.BUILD_TYPE, "urn:cvmtool:job:v1"),
        (receipt.BUILDERS, {False: "urn:cvmtool:guest:v1", True: "urn:cvmtool:simulated-guest:v1"}),
        (receipt.ATTESTATION_KIND, "amd-sev-snp"),
        (receipt.IMAGE_ENTRY, "guest-image"),
        (receipt.CONTAINER_ENTRY, "container-image"),
        (receipt.LOG_ENTRY, "log"),
        (receipt.VERITY_ROOT, "dmVerityRoot"),
        (receipt.LAUNCH_DIGEST, "sevSnpLaunchDigest"),
        (packheader.SCHEMA, "cvmtool/pack/v2"),
        (modelsig.SIGNATURE_FILE, "model.sig"),
        (modelsig.IGNORED, (".git", ".gitattributes", ".github", ".gitignore")),
        (pack.PACK_CIPHER, "aes-xts-plain64"),
        (kds.AMD_URL, "https://kdsintf.amd.com"),
    ],
)
def test_texts(constant, value):
    assert constant == value


@pytest.mark.parametrize(
    ("bound", "value"),
    [
        (certtable.MAX_TABLE_BYTES, 65_536),
        (certtable.MAX_ENTRY_BYTES, 16_384),
        (certtable.MAX_ENTRIES, 16),
        (channel.MAX_ANSWER, 87_512),
        (crl.MAX_CRL_BYTES, 65_536),
        (dsse.MAX_ENVELOPE, 1_048_576),
        (epochs.MAX_HISTORY, 8_192),
        (evidence.MAX_EVIDENCE, 65_536),
        (evidence.MAX_CERT_TABLE, 32_768),
        (exchange.MAX_INVITATION, 524_288),
        (exchange.MAX_ANSWER, 393_216),
        (gpu.MAX_GPUS, 8),
        (job.MAX_MANIFEST, 262_144),
        (job.MAX_ARGUMENTS, 1_024),
        (job.MAX_OUTPUTS, 256),
        (job.MAX_PACKS, 16),
        (job.MAX_TEXT, 65_536),
        (job.MAX_OUTPUT_BYTES, 1_099_511_627_776),
        (job.MAX_MIB, 16_777_216),
        (job.MAX_LOG_MIB, 65_536),
        (job.MAX_SECONDS, 2_147_483_648),
        (job.MIN_MEMORY_MIB, 256),
        (machine.MAX_VOLUMES, 16),
        (modelsig.MAX_BUNDLE, 33_554_432),
        (manifest.MAX_MANIFEST, 4_194_304),
        (manifest.MAX_CMDLINE, 2_047),
        (manifest.MAX_VCPUS, 64),
        (manifest.DIGEST_BYTES, 48),
        (pack.BLOCK, 4_096),
        (pack.HEADER_SIZE, 1_048_576),
        (pack.VOLUME_KEY_SIZE, 64),
        (pack.PASSPHRASE_SIZE, 32),
        (volume.MIN_VOLUME, 268_435_456),
        (volume.MAX_VOLUME, 1_125_899_906_842_624),
        (volume.SECTOR, 4_096),
        (toml.MAX_BYTES, 1_048_576),
        (volume.MAX_EPOCH, 256),
    ],
)
def test_bounds(bound, value):
    assert bound == value
