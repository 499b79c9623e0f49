/* cuda_test.cu: see cuda_test.h. */
#include "cuda_test.h"
#include <cuda_runtime.h>
#include <stdlib.h>

void *cuda_test_alloc(size_t bytes) {
#ifdef CUDA_SHIM
    return malloc(bytes);
#else
    void *memory = NULL;
    return cudaMallocHost(&memory, bytes) == cudaSuccess ? memory : NULL; /* pinned: kernels reach it too */
#endif
}

void cuda_test_free(void *memory) {
#ifdef CUDA_SHIM
    free(memory);
#else
    cudaFreeHost(memory);
#endif
}

void cuda_test_sync(void) {
    if (cudaDeviceSynchronize() != cudaSuccess) abort();
}

void cuda_test_order(int n) {
#ifdef CUDA_SHIM
    shim_order_set(n == 1 ? SHIM_FORWARD : n == 2 ? SHIM_REVERSE : SHIM_RANDOM, (uint64_t)n);
#else
    (void)n;
#endif
}
