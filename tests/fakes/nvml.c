/* SPDX-FileCopyrightText: The cvmtool authors
   SPDX-License-Identifier: Apache-2.0
   A libnvidia-ml.so.1 of GPUs that answer from files: GPU n has DIR/n.report (asked for with the nonce in DIR/n.nonce, which
   this writes) and DIR/n.pem. DIR/state holds three bytes: confidential computing on, developers' mode, work accepted. */
#include <stdio.h>
#include <string.h>

typedef struct { unsigned cec, size, cec_size; unsigned char nonce[32], report[0x2000], cec_report[0x1000]; } attestation;
typedef struct { unsigned size, attestation_size; unsigned char chain[0x1000], attestation_chain[0x1400]; } certificates;

static char dir[512];
static int handles[16];

static unsigned slurp(const char *name, unsigned char *to, unsigned most) {
    char path[600];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "rb");
    if (!file) return 0;
    unsigned size = fread(to, 1, most, file);
    fclose(file);
    return size;
}

static void spill(const char *name, const unsigned char *from, unsigned size) {
    char path[600];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    fwrite(from, 1, size, file);
    fclose(file);
}

void fake_dir(const char *path) { snprintf(dir, sizeof dir, "%s", path); }
int nvmlInitWithFlags(unsigned flags) { (void)flags; return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { (void)code; return "fake"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    unsigned char number = 0;
    slurp("count", &number, 1);
    *count = number;
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    handles[index] = index;
    *handle = &handles[index];
    return 0;
}

int nvmlSystemGetConfComputeState(unsigned *state) {
    unsigned char bytes[3] = {0};
    slurp("state", bytes, 3);
    state[0] = 2, state[1] = bytes[0], state[2] = bytes[1];
    return 0;
}

int nvmlSystemSetConfComputeGpusReadyState(unsigned accept) {
    unsigned char bytes[3] = {0};
    slurp("state", bytes, 3);
    bytes[2] = accept;
    spill("state", bytes, 3);
    return 0;
}

int nvmlDeviceGetConfComputeGpuAttestationReport(void *handle, attestation *answer) {
    char name[32];
    snprintf(name, sizeof name, "%d.nonce", *(int *)handle);
    spill(name, answer->nonce, 32);
    snprintf(name, sizeof name, "%d.report", *(int *)handle);
    answer->size = slurp(name, answer->report, sizeof answer->report);
    return answer->size ? 0 : 3; /* NVML_ERROR_NOT_SUPPORTED */
}

int nvmlDeviceGetConfComputeGpuCertificate(void *handle, certificates *answer) {
    char name[32];
    snprintf(name, sizeof name, "%d.pem", *(int *)handle);
    answer->attestation_size = slurp(name, answer->attestation_chain, sizeof answer->attestation_chain);
    return 0;
}
