/* cuda_runtime.h: the part of CUDA's language and runtime that the project uses, for a C++ compiler: this folder comes
 * first in the include path instead of CUDA's. See shim.h. */
#ifndef SHIM_CUDA_RUNTIME_H
#define SHIM_CUDA_RUNTIME_H
#define CUDA_SHIM 1
#include "shim.h"
#include <cmath>
#include <cstdlib>

/* --- language. __shared__ is missing on purpose: gpu.h's SHARED and DYN_SHARED --- */

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define threadIdx (::shim::thread->index)
#define blockIdx  (::shim::block_index)
#define blockDim  (::shim::block_dim)
#define gridDim   (::shim::grid_dim)

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
inline float2 make_float2(float x, float y) {
    return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}
inline uint2 make_uint2(unsigned x, unsigned y) {
    return {x, y};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return {x, y, z, w};
}
inline int2 make_int2(int x, int y) {
    return {x, y};
}
inline int4 make_int4(int x, int y, int z, int w) {
    return {x, y, z, w};
}

/* --- barriers and warp functions --- */

inline void __syncthreads(const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
    shim::barrier(0, file, line);
}
inline int __syncthreads_or(int p, const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
    return shim::barrier(p, file, line).any;
}
inline int __syncthreads_and(int p, const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
    return shim::barrier(p, file, line).all;
}
inline int __syncthreads_count(int p, const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
    return shim::barrier(p, file, line).count;
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    shim::exchange(mask, nullptr, 0, "__syncwarp");
}
inline void __threadfence() {}
inline void __threadfence_block() {}

/* The lane `to` that lies in the same group of `width` lanes as the caller, or else the caller. */
inline int shim_lane_in_group(int to, int width) {
    int me = shim::thread->lane;
    return to >= 0 && to / width == me / width ? to : me;
}
template <class T> inline T __shfl_sync(unsigned mask, T x, int from, int width = 32) {
    int first = shim::thread->lane / width * width;
    return shim::shuffle(mask, x, first + (from & (width - 1)), "__shfl_sync");
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T x, int bits, int width = 32) {
    int from = shim::thread->lane ^ bits;
    if (from / width < shim::thread->lane / width) return shim::shuffle(mask, x, from, "__shfl_xor_sync");
    return shim::shuffle(mask, x, shim_lane_in_group(from, width), "__shfl_xor_sync");
}
template <class T> inline T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = 32) {
    return shim::shuffle(mask, x, shim_lane_in_group(shim::thread->lane + (int)by, width),
                         "__shfl_down_sync");
}
template <class T> inline T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = 32) {
    return shim::shuffle(mask, x, shim_lane_in_group(shim::thread->lane - (int)by, width), "__shfl_up_sync");
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    unsigned mine = predicate != 0, all = 0;
    const shim::Slot *slots = shim::exchange(mask, &mine, sizeof mine, "__ballot_sync");
    for (int lane = 0; lane < shim::LANES; lane++)
        if (mask >> lane & 1) all |= (unsigned)(slots[lane][0] & 1) << lane;
    return all;
}
inline int __any_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, predicate) == mask;
}

/* --- atomics on integers (fibers are not interrupted) --- */

template <class T> inline T shim_atomic(T *p, T value) {
    static_assert(!std::is_floating_point<T>::value, "no atomics on floats: their sums depend on the order");
    T old = *p;
    *p = value;
    return old;
}
template <class T> inline T atomicAdd(T *p, T x) {
    return shim_atomic(p, (T)(*p + x));
}
template <class T> inline T atomicMax(T *p, T x) {
    return shim_atomic(p, *p < x ? x : *p);
}
template <class T> inline T atomicMin(T *p, T x) {
    return shim_atomic(p, x < *p ? x : *p);
}
template <class T> inline T atomicOr(T *p, T x) {
    return shim_atomic(p, (T)(*p | x));
}
template <class T> inline T atomicExch(T *p, T x) {
    return shim_atomic(p, x);
}
template <class T> inline T atomicCAS(T *p, T expected, T x) {
    return shim_atomic(p, *p == expected ? x : *p);
}

/* --- arithmetic that C++ lacks --- */

inline float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
inline float __expf(float x) {
    return expf(x);
}
inline float __logf(float x) {
    return logf(x);
}
inline float __fdividef(float a, float b) {
    return a / b;
}
inline int __float2int_rn(float x) {
    return (int)rintf(x);
}
inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
inline int __clz(int x) {
    return x ? __builtin_clz((unsigned)x) : 32;
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((uint64_t)a * b >> 32);
}
template <class T> inline T __ldg(const T *p) {
    return *p;
}
inline int min(int a, int b) {
    return a < b ? a : b;
}
inline int max(int a, int b) {
    return a > b ? a : b;
}
inline unsigned min(unsigned a, unsigned b) {
    return a < b ? a : b;
}
inline unsigned max(unsigned a, unsigned b) {
    return a > b ? a : b;
}
inline float min(float a, float b) {
    return fminf(a, b);
}
inline float max(float a, float b) {
    return fmaxf(a, b);
}

/* --- runtime: device memory is host memory --- */

typedef int cudaError_t;
enum {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorNoDevice = 100,
    cudaErrorNotReady = 600
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};
enum { cudaEventDefault = 0, cudaEventDisableTiming = 2, cudaStreamNonBlocking = 1, cudaMemAttachGlobal = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
typedef struct shim_event *cudaEvent_t;
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount, maxThreadsPerMultiProcessor, l2CacheSize;
    int pciDomainID, pciBusID, pciDeviceID;
    size_t sharedMemPerBlockOptin, sharedMemPerMultiprocessor, totalGlobalMem;
};

const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device);
enum cudaDeviceAttr { cudaDevAttrClockRate = 13 };
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total);
cudaError_t cudaDeviceSynchronize();

cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaMallocManaged(void **p, size_t bytes, unsigned flags = cudaMemAttachGlobal);
cudaError_t cudaMallocHost(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaFreeHost(void *p);
enum { cudaHostRegisterDefault = 0 };
cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned flags);
cudaError_t cudaHostUnregister(void *p);
template <class T> inline cudaError_t cudaMalloc(T **p, size_t bytes) {
    return cudaMalloc((void **)p, bytes);
}
template <class T> inline cudaError_t cudaMallocHost(T **p, size_t bytes) {
    return cudaMallocHost((void **)p, bytes);
}

/* Between device and pageable host memory these wait, as the real ones do; pinned memory (cudaMallocHost) they do not
 * touch before the stream is waited for. */
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream = nullptr);
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream = nullptr);
cudaError_t cudaMemset(void *p, int value, size_t bytes);

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventCreate(cudaEvent_t *event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to);

template <class F> inline cudaError_t cudaFuncSetAttribute(F *, cudaFuncAttribute attribute, int value) {
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize && value > shim::SHARED_BYTES_MAX)
        return cudaErrorInvalidValue;
    return cudaSuccess;
}
#endif
