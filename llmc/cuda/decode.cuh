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
    SPAN = 128,     /* columns of a head that are summed at once */
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

/* --- attention of one query: the cache is a ring of slots; positions are counted from the oldest --- */

struct Ring {
    floatX *out, *keys, *values;
    const floatX *qkv;
    float *scores; /* (NH, seen) */
    size_t first, seen, slots, slot, NH,
        HS; /* `seen` positions, the oldest in slot `first`; the newest in `slot` */
};

/* Where position i of this head lies in keys or values. */
__device__ inline size_t ring_at(const Ring &r, size_t head, size_t i) {
    size_t slot = r.first + i;
    return ((slot < r.slots ? slot : slot - r.slots) * r.NH + head) * r.HS;
}

/* Scores of all positions; returns the largest. A warp per position. */
__device__ inline float head_scores(const Ring &r, size_t head, float *scores) {
    const floatX *q = r.qkv + head * r.HS;
    float scale = 1.0f / sqrtf((float)r.HS), most = -FLT_MAX;
    for (size_t i = (size_t)warp_id(); i < r.seen; i += HEAD_WARPS) {
        const floatX *k = r.keys + ring_at(r, head, i);
        float sum = 0;
        for (size_t c = (size_t)lane_id(); c < r.HS; c += WARP)
            sum = fmaf(to_float(q[c]), to_float(k[c]), sum);
        sum = scale * warp_sum(sum);
        if (lane_id() == 0) scores[i] = sum;
        most = fmaxf(most, sum);
    }
    return block_max(most);
}

static __global__ void attention_kernel(Ring r) {
    SHARED(float, partial, [HEAD_WARPS][SPAN]);
    size_t head = blockIdx.x, C = r.NH * r.HS;
    for (size_t c = threadIdx.x; c < r.HS; c += blockDim.x) {
        size_t to = (r.slot * r.NH + head) * r.HS + c;
        r.keys[to] = r.qkv[C + head * r.HS + c];
        r.values[to] = r.qkv[2 * C + head * r.HS + c];
    }
    __syncthreads();
    float *scores = r.scores + head * r.seen, sum = 0;
    float most = head_scores(r, head, scores); /* its barriers make all scores visible */
    for (size_t i = threadIdx.x; i < r.seen; i += blockDim.x) {
        scores[i] = expf(scores[i] - most);
        sum += scores[i];
    }
    sum = block_sum(sum);
    for (size_t first = 0; first < r.HS; first += SPAN) {
        float out[SPAN / WARP] = {};
        for (size_t i = (size_t)warp_id(); i < r.seen; i += HEAD_WARPS) {
            const floatX *v = r.values + ring_at(r, head, i) + first;
#pragma unroll
            for (int k = 0; k < SPAN / WARP; k++) {
                size_t c = (size_t)(lane_id() + k * WARP);
                if (first + c < r.HS) out[k] = fmaf(scores[i], to_float(v[c]), out[k]);
            }
        }
        for (int k = 0; k < SPAN / WARP; k++) partial[warp_id()][lane_id() + k * WARP] = out[k];
        __syncthreads();
        size_t c = first + threadIdx.x;
        if (threadIdx.x < SPAN && c < r.HS) {
            float all = 0;
            for (int w = 0; w < HEAD_WARPS; w++) all += partial[w][threadIdx.x];
            r.out[head * r.HS + c] = from_float<floatX>(all / sum);
        }
        __syncthreads(); /* before partial is written again */
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
    size_t seen = t + 1 < slots ? t + 1 : slots;
    if (window && window < seen) seen = window;
    float *scores = (float *)gpu_scratch(SCRATCH_DECODE, NH * slots * sizeof(float));
    const decode::Ring r = {out,  keys,  values,    qkv, scores, (t + 1 - seen) % slots,
                            seen, slots, t % slots, NH,  HS};
    LAUNCH(decode::attention_kernel, (unsigned)NH, decode::HEAD_WARPS * WARP, 0, gpu.stream, r);
}
#endif
