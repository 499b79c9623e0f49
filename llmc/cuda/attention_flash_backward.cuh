/* attention_flash_backward.cuh: the backward of attention on tensor cores, for bf16 and head sizes 64 and 128: one kernel
 * for the gradient of the queries, one for those of keys and values.
 *
 * Each block owns rows of what it writes and adds in one order, so there are no atomics and the bits repeat; the price is
 * that both kernels compute the scores and the gradient of the probabilities: seven products where five are needed.
 *   P = exp(scale q kT - lse)      dP = dout vT      dS = P * (dP - delta)      delta = row sums of dout * out
 *   dq = scale dS k                dv = PT dout      dk = scale dST q
 * The kernel for keys computes everything transposed: its scores are keys by queries, and are in the registers already
 * where the products that follow want their operand. Both work on 16 columns of scores at a time; where registers allow,
 * the products of the next 16 stand before the exponentials of these, so that neither waits for the other. */
#ifndef LLMC_ATTENTION_FLASH_BACKWARD_CUH
#define LLMC_ATTENTION_FLASH_BACKWARD_CUH
#include "cuda/attention_tile.cuh"

/* A warp's rows (MT*16,HS) of a tile as operands: held in registers, or read again each time where those run out. */
template <int HS, int MT, bool HELD> struct FlashOperands {
    uint32_t held[HELD ? MT : 1][HELD ? HS / 16 : 1][4];
    bf16 *tile;
    int row0;
    __device__ void open(bf16 *from, int row) {
        tile = from, row0 = row;
        if constexpr (HELD) {
#pragma unroll
            for (int i = 0; i < MT; i++)
#pragma unroll
                for (int c = 0; c < HS / 16; c++) operand_a<HS>(held[i][c], tile, row0 + i * 16, c);
        }
    }
    __device__ void get(uint32_t a[4], int i, int c) const {
        if constexpr (HELD) {
#pragma unroll
            for (int j = 0; j < 4; j++) a[j] = held[i][c][j];
        } else {
            operand_a<HS>(a, tile, row0 + i * 16, c);
        }
    }
};

/* s (MT*16,16) = x times the transpose of rows n0 .. n0+15 of the tile. */
template <int HS, int MT, class X>
__device__ inline void flash_product(float s[MT][2][4], const X &x, bf16 *tile, int n0) {
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) s[i][n][j] = 0;
#pragma unroll
    for (int c = 0; c < HS / 16; c++) {
        uint32_t b[4];
        operand_b_transposed<HS>(b, tile, n0, c);
#pragma unroll
        for (int i = 0; i < MT; i++) {
            uint32_t a[4];
            x.get(a, i, c);
            mma_m16n8k16(s[i][0], a, b);
            mma_m16n8k16(s[i][1], a, b + 2);
        }
    }
}

/* sum (MT*16,HS) += a (MT*16,16) rows k0.. of the tile. */
template <int HS, int MT>
__device__ inline void flash_add_product(float sum[MT][HS / 8][4], const uint32_t a[MT][4], bf16 *tile,
                                         int k0) {
#pragma unroll
    for (int n = 0; n < HS / 16; n++) {
        uint32_t b[4];
        operand_b<HS>(b, tile, k0, n);
#pragma unroll
        for (int i = 0; i < MT; i++) {
            mma_m16n8k16(sum[i][2 * n], a[i], b);
            mma_m16n8k16(sum[i][2 * n + 1], a[i], b + 2);
        }
    }
}

template <int MT, int COLUMNS> __device__ inline void flash_zero(float x[MT][COLUMNS][4]) {
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) x[i][n][j] = 0;
}

/* --- queries --- */

/* What the backward needs of a row of scores beside its operands; zeros for the rows that pad T. */
struct alignas(8) FlashRow {
    float lse2, delta; /* lse times log2(e) */
};

/* The FlashRows of a warp's ROWS rows from row t0 on: to global memory for the other kernel, to shared for this one. */
template <int HS, int ROWS>
__device__ inline void flash_rows(FlashRow *rows, FlashRow *shared, const bf16 *dout, const bf16 *out,
                                  const float *lse, int stride, int t0, int T) {
    constexpr int LANES = HS / 8; /* of a row */
#pragma unroll
    for (int i = 0; i < ROWS * LANES / WARP; i++) {
        int row = (lane_id() + i * WARP) / LANES, chunk = lane_id() % LANES;
        FlashRow x = {0, 0};
        if (t0 + row < T) {
            size_t at = (size_t)(t0 + row) * (size_t)stride + chunk * 8;
            Packed<float, 8> g = load_floats<8>(dout + at), o = load_floats<8>(out + at);
#pragma unroll
            for (int j = 0; j < 8; j++) x.delta += g[j] * o[j];
            x.lse2 = lse[t0 + row] * LOG2_E;
        }
#pragma unroll
        for (int half = LANES / 2; half; half /= 2) x.delta += __shfl_xor_sync(ALL_LANES, x.delta, half);
        if (chunk == 0) shared[row] = rows[t0 + row] = x;
    }
}

/* dS of 16 columns as operands, from the scores s and dP; EDGE: some of it is not seen. */
template <int MT, bool EDGE>
__device__ inline void flash_dq_scores(uint32_t ds[MT][4], float s[MT][2][4], const float p[MT][2][4],
                                       const FlashRow rows[MT][2], int q0, int k0, const FlashArgs &args) {
    const int query = q0 + lane_id() / 4, key = k0 + lane_id() % 4 * 2;
#pragma unroll
    for (int i = 0; i < MT; i++) {
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float e = exp2_fast(fmaf(s[i][n][j], args.scale_log2, -rows[i][j / 2].lse2));
                if (EDGE && !is_seen(query + i * 16 + j / 2 * 8, key + n * 8 + j % 2, args.window)) e = 0;
                s[i][n][j] = e * (p[i][n][j] - rows[i][j / 2].delta);
            }
        operand_from_results(ds[i], s[i][0], s[i][1]);
    }
}

/* What one tile of keys from k0 on, all of which is seen, adds to dq of the warp's queries from q0 on. */
template <int HS, int MT, int BN, class Q>
__device__ inline void flash_dq_tile(float dq[MT][HS / 8][4], const Q &q, const Q &g, bf16 *k, bf16 *v,
                                     const FlashRow rows[MT][2], int q0, int k0, const FlashArgs &args) {
#pragma unroll 1
    for (int c = 0; c < BN; c += 32) {
        float s[2][MT][2][4], p[2][MT][2][4];
        uint32_t ds[MT][4];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            flash_product<HS, MT>(s[i], q, k, c + i * 16);
            flash_product<HS, MT>(p[i], g, v, c + i * 16);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            flash_dq_scores<MT, false>(ds, s[i], p[i], rows, q0, k0 + c + i * 16, args);
            flash_add_product<HS, MT>(dq, ds, k, c + i * 16);
        }
    }
}
/* The same where some of the tile is not seen. */
template <int HS, int MT, int BN, class Q>
__device__ inline void flash_dq_edge(float dq[MT][HS / 8][4], const Q &q, const Q &g, bf16 *k, bf16 *v,
                                     const FlashRow rows[MT][2], int q0, int k0, const FlashArgs &args) {
#pragma unroll 1
    for (int c = 0; c < BN / 16; c++) {
        const int key = k0 + c * 16;
        if (!any_seen(q0, q0 + MT * 16 - 1, key, key + 15, args.window)) continue;
        float s[MT][2][4], p[MT][2][4];
        uint32_t ds[MT][4];
        flash_product<HS, MT>(s, q, k, c * 16);
        flash_product<HS, MT>(p, g, v, c * 16);
        flash_dq_scores<MT, true>(ds, s, p, rows, q0, key, args);
        flash_add_product<HS, MT>(dq, ds, k, c * 16);
    }
}

template <int HS, int MT, int BN> constexpr size_t flash_dq_shared_bytes() {
    return (2 * 64 * MT + 4 * BN) * HS * sizeof(bf16) + 64 * MT * sizeof(FlashRow);
}

/* The queries' third of dqkv (B,T,3,NH,HS), and rows (B,NH,rows_padded). A block for each head and BM queries. */
template <int HS, int MT, int BN, int BLOCKS>
__global__ void __launch_bounds__(FLASH_THREADS, BLOCKS)
    flash_dq_kernel(bf16 *dqkv, FlashRow *rows, const bf16 *dout, const bf16 *out, const float *lse,
                    const bf16 *qkv, FlashArgs args) {
    constexpr int BM = 64 * MT, WM = 16 * MT, TILE = BN * HS;
    DYN_SHARED(bf16, shared);
    bf16 *sq = shared, *sg = sq + BM * HS, *sk = sg + BM * HS, *sv = sk + 2 * TILE;
    FlashRow *shared_rows = reinterpret_cast<FlashRow *>(sv + 2 * TILE) + warp_id() * WM;
    const FlashHead<HS> head(args);
    const int stride = head.qkv_stride;
    const int q_block = (args.tiles - 1 - head.rank) * BM;
    const int row0 = warp_id() * WM, q0 = q_block + row0;
    const int last = (min(q_block + BM, args.T) - 1) / BN, first = max(0, q_block - args.window + 1) / BN;

    const bf16 *q = qkv + head.qkv, *k = q + head.out_stride, *v = k + head.out_stride, *g = dout + head.out;
    tile_load_last<HS, BM>(sq, q, stride, q_block, args.T);
    tile_load_last<HS, BM>(sg, g, head.out_stride, q_block, args.T);
    tile_load_last<HS, BN>(sk, k, stride, last * BN, args.T);
    tile_load_last<HS, BN>(sv, v, stride, last * BN, args.T);
    copy_async_commit();

    flash_rows<HS, WM>(rows + head.index * (size_t)args.rows_padded, shared_rows, dout + head.out,
                       out + head.out, lse + head.index * (size_t)args.T, head.out_stride, q0, args.T);
    __syncwarp();
    FlashRow row[MT][2];
    float dq[MT][HS / 8][4];
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int r = 0; r < 2; r++) row[i][r] = shared_rows[i * 16 + r * 8 + lane_id() / 4];
    flash_zero<MT, HS / 8>(dq);
    FlashOperands<HS, MT, true> aq, ag;

    for (int tile = last, now = 0; tile >= first; tile--, now ^= 1) {
        copy_async_wait<0>();
        __syncthreads(); /* this tile is there, and the other buffer has been read by all */
        if (tile > first) {
            const int next = (tile - 1) * BN, other = now ^ 1;
            tile_load<HS, BN>(sk + other * TILE, k, stride, next);
            tile_load<HS, BN>(sv + other * TILE, v, stride, next);
            copy_async_commit();
        }
        if (tile == last) aq.open(sq, row0), ag.open(sg, row0);
        bf16 *tk = sk + now * TILE, *tv = sv + now * TILE;
        if (all_seen(q0, q0 + WM - 1, tile * BN, tile * BN + BN - 1, args.window))
            flash_dq_tile<HS, MT, BN>(dq, aq, ag, tk, tv, row, q0, tile * BN, args);
        else
            flash_dq_edge<HS, MT, BN>(dq, aq, ag, tk, tv, row, q0, tile * BN, args);
    }
#pragma unroll
    for (int i = 0; i < MT; i++)
        store_rows<HS>(dqkv + head.qkv, head.qkv_stride, sq, row0 + i * 16, q0 + i * 16, args.T, dq[i],
                       args.scale, args.scale);
}

/* --- keys and values --- */

template <int BN> __device__ inline void flash_rows_load(FlashRow *shared, const FlashRow *rows) {
    static_assert(BN % 2 == 0 && BN / 2 <= FLASH_THREADS, "16 bytes, two rows, a thread");
    if (threadIdx.x < BN / 2) copy_async_16(shared + 2 * threadIdx.x, rows + 2 * threadIdx.x);
}

/* What one tile of queries from q0 on adds to dk, dv of the warp's keys from k0 on. */
template <int HS, int MT, int BN, class K, class V>
__device__ inline void flash_dkv_tile(float dk[MT][HS / 8][4], float dv[MT][HS / 8][4], const K &k,
                                      const V &v, bf16 *q, bf16 *g, const FlashRow *rows, int k0, int q0,
                                      const FlashArgs &args) {
    const bool edge = !all_seen(q0, q0 + BN - 1, k0, k0 + MT * 16 - 1, args.window);
#pragma unroll 1
    for (int c = 0; c < BN / 16; c++) {
        const int query = q0 + c * 16 + lane_id() % 4 * 2, key = k0 + lane_id() / 4;
        if (edge && !any_seen(q0 + c * 16, q0 + c * 16 + 15, k0, k0 + MT * 16 - 1, args.window)) continue;
        float s[MT][2][4], p[MT][2][4], delta[4];
        uint32_t a[MT][4];
        flash_product<HS, MT>(s, k, q, c * 16);
        if (edge) {
#pragma unroll
            for (int i = 0; i < MT; i++)
#pragma unroll
                for (int n = 0; n < 2; n++)
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        if (!is_seen(query + n * 8 + j % 2, key + i * 16 + j / 2 * 8, args.window))
                            s[i][n][j] = -INFINITY;
        }
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const FlashRow x = rows[c * 16 + n * 8 + lane_id() % 4 * 2 + j];
                delta[n * 2 + j] = x.delta;
#pragma unroll
                for (int i = 0; i < MT; i++)
#pragma unroll
                    for (int r = 0; r < 2; r++)
                        s[i][n][2 * r + j] = exp2_fast(fmaf(s[i][n][2 * r + j], args.scale_log2, -x.lse2));
            }
        flash_product<HS, MT>(p, v, g, c * 16);
#pragma unroll
        for (int i = 0; i < MT; i++) operand_from_results(a[i], s[i][0], s[i][1]);
        flash_add_product<HS, MT>(dv, a, g, c * 16);
#pragma unroll
        for (int i = 0; i < MT; i++) {
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) p[i][n][j] = s[i][n][j] * (p[i][n][j] - delta[n * 2 + j % 2]);
            operand_from_results(a[i], p[i][0], p[i][1]);
        }
        flash_add_product<HS, MT>(dk, a, q, c * 16);
    }
}

template <int HS, int MT, int BN> constexpr size_t flash_dkv_shared_bytes() {
    return (2 * 64 * MT + 4 * BN) * HS * sizeof(bf16) + 2 * BN * sizeof(FlashRow);
}

/* The keys' and values' thirds of dqkv. A block for each head and BM keys, the first keys, which are seen most, first. */
template <int HS, int MT, int BN, bool HOLD_V, int BLOCKS>
__global__ void __launch_bounds__(FLASH_THREADS, BLOCKS)
    flash_dkv_kernel(bf16 *dqkv, const FlashRow *rows, const bf16 *dout, const bf16 *qkv, FlashArgs args) {
    constexpr int BM = 64 * MT, WM = 16 * MT, TILE = BN * HS;
    DYN_SHARED(bf16, shared);
    bf16 *sk = shared, *sv = sk + BM * HS, *sq = sv + BM * HS, *sg = sq + 2 * TILE;
    FlashRow *sr = reinterpret_cast<FlashRow *>(sg + 2 * TILE);
    const FlashHead<HS> head(args);
    const int stride = head.qkv_stride;
    const int k_block = head.rank * BM, row0 = warp_id() * WM, k0 = k_block + row0;
    const int first = k_block / BN;
    const int last = (k_block + min(args.T - k_block, BM - 1 + args.window) - 1) / BN;

    const FlashRow *r = rows + head.index * (size_t)args.rows_padded;
    const bf16 *q = qkv + head.qkv, *k = q + head.out_stride, *v = k + head.out_stride, *g = dout + head.out;
    tile_load_last<HS, BM>(sk, k, stride, k_block, args.T);
    tile_load_last<HS, BM>(sv, v, stride, k_block, args.T);
    tile_load_last<HS, BN>(sq, q, stride, last * BN, args.T);
    tile_load_last<HS, BN>(sg, g, head.out_stride, last * BN, args.T);
    flash_rows_load<BN>(sr, r + last * BN);
    copy_async_commit();
    float dk[MT][HS / 8][4], dv[MT][HS / 8][4];
    flash_zero<MT, HS / 8>(dk);
    flash_zero<MT, HS / 8>(dv);
    FlashOperands<HS, MT, true> ak;
    FlashOperands<HS, MT, HOLD_V> av;

    for (int tile = last, now = 0; tile >= first; tile--, now ^= 1) {
        copy_async_wait<0>();
        __syncthreads(); /* this tile is there, and the other buffer has been read by all */
        if (tile > first) {
            const int next = (tile - 1) * BN, other = now ^ 1;
            tile_load<HS, BN>(sq + other * TILE, q, stride, next);
            tile_load<HS, BN>(sg + other * TILE, g, head.out_stride, next);
            flash_rows_load<BN>(sr + other * BN, r + next);
            copy_async_commit();
        }
        if (tile == last) ak.open(sk, row0), av.open(sv, row0);
        bf16 *tq = sq + now * TILE, *tg = sg + now * TILE;
        const FlashRow *tr = sr + now * BN;
        flash_dkv_tile<HS, MT, BN>(dk, dv, ak, av, tq, tg, tr, k0, tile * BN, args);
    }
    bf16 *to = dqkv + head.qkv + head.out_stride;
#pragma unroll
    for (int i = 0; i < MT; i++) {
        store_rows<HS>(to, head.qkv_stride, sk, row0 + i * 16, k0 + i * 16, args.T, dk[i], args.scale,
                       args.scale);
        store_rows<HS>(to + head.out_stride, head.qkv_stride, sv, row0 + i * 16, k0 + i * 16, args.T, dv[i],
                       1, 1);
    }
}
#endif
