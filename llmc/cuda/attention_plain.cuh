/* attention_plain.cuh: attention for any head size and for fp32: tiles in shared memory and ordinary multiply-adds.
 *
 * A block owns R rows of one head and walks the other side in tiles of R, with everything that it needs of both in shared
 * memory as floats, so R is what fits there (at most 32, a lane per column of a tile's scores). It adds in one order:
 * the bits repeat. */
#ifndef LLMC_ATTENTION_PLAIN_CUH
#define LLMC_ATTENTION_PLAIN_CUH
#include "cuda/gpu.h"

enum { PLAIN_THREADS = 256, PLAIN_ROWS_MAX = 32, PLAIN_SHARED_BYTES = 96 << 10 };

/* window is 1 .. T; rows: R; blocks per head: ceil(T / R). */
struct PlainArgs {
    int T, NH, HS, window, rows, tiles;
    float scale; /* 1 / sqrt(HS) */
};

/* Rows of HS floats are HS | 1 apart: neighbours in a column are in different banks. */
__host__ __device__ inline int plain_stride(int HS) {
    return HS | 1;
}
/* Shared memory of `tiles` tiles of R rows and two of scores. */
__host__ inline size_t plain_shared_bytes(int R, int HS, int tiles) {
    return ((size_t)tiles * (size_t)plain_stride(HS) + 2 * (PLAIN_ROWS_MAX + 1) + 4) * (size_t)R *
           sizeof(float);
}

/* Where a block works, and the parts of its shared memory. */
struct PlainBlock {
    size_t index, qkv, out; /* head index b * NH + h; offsets of its row 0 */
    size_t qkv_stride, out_stride;
    int block, stride;
    __device__ explicit PlainBlock(const PlainArgs &a) {
        unsigned head = blockIdx.x / (unsigned)a.tiles;
        size_t b = head / (unsigned)a.NH, h = head % (unsigned)a.NH;
        index = head, block = (int)(blockIdx.x % (unsigned)a.tiles);
        out_stride = (size_t)a.NH * (size_t)a.HS, qkv_stride = 3 * out_stride;
        out = b * (size_t)a.T * out_stride + h * (size_t)a.HS;
        qkv = b * (size_t)a.T * qkv_stride + h * (size_t)a.HS;
        stride = plain_stride(a.HS);
    }
};

/* Rows first .. first+R-1 as floats; zeros from T on. */
__device__ inline void plain_load(float *tile, const floatX *rows, size_t stride, int first,
                                  const PlainArgs &a) {
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < a.rows * a.HS; i += PLAIN_THREADS) {
        int row = i / a.HS, c = i % a.HS;
        tile[row * plain_stride(a.HS) + c] =
            first + row < a.T ? to_float(rows[(size_t)(first + row) * stride + (size_t)c]) : 0;
    }
}
__device__ inline void plain_zero(float *tile, const PlainArgs &a) {
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < a.rows * plain_stride(a.HS); i += PLAIN_THREADS) tile[i] = 0;
}
__device__ inline void plain_store(floatX *rows, size_t stride, int first, const float *tile, float factor,
                                   const PlainArgs &a) {
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < a.rows * a.HS; i += PLAIN_THREADS) {
        int row = i / a.HS, c = i % a.HS;
        if (first + row < a.T)
            rows[(size_t)(first + row) * stride + (size_t)c] =
                from_float<floatX>(tile[row * plain_stride(a.HS) + c] * factor);
    }
}

__device__ inline float plain_dot(const float *x, const float *y, int n) {
    float sum = 0;
#pragma unroll 4
    for (int i = 0; i < n; i++) sum = fmaf(x[i], y[i], sum);
    return sum;
}
/* A thread adds to the elements that it stores in plain_store, so no barrier is needed between the two.
 * sum (R,HS) += scores (R,R) times tile (R,HS), or the transposed scores. A row of scores is PLAIN_ROWS_MAX + 1 long. */
__device__ inline void plain_add_product(float *sum, const float *scores, bool transposed, const float *tile,
                                         const PlainArgs &a) {
    const int LONG = PLAIN_ROWS_MAX + 1, down = transposed ? 1 : LONG, right = transposed ? LONG : 1;
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < a.rows * a.HS; i += PLAIN_THREADS) {
        int row = i / a.HS, c = i % a.HS;
        float *to = sum + row * plain_stride(a.HS) + c, x = *to;
#pragma unroll 4
        for (int k = 0; k < a.rows; k++)
            x = fmaf(scores[row * down + k * right], tile[k * plain_stride(a.HS) + c], x);
        *to = x;
    }
}

__device__ inline bool plain_is_seen(int query, int key, const PlainArgs &a) {
    return query < a.T && key <= query && key > query - a.window;
}

/* out (B,T,NH,HS), lse (B,NH,T): a warp's lanes are the columns of a row of scores. */
__global__ void __launch_bounds__(PLAIN_THREADS, 2)
    plain_forward_kernel(floatX *out, float *lse, const floatX *qkv, PlainArgs a) {
    DYN_SHARED(float, shared);
    const PlainBlock at(a);
    const int R = a.rows, tile_floats = R * at.stride, LONG = PLAIN_ROWS_MAX + 1, lane = lane_id();
    float *q = shared, *k = q + tile_floats, *v = k + tile_floats, *o = v + tile_floats, *p = o + tile_floats;
    float *max = p + R * LONG, *sum = max + R;
    const floatX *from = qkv + at.qkv;
    const int q0 = at.block * R, last = min(q0 + R, a.T) - 1, first = q0 - a.window + 1;
    plain_load(q, from, at.qkv_stride, q0, a);
    plain_zero(o, a);
    for (int r = (int)threadIdx.x; r < R; r += PLAIN_THREADS) max[r] = -INFINITY, sum[r] = 0;
    for (int k0 = first > 0 ? first / R * R : 0; k0 <= last; k0 += R) {
        __syncthreads(); /* the tile before has been used */
        plain_load(k, from + at.out_stride, at.qkv_stride, k0, a);
        plain_load(v, from + 2 * at.out_stride, at.qkv_stride, k0, a);
        __syncthreads();
        for (int r = warp_id(); r < R; r += PLAIN_THREADS / WARP) {
            float s = -INFINITY;
            if (lane < R && plain_is_seen(q0 + r, k0 + lane, a))
                s = a.scale * plain_dot(q + r * at.stride, k + lane * at.stride, a.HS);
            float before = max[r], top = fmaxf(warp_max(s), before);
            float factor = before == top ? 1 : expf(before - top), e = s == -INFINITY ? 0 : expf(s - top);
            float total = warp_sum(e); /* to which every lane gives, so all have read max[r] */
            if (lane < R) p[r * LONG + lane] = e;
            if (lane == 0) max[r] = top, sum[r] = sum[r] * factor + total;
#pragma unroll 1
            for (int c = lane; c < a.HS; c += WARP) o[r * at.stride + c] *= factor;
        }
        __syncthreads();
        plain_add_product(o, p, false, v, a);
    }
    __syncthreads();
    for (int r = (int)threadIdx.x; r < R; r += PLAIN_THREADS)
        if (q0 + r < a.T) lse[at.index * (size_t)a.T + (size_t)(q0 + r)] = max[r] + logf(sum[r]);
#pragma unroll 1
    for (int r = warp_id(); r < R; r += PLAIN_THREADS / WARP) {
        float factor = __fdividef(1, sum[r]);
#pragma unroll 1
        for (int c = lane; c < a.HS; c += WARP) o[r * at.stride + c] *= factor;
    }
    __syncthreads();
    plain_store(out + at.out, at.out_stride, q0, o, 1, a);
}

/* delta (B,NH,T) = row sums of dout * out. A warp for each row. */
__global__ void __launch_bounds__(PLAIN_THREADS, 2)
    plain_delta_kernel(float *delta, const floatX *dout, const floatX *out, size_t rows, int T, int NH,
                       int HS) {
    size_t row = (size_t)blockIdx.x * (PLAIN_THREADS / WARP) + (size_t)warp_id();
    if (row >= rows) return;
    size_t t = row % (unsigned)T, h = row / (unsigned)T % (unsigned)NH, b = row / (unsigned)T / (unsigned)NH;
    size_t at = ((b * (unsigned)T + t) * (unsigned)NH + h) * (unsigned)HS;
    float sum = 0;
    for (int c = lane_id(); c < HS; c += WARP)
        sum += to_float(dout[at + (size_t)c]) * to_float(out[at + (size_t)c]);
    sum = warp_sum(sum);
    if (lane_id() == 0) delta[row] = sum;
}

/* What the backward kernels share: p and ds (R,R) of queries q0 .. and keys k0 .., 0 where not seen. */
__device__ inline void plain_gradients(float *p, float *ds, const float *q, const float *k, const float *v,
                                       const float *g, const float *lse, const float *delta, int q0, int k0,
                                       const PlainArgs &a) {
    const int stride = plain_stride(a.HS), LONG = PLAIN_ROWS_MAX + 1;
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < a.rows * a.rows; i += PLAIN_THREADS) {
        int r = i / a.rows, c = i % a.rows;
        float e = 0, d = 0;
        if (plain_is_seen(q0 + r, k0 + c, a)) {
            e = expf(a.scale * plain_dot(q + r * stride, k + c * stride, a.HS) - lse[q0 + r]);
            d = e * (plain_dot(g + r * stride, v + c * stride, a.HS) - delta[q0 + r]);
        }
        p[r * LONG + c] = e, ds[r * LONG + c] = d;
    }
}

/* The queries' third of dqkv (B,T,3,NH,HS). */
__global__ void __launch_bounds__(PLAIN_THREADS, 2)
    plain_dq_kernel(floatX *dqkv, const float *delta, const floatX *dout, const float *lse, const floatX *qkv,
                    PlainArgs a) {
    DYN_SHARED(float, shared);
    const PlainBlock at(a);
    const int R = a.rows, tile_floats = R * at.stride, LONG = PLAIN_ROWS_MAX + 1;
    float *q = shared, *g = q + tile_floats, *k = g + tile_floats, *v = k + tile_floats,
          *dq = v + tile_floats;
    float *p = dq + tile_floats, *ds = p + R * LONG;
    const floatX *from = qkv + at.qkv;
    const size_t row = at.index * (size_t)a.T;
    const int q0 = at.block * R, last = min(q0 + R, a.T) - 1, first = q0 - a.window + 1;
    plain_load(q, from, at.qkv_stride, q0, a);
    plain_load(g, dout + at.out, at.out_stride, q0, a);
    plain_zero(dq, a);
    for (int k0 = first > 0 ? first / R * R : 0; k0 <= last; k0 += R) {
        __syncthreads(); /* the tile before has been used */
        plain_load(k, from + at.out_stride, at.qkv_stride, k0, a);
        plain_load(v, from + 2 * at.out_stride, at.qkv_stride, k0, a);
        __syncthreads();
        plain_gradients(p, ds, q, k, v, g, lse + row, delta + row, q0, k0, a);
        __syncthreads();
        plain_add_product(dq, ds, false, k, a);
    }
    plain_store(dqkv + at.qkv, at.qkv_stride, q0, dq, a.scale, a);
}

/* The keys' and values' thirds of dqkv. */
__global__ void __launch_bounds__(PLAIN_THREADS, 2)
    plain_dkv_kernel(floatX *dqkv, const float *delta, const floatX *dout, const float *lse,
                     const floatX *qkv, PlainArgs a) {
    DYN_SHARED(float, shared);
    const PlainBlock at(a);
    const int R = a.rows, tile_floats = R * at.stride, LONG = PLAIN_ROWS_MAX + 1;
    float *k = shared, *v = k + tile_floats, *q = v + tile_floats, *g = q + tile_floats,
          *dk = g + tile_floats;
    float *dv = dk + tile_floats, *p = dv + tile_floats, *ds = p + R * LONG;
    const floatX *from = qkv + at.qkv;
    const size_t row = at.index * (size_t)a.T;
    const int k0 = at.block * R, last = k0 + min(a.T - k0, R - 1 + a.window) - 1;
    plain_load(k, from + at.out_stride, at.qkv_stride, k0, a);
    plain_load(v, from + 2 * at.out_stride, at.qkv_stride, k0, a);
    plain_zero(dk, a);
    plain_zero(dv, a);
    for (int q0 = k0; q0 <= last; q0 += R) {
        __syncthreads(); /* the tile before has been used */
        plain_load(q, from, at.qkv_stride, q0, a);
        plain_load(g, dout + at.out, at.out_stride, q0, a);
        __syncthreads();
        plain_gradients(p, ds, q, k, v, g, lse + row, delta + row, q0, k0, a);
        __syncthreads();
        plain_add_product(dv, p, true, g, a);
        plain_add_product(dk, ds, true, q, a);
    }
    plain_store(dqkv + at.qkv + at.out_stride, at.qkv_stride, k0, dk, a.scale, a);
    plain_store(dqkv + at.qkv + 2 * at.out_stride, at.qkv_stride, k0, dv, 1, a);
}
#endif
