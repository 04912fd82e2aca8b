// A cuDNN that finds one algorithm, or one engine, for each convolution, and computes nothing.
#include <stdlib.h>
#include <string.h>

#include "cudnn_graph.h"

extern long pretended_count[];
enum { LIBRARY_CALLS = 1 };

size_t cudnnGetVersion(void) { return 91900; }
const char* cudnnGetErrorString(cudnnStatus_t status) { return "pretended"; }

// The first number of each result is the algorithm, the second its status.
#define CONVOLUTION(name)                                                                                              \
    int cudnnGetConvolution##name##WorkspaceSize(void* a, void* b, void* c, void* d, void* e, int f, size_t* bytes) {  \
        *bytes = 0;                                                                                                    \
        return 0;                                                                                                      \
    }                                                                                                                  \
    int cudnnFindConvolution##name##AlgorithmEx(void* a, void* b, void* c, void* d, void* e, void* f, void* g,         \
                                                void* h, int wanted, int* count, int* results) {                       \
        *count = 1;                                                                                                    \
        results[0] = 1, results[1] = 0;                                                                                \
        return 0;                                                                                                      \
    }                                                                                                                  \
    int cudnnGetConvolution##name##Algorithm_v7(void* a, void* b, void* c, void* d, void* e, int wanted, int* count,   \
                                                int* results) {                                                        \
        *count = 1;                                                                                                    \
        memset(results, 0, 16);                                                                                        \
        results[0] = 1;                                                                                                \
        return 0;                                                                                                      \
    }
CONVOLUTION(Forward)
CONVOLUTION(BackwardData)
CONVOLUTION(BackwardFilter)

cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) { *handle = (cudnnHandle_t)malloc(16); return 0; }
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) { free(handle); return 0; }
cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t* descriptor) {
    *descriptor = (cudnnBackendDescriptor_t)calloc(1, 16);
    return 0;
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) { free(descriptor); return 0; }
// One engine, without notes and without a workspace; numbers are of 8 bytes.
cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t const descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t wanted, int64_t* count, void* values) {
    const int notes = name == CUDNN_ATTR_ENGINE_NUMERICAL_NOTE || name == CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE;
    if (count) *count = !notes;
    if (values && wanted > 0 && type == CUDNN_TYPE_INT64)
        *(int64_t*)values = name == CUDNN_ATTR_OPERATIONGRAPH_ENGINE_GLOBAL_COUNT;
    return 0;
}
cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t pack) {
    pretended_count[LIBRARY_CALLS]++;
    return 0;
}
