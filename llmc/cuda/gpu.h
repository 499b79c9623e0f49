/* gpu.h: everything that the CUDA kernels need of the machine: launches, shared memory, vectors of 16 bytes, bf16,
 * reductions, tensor-core and asynchronous-copy instructions, and the one stream.
 *
 * One source, two compilers: nvcc for a GPU, and a C++ compiler with dev/cuda_shim in place of the CUDA headers, which
 * runs every thread of a block as a fiber on the CPU (it defines CUDA_SHIM). What always holds, so that both work:
 *   - all inline PTX is here, a function per instruction, with the shim's model of it beside it;
 *   - kernels are launched by LAUNCH, shared memory is DYN_SHARED or SHARED, 16-byte accesses are load<N>, store<N>;
 *   - warp functions name their lanes by a true mask and no code relies on lanes running in step;
 *   - every thread of a block that has not returned reaches the same barrier; no block waits for another;
 *   - no float is added atomically: sums have one order, so the same inputs give the same bits. */
#ifndef LLMC_GPU_H
#define LLMC_GPU_H
#include "base/error.h"
#include "model/device.h"
#include <cuda_runtime.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- host: errors, launches, the stream --- */

/* A kernel or a copy failed: nothing that follows can be trusted, and there is nobody to hand an error to. */
[[noreturn]] inline void gpu_fail(cudaError_t error, const char *file, int line) {
    fprintf(stderr, "error: GPU: %s, seen at %s:%d (run it under compute-sanitizer to find the cause)\n",
            cudaGetErrorString(error), file, line);
    exit(EXIT_FAILED);
}
#define GPU_CHECK(call)                                                                                      \
    do {                                                                                                     \
        cudaError_t gpu_error = (call);                                                                      \
        if (gpu_error != cudaSuccess) gpu_fail(gpu_error, __FILE__, __LINE__);                               \
    } while (0)

/* The device of this process; device_open fills it in. All work is in the one stream, in order. */
struct Gpu {
    cudaStream_t stream;
    int sm_count;
    int cc; /* compute capability: 80, 90, 100, ... */
    Precision precision;
};
inline Gpu gpu;

/* LAUNCH(kernel, grid, block, bytes of dynamic shared memory, stream, arguments...). A kernel with template arguments
 * goes in parentheses. grid and block are numbers or dim3. An empty grid launches nothing. */
#define LAUNCH(kernel, grid, block, smem, stream, ...)                                                       \
    gpu_launch(#kernel, __FILE__, __LINE__, kernel, grid, block, smem, stream, __VA_ARGS__)

template <class... P, class... A>
inline void gpu_launch(const char *name, const char *file, int line, void (*kernel)(P...), dim3 grid,
                       dim3 block, size_t smem, cudaStream_t stream, A... args) {
    if (!grid.x || !grid.y || !grid.z) return;
#ifdef CUDA_SHIM
    (void)file, (void)line;
    shim::launch(name, grid, block, smem, stream, [=] { kernel(args...); });
#else
    (void)name;
    const size_t unasked = 32 << 10; /* more has to be asked for: than 48 KiB with the static part */
    cudaError_t error = cudaSuccess;
    if (smem > unasked)
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem);
    if (error == cudaSuccess) {
        kernel<<<grid, block, smem, stream>>>(args...);
        error = cudaGetLastError();
    }
    if (error != cudaSuccess) gpu_fail(error, file, line);
#endif
}

/* ceil(a / b), as a count of blocks. */
__host__ __device__ inline unsigned blocks_for(size_t a, size_t b) {
    return (unsigned)((a + b - 1) / b);
}

/* Device memory that kernels use for themselves: at least `bytes`, valid until the next call with the same slot. It
 * grows at first use and then stays, so that nothing is allocated in a step that is like one before it. */
enum { SCRATCH_REDUCE, SCRATCH_ENCODER, SCRATCH_MATMUL, SCRATCH_ATTENTION, SCRATCH_DECODE, NUM_SCRATCH };
void *gpu_scratch(int slot, size_t bytes);

/* --- device: shared memory --- */

/* DYN_SHARED(T, name): T *name is the dynamic shared memory of the block (128-byte aligned). Once in a kernel.
 * SHARED(T, name, [4][32]): static shared memory, an array of T. */
#ifdef CUDA_SHIM
#define DYN_SHARED(T, name) T *name = static_cast<T *>(shim::dyn_shared())
#define SHARED(T, name, dims)                                                                                \
    typedef T name##_array dims;                                                                             \
    static const char name##_site = 0;                                                                       \
    name##_array &name = *static_cast<name##_array *>(shim::shared(&name##_site, sizeof(name##_array)))
#else
#define DYN_SHARED(T, name)                                                                                  \
    extern __shared__ __align__(128) unsigned char dyn_shared_bytes[];                                       \
    T *name = reinterpret_cast<T *>(dyn_shared_bytes)
#define SHARED(T, name, dims) __shared__ T name dims
#endif

/* --- device: bf16 --- */

#ifdef FLOATX_BF16
typedef floatX bf16;
#else
typedef struct {
    uint16_t bits;
} bf16;
#endif

__host__ __device__ inline float float_from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
__host__ __device__ inline uint32_t bits_from_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* To the nearest, ties to even; any NaN becomes 0x7fff, as cvt.rn.bf16 makes it. */
__host__ __device__ inline bf16 bf16_from_float(float x) {
    bf16 y;
#ifdef __CUDA_ARCH__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    uint32_t bits = bits_from_float(x);
    y.bits = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#endif
    return y;
}
/* Up with the probability that lies below x, from the low 16 bits of `random`: right on average. */
__host__ __device__ inline bf16 bf16_from_float_stochastic(float x, uint32_t random) {
    uint32_t bits = bits_from_float(x);
    bool finite = (bits & 0x7f800000) != 0x7f800000;
    bf16 y = bf16_from_float(x);
    if (finite) y.bits = (uint16_t)((bits + (random & 0xffff)) >> 16);
    return y;
}
/* Two of them in a register, lo in the low half: what mma and ldmatrix deal in. */
__device__ inline uint32_t bf16_pair(float lo, float hi) {
    uint32_t pair;
#ifdef __CUDA_ARCH__
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(hi), "f"(lo));
#else
    pair = bf16_from_float(lo).bits | (uint32_t)bf16_from_float(hi).bits << 16;
#endif
    return pair;
}

__host__ __device__ inline float to_float(float x) {
    return x;
}
__host__ __device__ inline float to_float(bf16 x) {
    return float_from_bits((uint32_t)x.bits << 16);
}
/* from_float<T>(x): x as a T, to the nearest. */
template <class T> __host__ __device__ inline T from_float(float x);
template <> __host__ __device__ inline float from_float<float>(float x) {
    return x;
}
template <> __host__ __device__ inline bf16 from_float<bf16>(float x) {
    return bf16_from_float(x);
}

/* --- device: vectors of memory --- */

/* N values of T next to one another; 16 bytes are one access. */
template <class T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Packed {
    T v[N];
    __host__ __device__ T &operator[](int i) { return v[i]; }
    __host__ __device__ const T &operator[](int i) const { return v[i]; }
};
template <class T> using Packed128 = Packed<T, 16 / sizeof(T)>;

/* How memory is used: KEEP as usual, STREAM once (evicted first). */
enum Cache { KEEP, STREAM };

template <Cache C> __device__ inline uint4 load_16(const void *p) {
#ifdef CUDA_SHIM
    uint4 x;
    memcpy(&x, shim::aligned(p, 16), sizeof x);
    return x;
#else
    return C == STREAM ? __ldcs(static_cast<const uint4 *>(p)) : *static_cast<const uint4 *>(p);
#endif
}
template <Cache C> __device__ inline void store_16(void *p, uint4 x) {
#ifdef CUDA_SHIM
    memcpy(const_cast<void *>(shim::aligned(p, 16)), &x, sizeof x);
#else
    if (C == STREAM)
        __stcs(static_cast<uint4 *>(p), x);
    else
        *static_cast<uint4 *>(p) = x;
#endif
}
/* load<N>(p): N values from p; N is 1, or the values are a multiple of 16 bytes and p is 16-byte aligned. */
template <int N, Cache C = KEEP, class T> __device__ inline Packed<T, N> load(const T *p) {
    static_assert(N == 1 || sizeof(T) * N % 16 == 0, "one value, or whole vectors of 16 bytes");
    Packed<T, N> x;
    if constexpr (N == 1) {
        x.v[0] = *p;
    } else {
#pragma unroll
        for (int i = 0; i < (int)sizeof(x) / 16; i++) {
            uint4 part = load_16<C>(p + i * (16 / sizeof(T)));
            memcpy(x.v + i * (16 / sizeof(T)), &part, sizeof part);
        }
    }
    return x;
}
template <Cache C = KEEP, class T, int N> __device__ inline void store(T *p, const Packed<T, N> &x) {
    static_assert(N == 1 || sizeof(T) * N % 16 == 0, "one value, or whole vectors of 16 bytes");
    if constexpr (N == 1) {
        *p = x.v[0];
    } else {
#pragma unroll
        for (int i = 0; i < (int)sizeof(x) / 16; i++) {
            uint4 part;
            memcpy(&part, x.v + i * (16 / sizeof(T)), sizeof part);
            store_16<C>(p + i * (16 / sizeof(T)), part);
        }
    }
}
/* The same, as floats on this side. */
template <int N, Cache C = KEEP, class T> __device__ inline Packed<float, N> load_floats(const T *p) {
    Packed<T, N> x = load<N, C>(p);
    Packed<float, N> y;
#pragma unroll
    for (int i = 0; i < N; i++) y[i] = to_float(x[i]);
    return y;
}
template <Cache C = KEEP, class T, int N>
__device__ inline void store_floats(T *p, const Packed<float, N> &x) {
    Packed<T, N> y;
#pragma unroll
    for (int i = 0; i < N; i++) y[i] = from_float<T>(x[i]);
    store<C>(p, y);
}
/* floatX in 16 bytes: the N of a kernel's fast form. */
enum { WIDE = 16 / sizeof(floatX) };
/* Can rows of C values at these addresses be read WIDE at a time? NULL can. */
template <class... T> inline bool can_be_wide(size_t C, const T *...p) {
    return C % WIDE == 0 && ((reinterpret_cast<uintptr_t>(p) % 16 == 0) && ...);
}

/* --- device: reductions. Every thread gets the result, and the order of additions is fixed --- */

enum { WARP = 32 };
#define ALL_LANES 0xffffffffu
__device__ inline int lane_id() {
    return (int)(threadIdx.x % WARP);
}
__device__ inline int warp_id() {
    return (int)(threadIdx.x / WARP);
}

template <class T> __device__ inline T warp_sum(T x) {
#pragma unroll
    for (int half = WARP / 2; half; half /= 2) x += __shfl_xor_sync(ALL_LANES, x, half);
    return x;
}
/* A NaN is passed over. */
__device__ inline float warp_max(float x) {
#pragma unroll
    for (int half = WARP / 2; half; half /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, half));
    return x;
}
/* Over a block of whole warps in x, at most 1024 threads, all of which call it. */
template <class T> __device__ inline T block_sum(T x) {
    SHARED(T, partial, [WARP]);
    x = warp_sum(x);
    __syncthreads(); /* an earlier block_sum has been read */
    if (lane_id() == 0) partial[warp_id()] = x;
    __syncthreads();
    return warp_sum(lane_id() < (int)(blockDim.x / WARP) ? partial[lane_id()] : T(0));
}
__device__ inline float block_max(float x) {
    SHARED(float, partial, [WARP]);
    x = warp_max(x);
    __syncthreads();
    if (lane_id() == 0) partial[warp_id()] = x;
    __syncthreads();
    return warp_max(lane_id() < (int)(blockDim.x / WARP) ? partial[lane_id()] : -INFINITY);
}

/* --- device: one function per instruction --- */

/* 2^x to about 2 ulp; results below the smallest normal float are 0. */
__device__ inline float exp2_fast(float x) {
#ifdef CUDA_SHIM
    return shim::exp2_fast(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

#ifndef CUDA_SHIM
__device__ inline uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}
#endif

/* Four 8x8 matrices of 16-bit values from shared memory: lane l gives the 16-byte aligned address of row l % 8 of matrix
 * l / 8, and gets in r[i] two values of matrix i, of row l / 4 and columns l % 4 * 2 and the next. _trans: of column
 * l / 4 and rows l % 4 * 2 and the next. All lanes of the warp. */
__device__ inline void ldmatrix_x4(uint32_t r[4], const void *row) {
#ifdef CUDA_SHIM
    shim::ldmatrix_x4(r, row, false);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}
__device__ inline void ldmatrix_x4_trans(uint32_t r[4], const void *row) {
#ifdef CUDA_SHIM
    shim::ldmatrix_x4(r, row, true);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

/* d (16,8) += a (16,16) b (16,8) in bf16 with fp32 sums. Lane l, with g = l / 4, t = l % 4, holds
 *   a[0], a[1]: rows g, g+8, columns 2t, 2t+1; a[2], a[3]: the same, columns 2t+8, 2t+9;
 *   b[0], b[1]: column g, rows 2t, 2t+1 and 2t+8, 2t+9; d[0..1], d[2..3]: rows g, g+8, columns 2t, 2t+1. */
__device__ inline void mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
#ifdef CUDA_SHIM
    shim::mma_m16n8k16(d, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/* 16 bytes from global to shared memory, both 16-byte aligned, on the way until this thread has waited for them (and
 * other threads have met it at a barrier after that). Not valid: 16 zero bytes, and `global` is not read. */
__device__ inline void copy_async_16(void *shared, const void *global, bool valid = true) {
#ifdef CUDA_SHIM
    shim::copy_async_16(shared, global, valid);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
#endif
}
/* Ends a group of this thread's copies. */
__device__ inline void copy_async_commit() {
#ifdef CUDA_SHIM
    shim::copy_async_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/* Waits until at most N of this thread's groups, the newest, are on the way. */
template <int N> __device__ inline void copy_async_wait() {
#ifdef CUDA_SHIM
    shim::copy_async_wait(N);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}
#endif
