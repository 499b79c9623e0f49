/* encoder.cuh: token and position embeddings: rows gathered forward, rows added up backward.
 *
 * Backward, many rows of dout go to one row of dwte. So that the order of additions is fixed, positions are first
 * sorted by token, stably (three passes over 7 bits each: a token is below 2^21). The sorted positions are cut into
 * tiles; a warp adds up the runs of equal tokens in its tile, and runs that cross tiles are put together from the
 * tiles' partial sums, in order. Nothing is added atomically but counts. */
#ifndef LLMC_CUDA_ENCODER_CUH
#define LLMC_CUDA_ENCODER_CUH
#include "cuda/gpu.h"
#include "model/kernels.h"

namespace encoder {
enum {
    WARPS = 8,      /* in a block; each has its own row */
    DIGIT_BITS = 7, /* of a token, sorted in one pass */
    DIGITS = 1 << DIGIT_BITS,
    PASSES = 3,
    CHUNK = 256, /* positions that one warp sorts */
    TILE = 64,   /* sorted positions that one warp adds up */
    SCAN_THREADS = 512
};

template <int N>
__global__ void forward_kernel(floatX *out, const int32_t *tokens, const floatX *wte, const floatX *wpe,
                               size_t rows, size_t T, size_t C) {
    size_t row = (size_t)blockIdx.x * WARPS + (size_t)warp_id();
    if (row >= rows) return;
    const floatX *token = wte + (size_t)tokens[row] * C, *position = wpe + row % T * C;
    for (size_t c = (size_t)lane_id() * N; c < C; c += WARP * N) {
        Packed<float, N> x = load_floats<N>(token + c), y = load_floats<N>(position + c);
#pragma unroll
        for (int i = 0; i < N; i++) x[i] += y[i];
        store_floats(out + row * C + c, x);
    }
}

/* --- sorting: keys (tokens) and values (positions) by one digit --- */

__device__ inline unsigned digit_of(int32_t token, int pass) {
    return (uint32_t)token >> (pass * DIGIT_BITS) & (DIGITS - 1);
}

/* counts (DIGITS, chunks): how many of the chunk's keys have this digit. */
static __global__ void count_kernel(unsigned *counts, const int32_t *keys, size_t N, size_t chunks,
                                    int pass) {
    SHARED(unsigned, count, [WARPS][DIGITS]);
    size_t chunk = (size_t)blockIdx.x * WARPS + (size_t)warp_id();
    unsigned *mine = count[warp_id()];
    for (int d = lane_id(); d < DIGITS; d += WARP) mine[d] = 0;
    __syncwarp();
    for (size_t i = chunk * CHUNK + (size_t)lane_id(); i < N && i < (chunk + 1) * CHUNK; i += WARP)
        atomicAdd(&mine[digit_of(keys[i], pass)], 1u);
    __syncwarp();
    for (size_t d = (size_t)lane_id(); d < DIGITS && chunk < chunks; d += WARP)
        counts[d * chunks + chunk] = mine[d];
}

/* Each of n counts becomes the sum of those before it. One block: a thread adds up a stretch, then the threads' sums
 * are scanned. */
static __global__ void scan_kernel(unsigned *counts, size_t n) {
    SHARED(unsigned, sums, [2][SCAN_THREADS]);
    size_t each = (n + SCAN_THREADS - 1) / SCAN_THREADS, from = threadIdx.x * each;
    unsigned sum = 0, before;
    for (size_t i = from; i < n && i < from + each; i++) sum += counts[i];
    sums[0][threadIdx.x] = sum;
    __syncthreads();
    int now = 0;
    for (unsigned step = 1; step < SCAN_THREADS; step *= 2, now = 1 - now) {
        before = threadIdx.x >= step ? sums[now][threadIdx.x - step] : 0;
        sums[1 - now][threadIdx.x] = sums[now][threadIdx.x] + before;
        __syncthreads();
    }
    sum = sums[now][threadIdx.x] - sum;
    for (size_t i = from; i < n && i < from + each; i++) {
        unsigned here = counts[i];
        counts[i] = sum;
        sum += here;
    }
}

/* Moves each pair to its place among all. values NULL: a position is its own value (the first pass). */
static __global__ void scatter_kernel(int32_t *keys_out, unsigned *values_out, const int32_t *keys,
                                      const unsigned *values, const unsigned *starts, size_t N, size_t chunks,
                                      int pass) {
    SHARED(unsigned, next, [WARPS][DIGITS]);
    size_t chunk = (size_t)blockIdx.x * WARPS + (size_t)warp_id();
    if (chunk >= chunks) return;
    unsigned *mine = next[warp_id()];
    for (size_t d = (size_t)lane_id(); d < DIGITS; d += WARP) mine[d] = starts[d * chunks + chunk];
    __syncwarp();
    for (size_t at = chunk * CHUNK; at < N && at < (chunk + 1) * CHUNK; at += WARP) {
        size_t i = at + (size_t)lane_id();
        int32_t key = i < N ? keys[i] : 0;
        unsigned digit = digit_of(key, pass), peers = __ballot_sync(ALL_LANES, i < N);
        for (int bit = 0; bit < DIGIT_BITS; bit++) {
            unsigned ones = __ballot_sync(ALL_LANES, digit >> bit & 1);
            peers &= digit >> bit & 1 ? ones : ~ones;
        }
        unsigned rank = (unsigned)__popc(peers & ((1u << lane_id()) - 1)), to = mine[digit] + rank;
        __syncwarp();
        if (i < N) {
            if (rank == 0) mine[digit] += (unsigned)__popc(peers);
            keys_out[to] = key;
            values_out[to] = values ? values[i] : (unsigned)i;
        }
        __syncwarp();
    }
}

/* --- adding up --- */

/* dwpe: over the batch, in order. Thread: one position, N columns. */
template <int N>
__global__ void backward_positions_kernel(floatX *dwpe, const floatX *dout, size_t B, size_t T, size_t C) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (at >= T * C) return;
    Packed<float, N> sum = {};
    for (size_t b = 0; b < B; b++) {
        Packed<float, N> d = load_floats<N>(dout + b * T * C + at);
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] += d[i];
    }
    Packed<float, N> old = load_floats<N>(dwpe + at);
#pragma unroll
    for (int i = 0; i < N; i++) sum[i] += old[i];
    store_floats(dwpe + at, sum);
}

struct Runs {
    const int32_t *tokens;     /* (N) sorted */
    const unsigned *positions; /* (N) where they stood */
    float
        *partial; /* (tiles, 2, C): sum of the run that came from the tile before; of the one that goes on */
    size_t N, C;
};

template <int N> __device__ inline void add_to(floatX *to, Packed<float, N> sum) {
    Packed<float, N> old = load_floats<N>(to);
#pragma unroll
    for (int i = 0; i < N; i++) sum[i] += old[i];
    store_floats(to, sum);
}

/* Warp: one tile, WARP * N columns. */
template <int N> __global__ void backward_tiles_kernel(floatX *dwte, const floatX *dout, Runs r) {
    size_t tile = (size_t)blockIdx.x * WARPS + (size_t)warp_id(), from = tile * TILE, to = from + TILE;
    size_t c = ((size_t)blockIdx.y * WARP + (size_t)lane_id()) * N;
    if (to > r.N) to = r.N;
    for (size_t i = from; i < to && c < r.C;) {
        int32_t token = r.tokens[i];
        bool from_before = i == from && i > 0 && r.tokens[i - 1] == token;
        Packed<float, N> sum = {};
        for (; i < to && r.tokens[i] == token; i++) {
            Packed<float, N> d = load_floats<N>(dout + r.positions[i] * r.C + c);
#pragma unroll
            for (int k = 0; k < N; k++) sum[k] += d[k];
        }
        bool goes_on = i == to && to < r.N && r.tokens[to] == token;
        if (from_before)
            store(r.partial + tile * 2 * r.C + c, sum);
        else if (goes_on)
            store(r.partial + (tile * 2 + 1) * r.C + c, sum);
        else
            add_to(dwte + (size_t)token * r.C + c, sum);
    }
}

/* Warp: the run that begins in one tile and goes on into the next ones, if there is one; WARP * N columns. */
template <int N> __global__ void backward_runs_kernel(floatX *dwte, Runs r) {
    size_t tile = (size_t)blockIdx.x * WARPS + (size_t)warp_id(), to = (tile + 1) * TILE;
    size_t c = ((size_t)blockIdx.y * WARP + (size_t)lane_id()) * N;
    if (to >= r.N || c >= r.C) return;
    int32_t token = r.tokens[to - 1];
    size_t from = tile * TILE;
    if (r.tokens[to] != token || (from && r.tokens[from - 1] == token && r.tokens[from] == token)) return;
    Packed<float, N> sum = load<N>(r.partial + (tile * 2 + 1) * r.C + c);
    for (size_t i = to; i < r.N && r.tokens[i] == token; i += TILE) {
        Packed<float, N> part = load<N>(r.partial + i / TILE * 2 * r.C + c);
#pragma unroll
        for (int k = 0; k < N; k++) sum[k] += part[k];
    }
    add_to(dwte + (size_t)token * r.C + c, sum);
}

template <int N>
static void backward(floatX *dwte, floatX *dwpe, const floatX *dout, Runs runs, size_t B, size_t T,
                     size_t C) {
    const size_t threads = 128, tiles = blocks_for(runs.N, TILE);
    const dim3 grid(blocks_for(tiles, WARPS), blocks_for(C, WARP * N));
    LAUNCH(backward_positions_kernel<N>, blocks_for(T * C / N, threads), threads, 0, gpu.stream, dwpe, dout,
           B, T, C);
    LAUNCH(backward_tiles_kernel<N>, grid, WARPS * WARP, 0, gpu.stream, dwte, dout, runs);
    LAUNCH(backward_runs_kernel<N>, grid, WARPS * WARP, 0, gpu.stream, dwte, runs);
}

/* Two sets of keys and values to sort between, the counts, and the partial sums. */
static Runs sort(const int32_t *tokens, size_t N, size_t C) {
    size_t chunks = blocks_for(N, CHUNK), n = (N + 3) / 4 * 4, tiles = blocks_for(N, TILE);
    size_t words = 4 * n + DIGITS * chunks;
    char *memory = (char *)gpu_scratch(SCRATCH_ENCODER, (words + tiles * 2 * C) * sizeof(float));
    int32_t *keys[2] = {(int32_t *)memory, (int32_t *)memory + n};
    unsigned *values[2] = {(unsigned *)memory + 2 * n, (unsigned *)memory + 3 * n};
    unsigned *counts = (unsigned *)memory + 4 * n, grid = blocks_for(chunks, WARPS);
    const int32_t *from = tokens;
    const unsigned *from_values = NULL;
    for (int pass = 0; pass < PASSES; pass++) {
        int32_t *to = keys[pass % 2];
        unsigned *to_values = values[pass % 2];
        LAUNCH(count_kernel, grid, WARPS * WARP, 0, gpu.stream, counts, from, N, chunks, pass);
        LAUNCH(scan_kernel, 1, SCAN_THREADS, 0, gpu.stream, counts, DIGITS * chunks);
        LAUNCH(scatter_kernel, grid, WARPS * WARP, 0, gpu.stream, to, to_values, from, from_values, counts, N,
               chunks, pass);
        from = to;
        from_values = to_values;
    }
    return {from, from_values, (float *)memory + words, N, C};
}
} // namespace encoder

void encoder_forward(floatX *out, const int32_t *tokens, const floatX *wte, const floatX *wpe, size_t B,
                     size_t T, size_t C) {
    using namespace encoder;
    auto kernel = can_be_wide(C, out, wte, wpe) ? forward_kernel<WIDE> : forward_kernel<1>;
    LAUNCH(kernel, blocks_for(B * T, WARPS), WARPS * WARP, 0, gpu.stream, out, tokens, wte, wpe, B * T, T, C);
}

void encoder_backward(floatX *dwte, floatX *dwpe, const floatX *dout, const int32_t *tokens, size_t B,
                      size_t T, size_t C) {
    encoder::Runs runs = encoder::sort(tokens, B * T, C);
    if (can_be_wide(C, dwte, dwpe, dout))
        encoder::backward<WIDE>(dwte, dwpe, dout, runs, B, T, C);
    else
        encoder::backward<1>(dwte, dwpe, dout, runs, B, T, C);
}
#endif
