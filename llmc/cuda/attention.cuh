/* attention.cuh: attention_forward and attention_backward of kernels.h: chooses the kernels and launches them. bf16 with
 * head sizes 64 and 128 goes to the tensor cores (attention_flash*.cuh), everything else to attention_plain.cuh. */
#ifndef LLMC_ATTENTION_CUH
#define LLMC_ATTENTION_CUH
#include "base/check.h"
#include "cuda/attention_flash.cuh"
#include "cuda/attention_flash_backward.cuh"
#include "cuda/attention_plain.cuh"
#include "model/kernels.h"

/* The window as kernels take it: 1 .. T. */
static inline int attention_window(size_t window, size_t T) {
    return (int)(window && window < T ? window : T);
}

#ifdef FLOATX_BF16
/* The shapes of the kernels: MT * 16 rows a warp, tiles of BN. MT = 2 halves reads of shared memory per score; three blocks
 * of the forward, two of the backward's kernels, are what a multiprocessor's registers and an A100's shared memory hold. */
template <int HS> struct FlashShapes;
template <> struct FlashShapes<64> {
    enum { MT = 2, BN = 32, BLOCKS = 3, BACKWARD_BN = 64, BACKWARD_BLOCKS = 2 };
};
template <> struct FlashShapes<128> {
    enum { MT = 1, BN = 32, BLOCKS = 3, BACKWARD_BN = 32, BACKWARD_BLOCKS = 2 };
};
static FlashArgs flash_args(size_t B, size_t T, size_t NH, size_t HS, size_t window, int MT) {
    float scale = 1 / sqrtf((float)HS);
    size_t heads = B * NH, tiles = blocks_for(T, (size_t)(64 * MT));
    size_t groups = heads * tiles / (4 * (size_t)gpu.sm_count); /* of more blocks than run at once */
    return {(int)T,
            (int)NH,
            attention_window(window, T),
            (int)tiles,
            (int)tiles * 64 * MT,
            (int)heads,
            (int)blocks_for(heads, groups ? groups : 1),
            scale,
            scale * LOG2_E};
}

template <int HS>
static void flash_forward(bf16 *out, float *lse, const bf16 *qkv, size_t B, size_t T, size_t NH,
                          size_t window) {
    typedef FlashShapes<HS> S;
    FlashArgs args = flash_args(B, T, NH, HS, window, S::MT);
    LAUNCH((flash_forward_kernel<HS, S::MT, S::BN, S::BLOCKS>), (unsigned)(args.heads * args.tiles),
           FLASH_THREADS, (flash_forward_shared_bytes<HS, S::MT, S::BN>()), gpu.stream, out, lse, qkv, args);
}

template <int HS>
static void flash_backward(bf16 *dqkv, const bf16 *dout, const bf16 *out, const float *lse, const bf16 *qkv,
                           size_t B, size_t T, size_t NH, size_t window) {
    typedef FlashShapes<HS> S;
    FlashArgs args = flash_args(B, T, NH, HS, window, S::MT);
    unsigned blocks = (unsigned)(args.heads * args.tiles);
    FlashRow *rows = static_cast<FlashRow *>(
        gpu_scratch(SCRATCH_ATTENTION, B * NH * (size_t)args.rows_padded * sizeof(FlashRow)));
    LAUNCH((flash_dq_kernel<HS, S::MT, S::BACKWARD_BN, S::BACKWARD_BLOCKS>), blocks, FLASH_THREADS,
           (flash_dq_shared_bytes<HS, S::MT, S::BACKWARD_BN>()), gpu.stream, dqkv, rows, dout, out, lse, qkv,
           args);
    LAUNCH((flash_dkv_kernel<HS, S::MT, S::BACKWARD_BN, false, S::BACKWARD_BLOCKS>), blocks, FLASH_THREADS,
           (flash_dkv_shared_bytes<HS, S::MT, S::BACKWARD_BN>()), gpu.stream, dqkv, rows, dout, qkv, args);
}
#endif

/* tiles: the most that one of the kernels keeps. */
static PlainArgs plain_args(size_t T, size_t NH, size_t HS, size_t window, int tiles) {
    int rows = PLAIN_ROWS_MAX;
    while (rows > 1 && plain_shared_bytes(rows, (int)HS, tiles) > PLAIN_SHARED_BYTES) rows /= 2;
    CHECK_OP(plain_shared_bytes(rows, (int)HS, tiles), <=, PLAIN_SHARED_BYTES);
    return {(int)T,
            (int)NH,
            (int)HS,
            attention_window(window, T),
            rows,
            (int)blocks_for(T, (size_t)rows),
            1 / sqrtf((float)HS)};
}

void attention_forward(floatX *out, float *lse, const floatX *qkv, size_t B, size_t T, size_t NH, size_t HS,
                       size_t window) {
    CHECK_OP(T, <, 1 << 30);
#ifdef FLOATX_BF16
    if (HS == 64) return flash_forward<64>(out, lse, qkv, B, T, NH, window);
    if (HS == 128) return flash_forward<128>(out, lse, qkv, B, T, NH, window);
#endif
    PlainArgs a = plain_args(T, NH, HS, window, 4);
    LAUNCH(plain_forward_kernel, (unsigned)(B * NH) * (unsigned)a.tiles, PLAIN_THREADS,
           plain_shared_bytes(a.rows, a.HS, 4), gpu.stream, out, lse, qkv, a);
}

void attention_backward(floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                        const floatX *qkv, size_t B, size_t T, size_t NH, size_t HS, size_t window) {
    CHECK_OP(T, <, 1 << 30);
#ifdef FLOATX_BF16
    if (HS == 64) return flash_backward<64>(dqkv, dout, out, lse, qkv, B, T, NH, window);
    if (HS == 128) return flash_backward<128>(dqkv, dout, out, lse, qkv, B, T, NH, window);
#endif
    PlainArgs a = plain_args(T, NH, HS, window, 6);
    size_t rows = B * NH * T, shared = plain_shared_bytes(a.rows, a.HS, 6);
    unsigned blocks = (unsigned)(B * NH) * (unsigned)a.tiles;
    float *delta = static_cast<float *>(gpu_scratch(SCRATCH_ATTENTION, rows * sizeof *delta));
    LAUNCH(plain_delta_kernel, blocks_for(rows, PLAIN_THREADS / WARP), PLAIN_THREADS, 0, gpu.stream, delta,
           dout, out, rows, (int)T, (int)NH, (int)HS);
    LAUNCH(plain_dq_kernel, blocks, PLAIN_THREADS, shared, gpu.stream, dqkv, delta, dout, lse, qkv, a);
    LAUNCH(plain_dkv_kernel, blocks, PLAIN_THREADS, shared, gpu.stream, dqkv, delta, dout, lse, qkv, a);
}
#endif
