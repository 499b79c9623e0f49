/* attention_flash.cuh: the forward of attention on tensor cores, for bf16 and head sizes 64 and 128. Dao, FlashAttention-2,
 * arXiv 2307.08691.
 *
 * A block of four warps owns BM = 64 * MT queries of one head, MT * 16 a warp, and walks the keys that they see in tiles
 * of BN, from the diagonal back, the next tile on its way while one is worked on. MT = 2 halves what a score costs in
 * reads of shared memory: each operand read feeds two products.
 *
 * A row's maximum is only followed when it rises by 2^8 or more: until then probabilities are up to 2^8 too large, in the
 * sum as in the output, which costs no accuracy in floating point and saves the scaling of the output at nearly every
 * tile (as FlashAttention-4 does). From the diagonal back, the first tile that a warp works on holds every
 * row's own key, so no maximum stays at -infinity. */
#ifndef LLMC_ATTENTION_FLASH_CUH
#define LLMC_ATTENTION_FLASH_CUH
#include "cuda/attention_tile.cuh"

/* s (MT*16, BN) = q kT, q as operands. */
template <int HS, int MT, int BN>
__device__ inline void flash_scores(float s[MT][BN / 8][4], const uint32_t q[MT][HS / 16][4], bf16 *k) {
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int n = 0; n < BN / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) s[i][n][j] = 0;
#pragma unroll
    for (int n = 0; n < BN / 16; n++)
#pragma unroll
        for (int c = 0; c < HS / 16; c++) {
            uint32_t b[4];
            operand_b_transposed<HS>(b, k, n * 16, c);
#pragma unroll
            for (int i = 0; i < MT; i++) {
                mma_m16n8k16(s[i][2 * n], q[i][c], b);
                mma_m16n8k16(s[i][2 * n + 1], q[i][c], b + 2);
            }
        }
}

/* o (MT*16, HS) += p v, p (MT*16, BN) as results. */
template <int HS, int MT, int BN>
__device__ inline void flash_output(float o[MT][HS / 8][4], const float p[MT][BN / 8][4], bf16 *v) {
#pragma unroll
    for (int c = 0; c < BN / 16; c++) {
        uint32_t a[MT][4];
#pragma unroll
        for (int i = 0; i < MT; i++) operand_from_results(a[i], p[i][2 * c], p[i][2 * c + 1]);
#pragma unroll
        for (int n = 0; n < HS / 16; n++) {
            uint32_t b[4];
            operand_b<HS>(b, v, c * 16, n);
#pragma unroll
            for (int i = 0; i < MT; i++) {
                mma_m16n8k16(o[i][2 * n], a[i], b);
                mma_m16n8k16(o[i][2 * n + 1], a[i], b + 2);
            }
        }
    }
}

/* The state of a row's softmax: its (followed) maximum times scale_log2, and this lane's part of the sum. */
template <int HS, int MT> struct FlashRows { float max[MT][2], sum[MT][2], o[MT][HS / 8][4]; };

template <int HS, int MT, int BN>
__device__ inline void flash_follow_max(FlashRows<HS, MT> &rows, const float s[MT][BN / 8][4],
                                        float scale_log2) {
    const float RISE = 8;
    float top[MT][2];
    bool rises = false;
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float x = fmaxf(s[i][0][2 * r], s[i][0][2 * r + 1]);
#pragma unroll
            for (int n = 1; n < BN / 8; n++) x = fmaxf(x, fmaxf(s[i][n][2 * r], s[i][n][2 * r + 1]));
            top[i][r] = x * scale_log2; /* of this lane's columns */
            rises |= top[i][r] > rows.max[i][r] + RISE;
        }
    if (!__any_sync(ALL_LANES, rises)) return;
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float max = fmaxf(rows.max[i][r], quad_max(top[i][r])), factor = exp2_fast(rows.max[i][r] - max);
            rows.max[i][r] = max;
            rows.sum[i][r] *= factor;
#pragma unroll
            for (int n = 0; n < HS / 8; n++) rows.o[i][n][2 * r] *= factor, rows.o[i][n][2 * r + 1] *= factor;
        }
}

/* One tile of keys from k0 on, for the warp's queries from q0 on. */
template <int HS, int MT, int BN, bool EDGE>
__device__ inline void flash_forward_tile(FlashRows<HS, MT> &rows, const uint32_t q[MT][HS / 16][4], bf16 *k,
                                          bf16 *v, int q0, int k0, const FlashArgs &args) {
    float s[MT][BN / 8][4];
    flash_scores<HS, MT, BN>(s, q, k);
    if (EDGE) {
        int row = q0 + lane_id() / 4, key = k0 + lane_id() % 4 * 2;
#pragma unroll
        for (int i = 0; i < MT; i++)
#pragma unroll
            for (int n = 0; n < BN / 8; n++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    if (!is_seen(row + i * 16 + j / 2 * 8, key + n * 8 + j % 2, args.window))
                        s[i][n][j] = -INFINITY;
    }
    flash_follow_max<HS, MT, BN>(rows, s, args.scale_log2);
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int n = 0; n < BN / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                s[i][n][j] = exp2_fast(fmaf(s[i][n][j], args.scale_log2, -rows.max[i][j / 2]));
                rows.sum[i][j / 2] += s[i][n][j];
            }
    flash_output<HS, MT, BN>(rows.o, s, v);
}

template <int HS, int MT, int BN> constexpr size_t flash_forward_shared_bytes() {
    return (64 * MT + 4 * BN) * HS * sizeof(bf16);
}

/* out (B,T,NH,HS), lse (B,NH,T) from qkv (B,T,3,NH,HS); a block for each head and BM queries, the last queries, which see
 * the most, first. */
template <int HS, int MT, int BN, int BLOCKS>
__global__ void __launch_bounds__(FLASH_THREADS, BLOCKS)
    flash_forward_kernel(bf16 *out, float *lse, const bf16 *qkv, FlashArgs args) {
    constexpr int BM = 64 * MT, WM = 16 * MT, TILE = BN * HS;
    static_assert(BN >= WM, "the first tile that a warp works on holds the own keys of all of its rows");
    DYN_SHARED(bf16, shared);
    bf16 *sq = shared, *sk = sq + BM * HS, *sv = sk + 2 * TILE;
    const FlashHead<HS> head(args);
    const bf16 *q = qkv + head.qkv, *k = q + head.out_stride, *v = k + head.out_stride;
    const int stride = head.qkv_stride;
    const int q_block = (args.tiles - 1 - head.rank) * BM;
    const int row0 = warp_id() * WM, q0 = q_block + row0;
    const int last = (min(q_block + BM, args.T) - 1) / BN, first = max(0, q_block - args.window + 1) / BN;

    tile_load_last<HS, BM>(sq, q, stride, q_block, args.T);
    tile_load_last<HS, BN>(sk, k, stride, last * BN, args.T);
    tile_load_last<HS, BN>(sv, v, stride, last * BN, args.T);
    copy_async_commit();
    FlashRows<HS, MT> rows;
#pragma unroll
    for (int i = 0; i < MT; i++) {
#pragma unroll
        for (int r = 0; r < 2; r++) rows.max[i][r] = -INFINITY, rows.sum[i][r] = 0;
#pragma unroll
        for (int n = 0; n < HS / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) rows.o[i][n][j] = 0;
    }
    uint32_t aq[MT][HS / 16][4];

    for (int tile = last, now = 0; tile >= first; tile--, now ^= 1) {
        copy_async_wait<0>();
        __syncthreads(); /* this tile is there, and the other buffer has been read by all */
        if (tile > first) {
            const int next = (tile - 1) * BN, other = now ^ 1;
            tile_load<HS, BN>(sk + other * TILE, k, stride, next);
            tile_load<HS, BN>(sv + other * TILE, v, stride, next);
            copy_async_commit();
        }
        if (tile == last) {
#pragma unroll
            for (int i = 0; i < MT; i++)
#pragma unroll
                for (int c = 0; c < HS / 16; c++) operand_a<HS>(aq[i][c], sq, row0 + i * 16, c);
        }
        bf16 *tk = sk + now * TILE, *tv = sv + now * TILE;
        const int k0 = tile * BN, k1 = k0 + BN - 1, q1 = q0 + WM - 1;
        if (all_seen(q0, q1, k0, k1, args.window))
            flash_forward_tile<HS, MT, BN, false>(rows, aq, tk, tv, q0, k0, args);
        else if (any_seen(q0, q1, k0, k1, args.window))
            flash_forward_tile<HS, MT, BN, true>(rows, aq, tk, tv, q0, k0, args);
    }

#pragma unroll
    for (int i = 0; i < MT; i++) {
        float sum[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int t = q0 + i * 16 + lane_id() / 4 + r * 8;
            sum[r] = quad_sum(rows.sum[i][r]);
            if (lane_id() % 4 == 0 && t < args.T)
                lse[head.index * (size_t)args.T + (size_t)t] = (rows.max[i][r] + log2f(sum[r])) * 0.69314718f;
        }
        store_rows<HS>(out + head.out, head.out_stride, sq, row0 + i * 16, q0 + i * 16, args.T, rows.o[i],
                       __fdividef(1, sum[0]), __fdividef(1, sum[1]));
    }
}
#endif
