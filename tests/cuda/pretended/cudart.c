// A CUDA runtime without a GPU: its memory is the host's, kernels do nothing; one device of the capability
// CAPABILITY / 10.
// `pretended_count` counts what a program asks of it, in the order of COUNTS in build.py.
#include <stdlib.h>
#include <string.h>

#include "driver_types.h"

enum { LAUNCHES, LIBRARY_CALLS, TO_DEVICE, TO_DEVICE_BYTES, TO_HOST, TO_HOST_BYTES, WITHIN, SYNCHRONISATIONS, ALLOCATIONS };
long pretended_count[9];

static int copy(void* to, const void* from, size_t bytes, int kind) {
    if (kind == cudaMemcpyHostToDevice) pretended_count[TO_DEVICE]++, pretended_count[TO_DEVICE_BYTES] += bytes;
    if (kind == cudaMemcpyDeviceToHost) pretended_count[TO_HOST]++, pretended_count[TO_HOST_BYTES] += bytes;
    if (kind == cudaMemcpyDeviceToDevice) pretended_count[WITHIN]++;
    memcpy(to, from, bytes);
    return 0;
}
int cudaMemcpy(void* to, const void* from, size_t bytes, int kind) {
    if (kind != cudaMemcpyDeviceToDevice) pretended_count[SYNCHRONISATIONS]++;
    return copy(to, from, bytes, kind);
}
int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int kind, void* stream) { return copy(to, from, bytes, kind); }
int cudaMemset(void* data, int value, size_t bytes) { memset(data, value, bytes); return 0; }
int cudaMemsetAsync(void* data, int value, size_t bytes, void* stream) { memset(data, value, bytes); return 0; }

// Large blocks are pages that the system fills with zeros once they are read.
static int allocate(void** data, size_t bytes) {
    if (posix_memalign(data, 512, bytes + 512)) return cudaErrorMemoryAllocation;
    memset(*data, 0, bytes < 1 << 16 ? bytes : 1 << 16);
    return 0;
}
int cudaMalloc(void** data, size_t bytes) { pretended_count[ALLOCATIONS]++; return allocate(data, bytes); }
int cudaMallocManaged(void** data, size_t bytes, unsigned flags) { return allocate(data, bytes); }
int cudaMallocHost(void** data, size_t bytes) { return allocate(data, bytes); }
int cudaHostAlloc(void** data, size_t bytes, unsigned flags) { return allocate(data, bytes); }
int cudaFree(void* data) { free(data); return 0; }
int cudaFreeHost(void* data) { free(data); return 0; }
int cudaMemGetInfo(size_t* unused, size_t* total) { *unused = *total = 80ll << 30; return 0; }
int cudaPointerGetAttributes(struct cudaPointerAttributes* attributes, const void* pointer) {
    memset(attributes, 0, sizeof *attributes);
    attributes->type = cudaMemoryTypeDevice;
    attributes->devicePointer = (void*)pointer;
    return 0;
}

int cudaGetDeviceCount(int* count) { *count = 1; return 0; }
int cudaGetDevice(int* device) { *device = 0; return 0; }
int cudaGetDeviceProperties(struct cudaDeviceProp* properties, int device) {
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "pretended device");
    properties->major = CAPABILITY / 10;
    properties->minor = CAPABILITY % 10;
    properties->totalGlobalMem = 80ll << 30;
    properties->multiProcessorCount = 132;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->sharedMemPerBlock = 49152;
    properties->regsPerBlock = 65536;
    return 0;
}
int cudaDeviceGetAttribute(int* value, int attribute, int device) {
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = CAPABILITY / 10; break;
        case cudaDevAttrComputeCapabilityMinor: *value = CAPABILITY % 10; break;
        case cudaDevAttrMultiProcessorCount: *value = 132; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMaxThreadsPerBlock: case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: *value = 1024; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
        case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
        default: *value = 1;
    }
    return 0;
}
int cudaRuntimeGetVersion(int* version) { *version = 13000; return 0; }
int cudaDriverGetVersion(int* version) { *version = 13000; return 0; }
const char* cudaGetErrorString(int error) { return "pretended"; }
const char* cudaGetErrorName(int error) { return "pretended"; }

static int handle(void** value) { *value = (void*)16; return 0; }
int cudaStreamCreate(void** stream) { return handle(stream); }
int cudaStreamCreateWithFlags(void** stream, unsigned flags) { return handle(stream); }
int cudaEventCreate(void** event) { return handle(event); }
int cudaEventCreateWithFlags(void** event, unsigned flags) { return handle(event); }
int cudaDeviceSynchronize(void) { pretended_count[SYNCHRONISATIONS]++; return 0; }
int cudaStreamSynchronize(void* stream) { pretended_count[SYNCHRONISATIONS]++; return 0; }
int cudaLaunchHostFunc(void* stream, void (*function)(void*), void* data) { function(data); return 0; }

void** __cudaRegisterFatBinary(void* binary) { static void* module[4]; return module; }
int __cudaGetKernel(void** kernel, const void* function) { *kernel = (void*)function; return 0; }
int cudaLaunchKernel() { pretended_count[LAUNCHES]++; return 0; }
int __cudaLaunchKernel() { pretended_count[LAUNCHES]++; return 0; }
int cudaLaunchKernelExC() { pretended_count[LAUNCHES]++; return 0; }
int cudaFuncGetAttributes(struct cudaFuncAttributes* attributes, const void* function) {
    memset(attributes, 0, sizeof *attributes);
    attributes->ptxVersion = attributes->binaryVersion = CAPABILITY;
    attributes->maxThreadsPerBlock = 1024;
    return 0;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* count) { *count = 2; return 0; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* count) { *count = 2; return 0; }
