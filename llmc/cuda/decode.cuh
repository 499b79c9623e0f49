/* decode.cuh: one token at a time: a weight times one vector, and one query against the cached keys and values.
 *
 * Every weight is read once, so these run at the speed of memory; the weight may be stored in bf16 or in int8 with a
 * scale per 64 columns, and is multiplied in fp32. */
#ifndef LLMC_CUDA_DECODE_CUH
#define LLMC_CUDA_DECODE_CUH
#include "cuda/gelu.cuh"
#include "cuda/gpu.h"
#include "model/kernels.h"
#include <float.h>

namespace decode {
enum {
    GROUP = 64,  /* columns of an INT8 weight that share a scale */
    WARPS = 4,   /* of a block of the matvec; each has its own row */
    N_FLOAT = 8, /* columns of an FP32 or BF16 weight that a lane takes at once */
    N_INT8 = 16,
    HEAD_WARPS = 8, /* of a block of the attention, which has one head */
    PART = 64,      /* positions of that block; not more than its threads */
    COMBINE_THREADS = 128,
};

static size_t groups_of(size_t C) {
    return (C + GROUP - 1) / GROUP;
}

/* --- packing --- */

template <class T> __global__ void pack_float_kernel(T *to, const floatX *w, size_t n) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) to[i] = from_float<T>(to_float(w[i]));
}

/* Warp: one group of 64 columns of one row. */
static __global__ void pack_int8_kernel(int8_t *to, float *scales, const floatX *w, size_t OC, size_t C,
                                        size_t groups) {
    size_t group = (size_t)blockIdx.x * WARPS + (size_t)warp_id();
    if (group >= OC * groups) return;
    size_t row = group / groups, first = group % groups * GROUP;
    float x[GROUP / WARP], most = 0;
    for (int i = 0; i < GROUP / WARP; i++) {
        size_t c = first + (size_t)(lane_id() + i * WARP);
        x[i] = c < C ? to_float(w[row * C + c]) : 0;
        most = fmaxf(most, fabsf(x[i]));
    }
    float scale = warp_max(most) / 127;
    for (int i = 0; i < GROUP / WARP; i++)
        to[group * GROUP + (size_t)(lane_id() + i * WARP)] = (int8_t)(scale > 0 ? rintf(x[i] / scale) : 0);
    if (lane_id() == 0) scales[group] = scale;
}

/* --- matvec: a warp per row --- */

/* T: float or bf16; N columns at a time. */
template <class T, int N> __device__ inline float row_times(const T *row, const floatX *x, size_t C) {
    float sum = 0;
    for (size_t c = (size_t)lane_id() * N; c < C; c += WARP * N) {
        Packed<float, N> w = load_floats<N, STREAM>(row + c), v = load_floats<N>(x + c);
#pragma unroll
        for (int i = 0; i < N; i++) sum = fmaf(w[i], v[i], sum);
    }
    return sum;
}
/* N columns lie in one group. */
template <int N>
__device__ inline float row_times_int8(const int8_t *row, const float *scales, const floatX *x, size_t C) {
    float sum = 0;
    for (size_t c = (size_t)lane_id() * N; c < C; c += WARP * N) {
        Packed<int8_t, N> w = load<N, STREAM>(row + c);
        Packed<float, N> v = load_floats<N>(x + c);
        float part = 0;
#pragma unroll
        for (int i = 0; i < N; i++) part = fmaf((float)w[i], v[i], part);
        sum = fmaf(part, scales[c / GROUP], sum);
    }
    return sum;
}

template <WeightType TYPE, bool IS_WIDE>
__global__ void matvec_kernel(floatX *out, const floatX *x, PackedWeight w, const floatX *bias,
                              const floatX *residual) {
    size_t row = (size_t)blockIdx.x * WARPS + (size_t)warp_id(), groups = (w.C + GROUP - 1) / GROUP;
    if (row >= w.OC) return;
    float sum;
    if constexpr (TYPE == WEIGHT_FP32)
        sum = row_times < float, IS_WIDE ? N_FLOAT : 1 > ((const float *)w.data + row * w.C, x, w.C);
    else if constexpr (TYPE == WEIGHT_BF16)
        sum = row_times < bf16, IS_WIDE ? N_FLOAT : 1 > ((const bf16 *)w.data + row * w.C, x, w.C);
    else
        sum = row_times_int8 < IS_WIDE
                  ? N_INT8
                  : 1 > ((const int8_t *)w.data + row * groups * GROUP, w.scales + row * groups, x, w.C);
    sum = warp_sum(sum);
    if (lane_id() == 0)
        out[row] = from_float<floatX>((residual ? to_float(residual[row]) : 0) +
                                      (sum + (bias ? to_float(bias[row]) : 0)));
}

/* --- attention of one query: the cache is a ring of slots; positions are counted from the oldest. A block takes PART of
 * them for one head; what the blocks of a head found is put together afterwards --- */

struct Ring {
    floatX *out, *keys, *values;
    const floatX *qkv;
    float *
        found; /* (NH, parts, 2 + HS): the largest score, and exponentials: their sum, and values times them */
    size_t first, seen, slots, slot, NH,
        HS; /* `seen` positions, the oldest in slot `first`; the newest in `slot` */
};

/* Where position i of this head lies in keys or values. */
__device__ inline size_t ring_at(const Ring &r, size_t head, size_t i) {
    size_t slot = r.first + i;
    return ((slot < r.slots ? slot : slot - r.slots) * r.NH + head) * r.HS;
}

/* Lanes that hold N columns each of one position, a power of two; the other lanes of the warp have other positions. */
template <int N> __device__ inline int lanes_of_row(size_t HS) {
    int lanes = WARP;
    while (lanes > 1 && (size_t)(lanes / 2 * N) >= HS) lanes /= 2;
    return lanes;
}

/* scores[i - begin] of positions begin .. end. */
template <int N>
__device__ inline void part_scores(const Ring &r, size_t head, size_t begin, size_t end, float *scores) {
    const floatX *q = r.qkv + head * r.HS;
    const float scale = 1.0f / sqrtf((float)r.HS);
    const int lanes = lanes_of_row<N>(r.HS), rows = WARP / lanes, lane = lane_id() % lanes;
    for (size_t at = begin + (size_t)(warp_id() * rows); at < end; at += (size_t)(HEAD_WARPS * rows)) {
        size_t i = at + (size_t)(lane_id() / lanes);
        float sum = 0;
        for (size_t c = (size_t)(lane * N); i < end && c < r.HS; c += (size_t)(lanes * N)) {
            Packed<float, N> x = load_floats<N>(q + c), k = load_floats<N>(r.keys + ring_at(r, head, i) + c);
#pragma unroll
            for (int n = 0; n < N; n++) sum = fmaf(x[n], k[n], sum);
        }
        for (int half = lanes / 2; half; half /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, half);
        if (i < end && lane == 0) scores[i - begin] = scale * sum;
    }
}

/* out (HS) = the values of positions begin .. end times their scores, divided by `divisor`. partial (HEAD_WARPS rows) is
 * shared scratch. */
template <int N, class T>
__device__ inline void part_values(T *out, const Ring &r, size_t head, size_t begin, size_t end,
                                   const float *scores, float divisor, float (*partial)[WARP * N]) {
    const int lanes = lanes_of_row<N>(r.HS), rows = WARP / lanes;
    for (size_t first = 0; first < r.HS; first += (size_t)(lanes * N)) {
        size_t c = first + (size_t)(lane_id() % lanes * N);
        float sum[N] = {};
        for (size_t i = begin + (size_t)(warp_id() * rows + lane_id() / lanes); i < end && c < r.HS;
             i += (size_t)(HEAD_WARPS * rows)) {
            Packed<float, N> v = load_floats<N>(r.values + ring_at(r, head, i) + c);
#pragma unroll
            for (int n = 0; n < N; n++) sum[n] = fmaf(scores[i - begin], v[n], sum[n]);
        }
        for (int n = 0; n < N; n++) {
            for (int half = WARP / 2; half >= lanes; half /= 2)
                sum[n] += __shfl_xor_sync(ALL_LANES, sum[n], half);
            if (lane_id() < lanes) partial[warp_id()][lane_id() * N + n] = sum[n];
        }
        __syncthreads();
        for (int k = (int)threadIdx.x; k < lanes * N && first + (size_t)k < r.HS; k += HEAD_WARPS * WARP) {
            float all = 0;
            for (int w = 0; w < HEAD_WARPS; w++) all += partial[w][k];
            out[first + (size_t)k] = from_float<T>(all / divisor);
        }
        __syncthreads(); /* before partial is written again */
    }
}

template <int N> __global__ void attention_kernel(Ring r) {
    SHARED(float, scores, [PART]);
    SHARED(float, partial, [HEAD_WARPS][WARP * N]);
    const size_t head = blockIdx.y, part = blockIdx.x, parts = gridDim.x, C = r.NH * r.HS;
    const size_t begin = part * PART, end = begin + PART < r.seen ? begin + PART : r.seen;
    for (size_t c = threadIdx.x; part + 1 == parts && c < r.HS; c += blockDim.x) {
        size_t to = (r.slot * r.NH + head) * r.HS + c;
        r.keys[to] = r.qkv[C + head * r.HS + c];
        r.values[to] = r.qkv[2 * C + head * r.HS + c];
    }
    __syncthreads();
    part_scores<N>(r, head, begin, end, scores);
    __syncthreads();
    const bool has_one = threadIdx.x < end - begin;
    float most = block_max(has_one ? scores[threadIdx.x] : -FLT_MAX);
    float weight = has_one ? expf(scores[threadIdx.x] - most) : 0;
    if (has_one) scores[threadIdx.x] = weight;
    float sum = block_sum(weight); /* its barriers make all weights visible */
    if (parts == 1) {
        part_values<N>(r.out + head * r.HS, r, head, begin, end, scores, sum, partial);
    } else {
        float *found = r.found + (head * parts + part) * (2 + r.HS);
        if (threadIdx.x == 0) found[0] = most, found[1] = sum;
        part_values<N>(found + 2, r, head, begin, end, scores, 1.0f, partial);
    }
}

/* A block per head. */
static __global__ void combine_kernel(Ring r, size_t parts) {
    const size_t head = blockIdx.x, stride = 2 + r.HS;
    const float *found = r.found + head * parts * stride;
    float most = -FLT_MAX, sum = 0;
    for (size_t p = 0; p < parts; p++) most = fmaxf(most, found[p * stride]);
    for (size_t p = 0; p < parts; p++) sum += expf(found[p * stride] - most) * found[p * stride + 1];
    for (size_t c = threadIdx.x; c < r.HS; c += blockDim.x) {
        float all = 0;
        for (size_t p = 0; p < parts; p++)
            all = fmaf(expf(found[p * stride] - most), found[p * stride + 2 + c], all);
        r.out[head * r.HS + c] = from_float<floatX>(all / sum);
    }
}
} // namespace decode

size_t packed_weight_bytes(WeightType type, size_t OC, size_t C) {
    switch (type) {
    case WEIGHT_FP32: return OC * C * sizeof(float);
    case WEIGHT_BF16: return OC * C * sizeof(bf16);
    default: return OC * decode::groups_of(C) * (decode::GROUP + sizeof(float));
    }
}

PackedWeight packed_weight_make(WeightType type, void *memory, const floatX *w, size_t OC, size_t C) {
    using namespace decode;
    const unsigned threads = 256;
    size_t groups = groups_of(C), n = OC * C;
    PackedWeight packed = {type, OC, C, memory, NULL};
    switch (type) {
    case WEIGHT_FP32:
        LAUNCH(pack_float_kernel<float>, blocks_for(n, threads), threads, 0, gpu.stream, (float *)memory, w,
               n);
        break;
    case WEIGHT_BF16:
        LAUNCH(pack_float_kernel<bf16>, blocks_for(n, threads), threads, 0, gpu.stream, (bf16 *)memory, w, n);
        break;
    case WEIGHT_INT8:
        packed.scales = (float *)(void *)((int8_t *)memory + OC * groups * GROUP);
        LAUNCH(pack_int8_kernel, blocks_for(OC * groups, WARPS), WARPS * WARP, 0, gpu.stream,
               (int8_t *)memory, packed.scales, w, OC, C, groups);
        break;
    }
    return packed;
}

void matvec_forward(floatX *out, const floatX *x, PackedWeight w, const floatX *bias,
                    const floatX *residual) {
    using namespace decode;
    const bool wide = can_be_wide(WIDE, x) && w.C % (w.type == WEIGHT_INT8 ? N_INT8 : N_FLOAT) == 0;
    auto kernel = matvec_kernel<WEIGHT_INT8, false>;
    switch (w.type) {
    case WEIGHT_FP32:
        kernel = wide ? matvec_kernel<WEIGHT_FP32, true> : matvec_kernel<WEIGHT_FP32, false>;
        break;
    case WEIGHT_BF16:
        kernel = wide ? matvec_kernel<WEIGHT_BF16, true> : matvec_kernel<WEIGHT_BF16, false>;
        break;
    case WEIGHT_INT8:
        kernel = wide ? matvec_kernel<WEIGHT_INT8, true> : matvec_kernel<WEIGHT_INT8, false>;
        break;
    }
    LAUNCH(kernel, blocks_for(w.OC, WARPS), WARPS * WARP, 0, gpu.stream, out, x, w, bias, residual);
}

void attention_decode(floatX *out, floatX *keys, floatX *values, const floatX *qkv, size_t t, size_t slots,
                      size_t NH, size_t HS, size_t window) {
    using namespace decode;
    size_t seen = t + 1 < slots ? t + 1 : slots;
    if (window && window < seen) seen = window;
    const size_t parts = blocks_for(seen, PART), most = blocks_for(slots, PART);
    float *found = (float *)gpu_scratch(SCRATCH_DECODE, NH * most * (2 + HS) * sizeof(float));
    const Ring r = {out, keys, values, qkv, found, (t + 1 - seen) % slots, seen, slots, t % slots, NH, HS};
    LAUNCH(can_be_wide(HS, keys, values, qkv) ? attention_kernel<WIDE> : attention_kernel<1>,
           dim3((unsigned)parts, (unsigned)NH), HEAD_WARPS * WARP, 0, gpu.stream, r);
    if (parts > 1) LAUNCH(combine_kernel, (unsigned)NH, COMBINE_THREADS, 0, gpu.stream, r, parts);
}
#endif
