// A cuBLAS whose products compute nothing.
#include <stdlib.h>

extern long pretended_count[];
enum { LIBRARY_CALLS = 1 };

int cublasCreate_v2(void** handle) { *handle = malloc(16); return 0; }
int cublasDestroy_v2(void* handle) { free(handle); return 0; }
#define PRODUCT(name) \
    int name() { pretended_count[LIBRARY_CALLS]++; return 0; }
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasGemmEx)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasGemmBatchedEx)
