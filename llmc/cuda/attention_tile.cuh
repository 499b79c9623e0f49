/* attention_tile.cuh: what the tensor-core attention kernels share: tiles of bf16 in shared memory, the operands that
 * mma reads from them, and which scores are seen.
 *
 * A tile is rows of HS values, 16-byte chunk c of row r lying at chunk c ^ (r % 8): the eight rows that one step of
 * ldmatrix reads, and the eight chunks of a row that cp.async writes, are in different banks. A warp owns MT * 16 rows
 * of scores and keeps them in registers from the first product to the last, so nothing of size T x T is ever stored. */
#ifndef LLMC_ATTENTION_TILE_CUH
#define LLMC_ATTENTION_TILE_CUH
#include "cuda/gpu.h"

enum { FLASH_WARPS = 4, FLASH_THREADS = FLASH_WARPS * WARP };
#define LOG2_E 1.44269504f

/* What every kernel is told. window is 1 .. T; tiles: blocks per head; rows_padded: T rounded up to whole blocks of
 * queries and tiles of any kernel. */
struct FlashArgs {
    int T, NH, window, tiles, rows_padded;
    int heads, group;        /* B * NH, and how many of them are worked on at once */
    float scale, scale_log2; /* 1 / sqrt(HS), and that times log2(e) */
};

/* Which head a block works on, and where its rows are: row t is at pointer + t * stride. A group of heads begins with the
 * block of each that has the most to do, so that the GPU ends evenly; keys and values of a group stay in the L2 cache. */
template <int HS> struct FlashHead {
    size_t index;    /* b * NH + h */
    size_t qkv, out; /* offsets of row 0 of q, and of out */
    int qkv_stride, out_stride;
    int rank; /* of this block in its head: 0 has the most to do */
    __device__ explicit FlashHead(const FlashArgs &a) {
        unsigned tiles = (unsigned)a.tiles,
                 first = blockIdx.x / (tiles * (unsigned)a.group) * (unsigned)a.group;
        unsigned heads = min((unsigned)a.group, (unsigned)a.heads - first),
                 block = blockIdx.x - first * tiles;
        unsigned head = first + block % heads;
        size_t b = head / (unsigned)a.NH, h = head % (unsigned)a.NH;
        index = head, rank = (int)(block / heads);
        out_stride = a.NH * HS, qkv_stride = 3 * out_stride;
        out = b * (size_t)a.T * (size_t)out_stride + h * HS;
        qkv = b * (size_t)a.T * (size_t)qkv_stride + h * HS;
    }
};

template <int HS> __device__ inline int tile_offset(int row, int chunk) {
    return row * HS + ((chunk ^ (row & 7)) << 3);
}
template <int HS> __device__ inline bf16 *tile_at(bf16 *tile, int row, int chunk) {
    return tile + tile_offset<HS>(row, chunk);
}

/* Begins to copy ROWS rows of a head, from row `first` on, into a tile. tile_load_last is for a tile that may reach past
 * the last row: rows from T on become zeros. */
template <int HS, int ROWS, bool IS_LAST = false>
__device__ inline void tile_load(bf16 *tile, const bf16 *rows, int stride, int first, int T = 0) {
    constexpr int CHUNKS = HS / 8, STEP = FLASH_THREADS / CHUNKS;
    static_assert(STEP % 8 == 0, "a thread's chunks are at the same place of their rows");
    int row = (int)threadIdx.x / CHUNKS, chunk = (int)threadIdx.x % CHUNKS;
    bf16 *to = tile_at<HS>(tile, row, chunk);
    const bf16 *from = rows + (size_t)first * (size_t)stride + (unsigned)(row * stride + chunk * 8);
#pragma unroll
    for (int i = 0; i < ROWS / STEP; i++)
        copy_async_16(to + i * STEP * HS, from + (size_t)(i * STEP) * (size_t)stride,
                      !IS_LAST || first + row + i * STEP < T);
}
template <int HS, int ROWS>
__device__ inline void tile_load_last(bf16 *tile, const bf16 *rows, int stride, int first, int T) {
    tile_load<HS, ROWS, true>(tile, rows, stride, first, T);
}

/* Operands. 16 columns are two chunks, so a lane's chunk k * 16 columns further on is an exclusive or away, and its own part
 * of the address is worked out once. row0, n0, k0 are multiples of 16.
 * a (16,16): rows row0 .. of the tile, columns k * 16 .. */
template <int HS> __device__ inline void operand_a(uint32_t a[4], bf16 *tile, int row0, int k) {
    ldmatrix_x4(a, tile + row0 * HS + (tile_offset<HS>(lane_id() % 16, lane_id() / 16) ^ k * 16));
}
/* Two operands b (16,8) of the transposed tile: inner dimension columns k * 16 .., columns of b rows n0 .. n0+15. */
template <int HS> __device__ inline void operand_b_transposed(uint32_t b[4], bf16 *tile, int n0, int k) {
    int row = lane_id() % 8 + lane_id() / 16 * 8;
    ldmatrix_x4(b, tile + n0 * HS + (tile_offset<HS>(row, lane_id() / 8 % 2) ^ k * 16));
}
/* Two operands b (16,8) of the tile: inner dimension rows k0 .. k0+15, columns of b n * 16 .. */
template <int HS> __device__ inline void operand_b(uint32_t b[4], bf16 *tile, int k0, int n) {
    ldmatrix_x4_trans(b, tile + k0 * HS + (tile_offset<HS>(lane_id() % 16, lane_id() / 16) ^ n * 16));
}

/* c (16,16), two results of mma side by side, as the operand a of the next product. */
__device__ inline void operand_from_results(uint32_t a[4], const float left[4], const float right[4]) {
    a[0] = bf16_pair(left[0], left[1]), a[1] = bf16_pair(left[2], left[3]);
    a[2] = bf16_pair(right[0], right[1]), a[3] = bf16_pair(right[2], right[3]);
}

/* The four lanes that hold one row of a result. */
__device__ inline float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}
__device__ inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

/* Does the query see the key? Rows from T on need no test: as queries they are not stored and their lse, dout are 0; as
 * keys they come after every query that is stored. */
__device__ inline bool is_seen(int query, int key, int window) {
    return (unsigned)(query - key) < (unsigned)window;
}
/* Of queries q0 .. q1 and keys k0 .. k1: is any pair seen; are all? */
__device__ inline bool any_seen(int q0, int q1, int k0, int k1, int window) {
    return k0 <= q1 && k1 > q0 - window;
}
__device__ inline bool all_seen(int q0, int q1, int k0, int k1, int window) {
    return k1 <= q0 && k0 > q1 - window;
}

/* Stores 16 rows of results of a warp, times factor, by way of those rows of a tile (which nobody else may be using):
 * lines of 16 bytes instead of 4. to: row 0 of the head; rows from T on are not stored. */
template <int HS>
__device__ inline void store_rows(bf16 *to, int stride, bf16 *tile, int row0, int t0, int T,
                                  const float results[HS / 8][4], float factor0, float factor1) {
    int g = lane_id() / 4, column = lane_id() % 4 * 2;
#pragma unroll
    for (int n = 0; n < HS / 8; n++) {
        uint32_t top = bf16_pair(results[n][0] * factor0, results[n][1] * factor0);
        uint32_t bottom = bf16_pair(results[n][2] * factor1, results[n][3] * factor1);
        memcpy(tile_at<HS>(tile, row0 + g, n) + column, &top, sizeof top);
        memcpy(tile_at<HS>(tile, row0 + g + 8, n) + column, &bottom, sizeof bottom);
    }
    __syncwarp();
    constexpr int CHUNKS = HS / 8;
#pragma unroll
    for (int i = 0; i < 16 * CHUNKS / WARP; i++) {
        int at = lane_id() + i * WARP, row = at / CHUNKS, chunk = at % CHUNKS;
        if (t0 + row < T)
            store(to + (size_t)(t0 + row) * (size_t)stride + chunk * 8,
                  load<8>(tile_at<HS>(tile, row0 + row, chunk)));
    }
}
#endif
