/* attention.c: causal self-attention in blocks of queries times blocks of keys; T x T is never built.
 *
 * A block of scores is kept transposed, (keys, queries): a vector then holds neighbouring queries of one key, the softmax
 * needs no sum across a vector, and of all factors only the block of queries (and of dout) is ever transposed: keys and
 * values are read as rows. Forward the softmax is rescaled as larger scores turn up (Dao et al., arXiv 2205.14135);
 * backward it is made again from the log-sum-exp, with D = rowsum(dout out).
 *
 * Queries and keys are cut at multiples of BLOCK. Every sum runs over the blocks in order of position, so how the blocks
 * are dealt to threads does not change a bit. */
#include "cpu/attention_product.h"
#include "cpu/isa.h"
#include "cpu/transpose.h"
#include <float.h>
#include <math.h>
#include <omp.h>

enum { BLOCK = 96 }; /* queries or keys: a multiple of WIDE and of ROWS; a block of scores is 36 KB */

typedef struct {
    size_t T, NH, HS, C, window; /* window: 1 .. T */
    size_t HSp;                  /* HS as whole vectors: rows of scratch matrices */
    size_t blocks;               /* of T */
    float scale;
} Shape;

/* One block of queries or keys of one head: positions from .. from + count of the sequence. */
typedef struct {
    size_t from, count;
} Block;

static size_t min(size_t a, size_t b) {
    return a < b ? a : b;
}
static size_t max(size_t a, size_t b) {
    return a > b ? a : b;
}
static size_t round_up(size_t n, size_t to) {
    return (n + to - 1) / to * to;
}

static Shape shape_make(size_t T, size_t NH, size_t HS, size_t window) {
    return (Shape){.T = T,
                   .NH = NH,
                   .HS = HS,
                   .C = NH * HS,
                   .window = window && window < T ? window : T,
                   .HSp = round_up(HS, VL),
                   .blocks = (T + BLOCK - 1) / BLOCK,
                   .scale = 1.0f / sqrtf((float)HS)};
}
static Block block_at(const Shape *s, size_t index) {
    return (Block){index * BLOCK, min(BLOCK, s->T - index * BLOCK)};
}
static size_t block_end(Block b) {
    return b.from + b.count;
}
/* The first key that query t sees. */
static size_t first_key(const Shape *s, size_t t) {
    return t + 1 > s->window ? t + 1 - s->window : 0;
}

/* --- moving blocks between the tensors and scratch --- */

/* to (count,HSp) = from (count,HS at stride) * scale, padded with zeros. */
static void rows_load(float *to, const float *from, size_t stride, size_t count, float scale,
                      const Shape *s) {
    vf k = v_set1(scale);
    for (size_t t = 0; t < count; t++, to += s->HSp, from += stride) {
        size_t c = 0;
        for (; c + VL <= s->HS; c += VL) v_store(to + c, v_load(from + c) * k);
        if (c < s->HS) v_store(to + c, v_load_n(from + c, s->HS - c) * k);
    }
}
/* The reverse, without the padding. */
static void rows_store(float *to, size_t stride, const float *from, size_t count, float scale,
                       const Shape *s) {
    vf k = v_set1(scale);
    for (size_t t = 0; t < count; t++, from += s->HSp, to += stride) {
        size_t c = 0;
        for (; c + VL <= s->HS; c += VL) v_store(to + c, v_load(from + c) * k);
        if (c < s->HS) v_store_n(to + c, v_load(from + c) * k, s->HS - c);
    }
}
/* to (HSp,BLOCK) = transpose of from (count,HS at stride) * scale; zeros up to whole tiles. */
static void rows_load_transposed(float *to, const float *from, size_t stride, size_t count, float scale,
                                 const Shape *s) {
    for (size_t t = 0; t < round_up(count, WIDE); t += VL)
        for (size_t c = 0; c < s->HS; c += VL) {
            vf square[VL];
            if (t + VL <= count && c + VL <= s->HS) {
                UNROLL for (size_t i = 0; i < VL; i++) square[i] =
                    v_load(from + (t + i) * stride + c) * v_set1(scale);
            } else {
                size_t n = min(VL, s->HS - c);
                for (size_t i = 0; i < VL; i++)
                    square[i] =
                        t + i < count ? v_load_n(from + (t + i) * stride + c, n) * v_set1(scale) : (vf){0};
            }
            v_transpose(square);
            UNROLL for (size_t i = 0; i < VL; i++) v_store(to + (c + i) * BLOCK + t, square[i]);
        }
}

/* --- scores --- */

/* One tile of scores: WIDE queries from `query` times the keys lo .. hi of a block that any of them sees. */
typedef struct {
    size_t query, lo, hi;
} Tile;

static Tile tile_at(const Shape *s, Block queries, Block keys, size_t column) {
    size_t query = queries.from + column, last = min(query + WIDE, block_end(queries)) - 1;
    Tile tile = {query, max(keys.from, first_key(s, query)), min(block_end(keys), last + 1)};
    if (tile.lo > tile.hi) tile.lo = tile.hi;
    return tile;
}
/* Whether each of the WIDE queries sees this key. */
static bool tile_whole_at(const Shape *s, Tile tile, size_t key) {
    return key <= tile.query && tile.query + WIDE <= key + s->window;
}
/* Lanes of the queries query .. query + VL that see the key. */
SIMD vi lanes_that_see(const Shape *s, size_t query, size_t key) {
    static const int32_t counting[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    vi lane, zero = {0};
    memcpy(&lane, counting, sizeof lane);
    vi back = lane + (int32_t)((ptrdiff_t)query - (ptrdiff_t)key); /* how far the key lies behind */
    return (back >= zero) & (back < zero + (int32_t)s->window);
}
static void rows_zero(float *tile, size_t from, size_t to) {
    for (size_t j = from; j < to; j++) memset(tile + j * BLOCK, 0, WIDE * sizeof(float));
}

/* --- forward --- */

typedef struct {
    float *q_t;                        /* (HSp,BLOCK) queries, scaled and transposed */
    float *p;                          /* (BLOCK,BLOCK) scores, then probabilities: (key, query) */
    float *v;                          /* (BLOCK,HSp) */
    float *o;                          /* (BLOCK,HSp) output so far, not yet divided by sum */
    float *max_so_far, *sum, *rescale; /* (BLOCK) of each query */
} Forward;

enum { FORWARD_MATRICES = 3, FORWARD_VECTORS = 3 };

static size_t forward_floats(const Shape *s) {
    return BLOCK * (FORWARD_MATRICES * s->HSp + BLOCK + FORWARD_VECTORS);
}
static Forward forward_carve(float *at, const Shape *s) {
    Forward f = {.q_t = at};
    f.v = f.q_t + s->HSp * BLOCK;
    f.o = f.v + s->HSp * BLOCK;
    f.p = f.o + s->HSp * BLOCK;
    f.max_so_far = f.p + BLOCK * BLOCK;
    f.sum = f.max_so_far + BLOCK;
    f.rescale = f.sum + BLOCK;
    return f;
}

/* Scores of one vector of queries, in column `column` of p, to e^(score - maximum). */
SIMD void softmax_column(const Shape *s, const Forward *f, Block keys, Tile tile, size_t column,
                         size_t query) {
    float *p = f->p + column;
    vf old = v_load(f->max_so_far + column), most = old, sum = {0};
    for (size_t key = tile.lo; key < tile.hi; key++) {
        float *at = p + (key - keys.from) * BLOCK;
        vf score = v_load(at);
        if (!tile_whole_at(s, tile, key)) {
            score = v_select(lanes_that_see(s, query, key), score, v_set1(-FLT_MAX));
            v_store(at, score);
        }
        most = v_max(score, most);
    }
    for (size_t key = tile.lo; key < tile.hi; key++) {
        float *at = p + (key - keys.from) * BLOCK;
        vf e = v_exp(v_load(at) - most);
        if (!tile_whole_at(s, tile, key)) e = v_select(lanes_that_see(s, query, key), e, (vf){0});
        v_store(at, e);
        sum += e;
    }
    vf rescale = v_exp(old - most);
    v_store(f->max_so_far + column, most);
    v_store(f->sum + column, v_fma(v_load(f->sum + column), rescale, sum));
    v_store(f->rescale + column, rescale);
}

static void forward_block(const Shape *s, const Forward *f, Block queries, Block keys, const float *k) {
    const float *v = k + s->C;
    size_t stride = 3 * s->C;
    rows_load(f->v, v + keys.from * stride, stride, keys.count, 1, s);
    for (size_t column = 0; column < queries.count; column += WIDE) {
        Tile tile = tile_at(s, queries, keys, column);
        size_t lo = tile.lo - keys.from, hi = tile.hi - keys.from;
        LeftFactor rows = {k + tile.lo * stride, stride, false};
        product(f->p + lo * BLOCK + column, BLOCK, rows, f->q_t + column, BLOCK, hi - lo, WIDE, s->HS, false);
        rows_zero(f->p + column, 0, lo);
        rows_zero(f->p + column, hi, keys.count);
        for (size_t part = 0; part < WIDE; part += VL)
            softmax_column(s, f, keys, tile, column + part, tile.query + part);
    }
    for (size_t t = 0; t < queries.count; t++) {
        if (f->rescale[t] == 1) continue;
        vf rescale = v_set1(f->rescale[t]);
        for (size_t c = 0; c < s->HSp; c += VL)
            v_store(f->o + t * s->HSp + c, v_load(f->o + t * s->HSp + c) * rescale);
    }
    for (size_t t = 0; t < queries.count; t += ROWS) {
        size_t rows = min(ROWS, queries.count - t), query = queries.from + t;
        size_t lo = max(keys.from, first_key(s, query)), hi = min(block_end(keys), query + rows);
        if (lo >= hi) continue;
        LeftFactor p = {f->p + (lo - keys.from) * BLOCK + t, BLOCK, true};
        product(f->o + t * s->HSp, s->HSp, p, f->v + (lo - keys.from) * s->HSp, s->HSp, rows, s->HSp, hi - lo,
                true);
    }
}

/* One block of queries of one head: q (its first row is position 0), out and lse likewise. */
static void forward_queries(const Shape *s, const Forward *f, Block queries, float *out, float *lse,
                            const float *q) {
    size_t stride = 3 * s->C;
    rows_load_transposed(f->q_t, q + queries.from * stride, stride, queries.count, s->scale, s);
    memset(f->o, 0, queries.count * s->HSp * sizeof(float));
    for (size_t t = 0; t < BLOCK; t++) f->max_so_far[t] = -FLT_MAX, f->sum[t] = 0;
    for (size_t j = first_key(s, queries.from) / BLOCK; j * BLOCK < block_end(queries); j++)
        forward_block(s, f, queries, block_at(s, j), q + s->C);
    for (size_t t = 0; t < queries.count; t++) {
        size_t at = queries.from + t;
        lse[at] = f->max_so_far[t] + logf(f->sum[t]);
        rows_store(out + at * s->C, s->C, f->o + t * s->HSp, 1, 1 / f->sum[t], s);
    }
}

/* Whether a head must be cut into units for several threads, at `cost` times the work (in percent). */
static bool must_split(const Shape *s, size_t heads, size_t threads, size_t cost) {
    return s->blocks > 1 && 100 * ((heads + threads - 1) / threads) * threads > cost * heads;
}

void KERNEL(attention_forward)(floatX *out, float *lse, const floatX *qkv, size_t B, size_t T, size_t NH,
                               size_t HS, size_t window) {
    const Shape s = shape_make(T, NH, HS, window);
    size_t threads = (size_t)omp_get_max_threads(), heads = B * NH, each = round_up(forward_floats(&s), 16);
    size_t parts = must_split(&s, heads, threads, 110) ? s.blocks : 1, blocks = s.blocks / parts;
    float *scratch = cpu_scratch(SCRATCH_ATTENTION, threads * each * sizeof(float));
#pragma omp parallel
    {
        Forward f = forward_carve(scratch + (size_t)omp_get_thread_num() * each, &s);
#pragma omp for schedule(dynamic, 1)
        for (size_t unit = 0; unit < heads * parts; unit++) {
            size_t head = unit / parts, b = head / NH, h = head % NH;
            size_t first = s.blocks - blocks - unit % parts * blocks; /* the longest first */
            for (size_t i = first; i < first + blocks; i++)
                forward_queries(&s, &f, block_at(&s, i), out + b * T * s.C + h * HS, lse + head * T,
                                qkv + b * T * 3 * s.C + h * HS);
        }
    }
}

/* --- backward --- */

typedef struct {
    float *q_t, *dout_t; /* (HSp,BLOCK) transposed; queries are scaled, here and in q */
    float *q, *dout, *k; /* (BLOCK,HSp) */
    float *p, *ds;       /* (BLOCK,BLOCK) scores, then probabilities and gradient of scores: (key, query) */
    float *dq;           /* (BLOCK,HSp) */
    float *lse, *D;      /* (BLOCK) of each query */
    float *dk, *dv;      /* (T,HSp), whole blocks */
} Backward;

static size_t backward_floats(const Shape *s) {
    return BLOCK * (6 * s->HSp + 2 * BLOCK + 2) + 2 * s->blocks * BLOCK * s->HSp;
}
static Backward backward_carve(float *at, const Shape *s) {
    size_t matrix = s->HSp * BLOCK;
    Backward w = {.q_t = at, .dout_t = at + matrix, .q = at + 2 * matrix, .dout = at + 3 * matrix};
    w.k = at + 4 * matrix;
    w.dq = at + 5 * matrix;
    w.p = at + 6 * matrix;
    w.ds = w.p + BLOCK * BLOCK;
    w.lse = w.ds + BLOCK * BLOCK;
    w.D = w.lse + BLOCK;
    w.dk = w.D + BLOCK;
    w.dv = w.dk + s->blocks * matrix;
    return w;
}

/* One head's tensors, each from position 0. */
typedef struct {
    const float *q, *dout, *out, *lse;
    float *dq;
} Head;

static void backward_load_queries(const Shape *s, const Backward *w, const Head *head, Block queries) {
    size_t stride = 3 * s->C, n = queries.count;
    const float *q = head->q + queries.from * stride, *dout = head->dout + queries.from * s->C;
    const float *out = head->out + queries.from * s->C;
    rows_load(w->q, q, stride, n, s->scale, s);
    rows_load(w->dout, dout, s->C, n, 1, s);
    rows_load_transposed(w->q_t, q, stride, n, s->scale, s);
    rows_load_transposed(w->dout_t, dout, s->C, n, 1, s);
    for (size_t t = 0; t < BLOCK; t++) {
        vf sum = {0};
        size_t c = 0;
        for (; t < n && c + VL <= s->HS; c += VL)
            sum = v_fma(v_load(dout + t * s->C + c), v_load(out + t * s->C + c), sum);
        if (t < n && c < s->HS)
            sum =
                v_fma(v_load_n(dout + t * s->C + c, s->HS - c), v_load_n(out + t * s->C + c, s->HS - c), sum);
        w->D[t] = v_sum(sum);
        w->lse[t] = t < n ? head->lse[queries.from + t] : 0;
    }
}

/* p and ds of one block, both (key, query); zero where a query does not see a key. */
static void backward_scores(const Shape *s, const Backward *w, const Head *head, Block queries, Block keys) {
    size_t stride = 3 * s->C;
    const float *v = head->q + 2 * s->C;
    for (size_t column = 0; column < queries.count; column += WIDE) {
        Tile tile = tile_at(s, queries, keys, column);
        size_t lo = tile.lo - keys.from, hi = tile.hi - keys.from;
        float *p = w->p + column, *ds = w->ds + column;
        LeftFactor k_rows = {w->k + lo * s->HSp, s->HSp, false},
                   v_rows = {v + tile.lo * stride, stride, false};
        product(p + lo * BLOCK, BLOCK, k_rows, w->q_t + column, BLOCK, hi - lo, WIDE, s->HS, false);
        product(ds + lo * BLOCK, BLOCK, v_rows, w->dout_t + column, BLOCK, hi - lo, WIDE, s->HS, false);
        rows_zero(p, 0, lo), rows_zero(p, hi, keys.count);
        rows_zero(ds, 0, lo), rows_zero(ds, hi, keys.count);
        for (size_t key = tile.lo; key < tile.hi; key++) {
            bool whole = tile_whole_at(s, tile, key);
            for (size_t part = 0; part < WIDE; part += VL) {
                size_t at = (key - keys.from) * BLOCK + part;
                vf e = v_exp(v_load(p + at) - v_load(w->lse + column + part));
                vf d = e * (v_load(ds + at) - v_load(w->D + column + part));
                if (!whole) {
                    vi seen = lanes_that_see(s, tile.query + part, key);
                    e = v_select(seen, e, (vf){0}), d = v_select(seen, d, (vf){0});
                }
                v_store(p + at, e);
                v_store(ds + at, d);
            }
        }
    }
}

static void backward_add_dq(const Shape *s, const Backward *w, Block queries, Block keys) {
    for (size_t t = 0; t < queries.count; t += ROWS) {
        size_t rows = min(ROWS, queries.count - t), query = queries.from + t;
        size_t lo = max(keys.from, first_key(s, query)), hi = min(block_end(keys), query + rows);
        if (lo >= hi) continue;
        LeftFactor ds = {w->ds + (lo - keys.from) * BLOCK + t, BLOCK, true};
        product(w->dq + t * s->HSp, s->HSp, ds, w->k + (lo - keys.from) * s->HSp, s->HSp, rows, s->HSp,
                hi - lo, true);
    }
}

static void backward_add_dk_dv(const Shape *s, const Backward *w, Block queries, Block keys) {
    for (size_t j = 0; j < keys.count; j += ROWS) {
        size_t rows = min(ROWS, keys.count - j), key = keys.from + j;
        size_t lo = max(queries.from, key), hi = min(block_end(queries), key + rows - 1 + s->window);
        if (lo >= hi) continue;
        size_t t = lo - queries.from, to = key * s->HSp;
        LeftFactor ds = {w->ds + j * BLOCK + t, BLOCK, false}, p = {w->p + j * BLOCK + t, BLOCK, false};
        product(w->dk + to, s->HSp, ds, w->q + t * s->HSp, s->HSp, rows, s->HSp, hi - lo, true);
        product(w->dv + to, s->HSp, p, w->dout + t * s->HSp, s->HSp, rows, s->HSp, hi - lo, true);
    }
}

/* All pairs of the query blocks q_from .. q_to and the key blocks k_from .. k_to of one head: dq, or dk and dv, or both
 * if the ranges are complete for them. */
typedef struct {
    size_t q_from, q_to, k_from, k_to;
    bool want_dq, want_dk_dv;
} Range;

static void backward_range(const Shape *s, const Backward *w, const Head *head, Range r) {
    size_t stride = 3 * s->C, matrix = BLOCK * s->HSp;
    float *dk = head->dq + s->C, *dv = dk + s->C;
    if (r.want_dk_dv) {
        memset(w->dk + r.k_from * matrix, 0, (r.k_to - r.k_from) * matrix * sizeof(float));
        memset(w->dv + r.k_from * matrix, 0, (r.k_to - r.k_from) * matrix * sizeof(float));
    }
    for (size_t i = r.q_from; i < r.q_to; i++) {
        Block queries = block_at(s, i);
        size_t j = max(r.k_from, first_key(s, queries.from) / BLOCK);
        if (j >= min(r.k_to, i + 1)) continue;
        backward_load_queries(s, w, head, queries);
        if (r.want_dq) memset(w->dq, 0, matrix * sizeof(float));
        for (; j < min(r.k_to, i + 1); j++) {
            Block keys = block_at(s, j);
            rows_load(w->k, head->q + s->C + keys.from * stride, stride, keys.count, 1, s);
            backward_scores(s, w, head, queries, keys);
            if (r.want_dq) backward_add_dq(s, w, queries, keys);
            if (r.want_dk_dv) backward_add_dk_dv(s, w, queries, keys);
        }
        if (r.want_dq)
            rows_store(head->dq + queries.from * stride, stride, w->dq, queries.count, s->scale, s);
    }
    for (size_t j = r.k_from; j < r.k_to && r.want_dk_dv; j++) {
        Block keys = block_at(s, j);
        rows_store(dk + keys.from * stride, stride, w->dk + j * matrix, keys.count, 1, s);
        rows_store(dv + keys.from * stride, stride, w->dv + j * matrix, keys.count, 1, s);
    }
}

/* A unit is a whole head; or, where heads are too few to keep the threads busy, one block of dq or of dk and dv, at
 * seven products instead of five (the scores are made twice). The bits are the same. */
static Range backward_unit(const Shape *s, size_t part, bool split) {
    if (!split) return (Range){0, s->blocks, 0, s->blocks, true, true};
    if (part < s->blocks) return (Range){part, part + 1, 0, s->blocks, true, false};
    part -= s->blocks;
    return (Range){part, s->blocks, part, part + 1, false, true};
}

void KERNEL(attention_backward)(floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                                const floatX *qkv, size_t B, size_t T, size_t NH, size_t HS, size_t window) {
    const Shape s = shape_make(T, NH, HS, window);
    size_t threads = (size_t)omp_get_max_threads(), heads = B * NH;
    bool split = must_split(&s, heads, threads, 140);
    size_t parts = split ? 2 * s.blocks : 1, each = round_up(backward_floats(&s), 16);
    float *scratch = cpu_scratch(SCRATCH_ATTENTION, threads * each * sizeof(float));
#pragma omp parallel
    {
        Backward w = backward_carve(scratch + (size_t)omp_get_thread_num() * each, &s);
#pragma omp for schedule(dynamic, 1)
        for (size_t unit = 0; unit < heads * parts; unit++) {
            size_t at = unit / parts, b = at / NH, h = at % NH, row = b * T * s.C + h * HS;
            size_t row3 = b * T * 3 * s.C + h * HS;
            Head head = {qkv + row3, dout + row, out + row, lse + at * T, dqkv + row3};
            backward_range(&s, &w, &head, backward_unit(&s, unit % parts, split));
        }
    }
}
