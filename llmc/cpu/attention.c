/* attention.c: causal self-attention in blocks of queries times blocks of keys; T x T is never built.
 *
 * A block of scores is kept transposed, (keys, queries): a vector then holds neighbouring queries of one key, the softmax
 * needs no sum across a vector, and of all factors only the block of queries (and of dout) is ever transposed: keys and
 * values are read as rows. Forward the softmax is rescaled as larger scores turn up (Dao et al., arXiv 2205.14135);
 * backward it is made again from the log-sum-exp, with D = rowsum(dout out).
 *
 * In bf16, on processors that multiply pairs, every factor of a product is packed to words of two bf16 (neighbours along
 * the sum); sums, softmax and its gradient stay fp32. Elsewhere bf16 changes nothing here.
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
    size_t word;                 /* elements of a word: 1, or 2 if pairs */
    float scale;
    bool pairs;
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
    bool pairs = HAVE_PAIRS && cpu_precision == PRECISION_BF16;
    return (Shape){.T = T,
                   .NH = NH,
                   .HS = HS,
                   .C = NH * HS,
                   .window = window && window < T ? window : T,
                   .HSp = round_up(HS, pairs ? WIDE : VL),
                   .blocks = (T + BLOCK - 1) / BLOCK,
                   .word = pairs ? 2 : 1,
                   .scale = 1.0f / sqrtf((float)HS),
                   .pairs = pairs};
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
SIMD vf load_scaled(const float *p, size_t n, float scale) {
    return (n >= VL ? v_load(p) : n ? v_load_n(p, n) : (vf){0}) * v_set1(scale);
}
#ifdef __AVX512BF16__
/* Neighbours along a row: words of (x[0], x[1]), (x[2], x[3]) .. of the 32 elements of low and high. */
SIMD vf words_of_row(vf low, vf high) {
    return (vf)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}
/* Neighbours along a column: words of (top[0], bottom[0]), (top[1], bottom[1]) .. */
SIMD vf words_of_columns(vf top, vf bottom) {
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                                23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (vf)_mm512_permutexvar_epi16(interleave, (__m512i)words_of_row(top, bottom));
}
#else
SIMD vf words_of_row(vf low, vf high) {
    return low + high;
} /* never called */
SIMD vf words_of_columns(vf top, vf bottom) {
    return top + bottom;
}
#endif

/* One vector of words of a row, from element c; the row has n elements. */
SIMD vf row_words(const float *row, size_t c, size_t n, float scale, bool pairs) {
    vf low = load_scaled(row + c, n - c, scale);
    if (!pairs) return low;
    return words_of_row(low, n > c + VL ? load_scaled(row + c + VL, n - c - VL, scale) : (vf){0});
}
/* A left factor: to (count, HSp words) = from (count,HS at stride). */
static void rows_load_left(float *to, const float *from, size_t stride, size_t count, const Shape *s) {
    for (size_t t = 0; t < count; t++)
        for (size_t c = 0; c < s->HS; c += VL * s->word)
            v_store(to + t * (s->HSp / s->word) + c / s->word,
                    row_words(from + t * stride, c, s->HS, 1, s->pairs));
}
/* A right factor that is summed over its rows: to (count words,HSp) = from (count,HS at stride) * scale. */
static void rows_load_right(float *to, const float *from, size_t stride, size_t count, float scale,
                            const Shape *s) {
    if (!s->pairs) {
        rows_load(to, from, stride, count, scale, s);
        return;
    }
    for (size_t t = 0; t < count; t += 2, to += s->HSp, from += 2 * stride)
        for (size_t c = 0; c < s->HS; c += VL) {
            vf top = load_scaled(from + c, s->HS - c, scale);
            vf bottom = t + 1 < count ? load_scaled(from + stride + c, s->HS - c, scale) : (vf){0};
            v_store(to + c, words_of_columns(top, bottom));
        }
}
/* A right factor that is summed over its columns: to (HSp words,BLOCK) = transpose of from (count,HS at stride) * scale;
 * zeros up to whole tiles. */
SIMD void load_transposed_as(float *to, const float *from, size_t stride, size_t count, float scale,
                             const Shape *s, bool pairs) {
    const size_t word = pairs ? 2 : 1;
    for (size_t t = 0; t < round_up(count, WIDE); t += VL)
        for (size_t c = 0; c < s->HS; c += VL * word) {
            vf square[VL];
            if (t + VL <= count && c + VL * word <= s->HS) {
                UNROLL for (size_t i = 0; i < VL; i++) square[i] =
                    row_words(from + (t + i) * stride, c, c + VL * word, scale, pairs);
            } else {
                for (size_t i = 0; i < VL; i++)
                    square[i] =
                        t + i < count ? row_words(from + (t + i) * stride, c, s->HS, scale, pairs) : (vf){0};
            }
            v_transpose(square);
            UNROLL for (size_t i = 0; i < VL; i++) v_store(to + (c / word + i) * BLOCK + t, square[i]);
        }
}
static void rows_load_transposed(float *to, const float *from, size_t stride, size_t count, float scale,
                                 const Shape *s) {
    if (HAVE_PAIRS && s->pairs)
        load_transposed_as(to, from, stride, count, scale, s, true);
    else
        load_transposed_as(to, from, stride, count, scale, s, false);
}

/* A tile of scores (rows,WIDE at BLOCK) becomes words of neighbouring rows, in to (rows / 2, WIDE at BLOCK); to may be
 * the tile. Its rows and one more, if they are odd, must hold numbers. */
static void tile_pack_columns(float *to, const float *tile, size_t rows) {
    for (size_t j = 0; j < rows; j += 2)
        for (size_t part = 0; part < WIDE; part += VL) {
            const float *top = tile + j * BLOCK + part;
            v_store(to + j / 2 * BLOCK + part, words_of_columns(v_load(top), v_load(top + BLOCK)));
        }
}
/* The same, words of neighbours in a row: (rows, WIDE / 2 at BLOCK), from column / 2 of the matrix. */
static void tile_pack_rows(float *matrix, size_t column, size_t rows) {
    for (size_t j = 0; j < rows; j++, matrix += BLOCK)
        v_store(matrix + column / 2, words_of_row(v_load(matrix + column), v_load(matrix + column + VL)));
}
/* Part of a sum: elements lo .. hi, as first word and number of words. */
typedef struct {
    size_t first, count;
} Words;
static Words words_between(const Shape *s, size_t lo, size_t hi) {
    return (Words){lo / s->word, (hi + s->word - 1) / s->word - lo / s->word};
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
    float *k, *v;                      /* (BLOCK,HSp) */
    float *o;                          /* (BLOCK,HSp) output so far, not yet divided by sum */
    float *max_so_far, *sum, *rescale; /* (BLOCK) of each query */
} Forward;

enum { FORWARD_MATRICES = 4, FORWARD_VECTORS = 3 };

static size_t forward_floats(const Shape *s) {
    return BLOCK * (FORWARD_MATRICES * s->HSp + BLOCK + FORWARD_VECTORS);
}
static Forward forward_carve(float *at, const Shape *s) {
    Forward f = {.q_t = at};
    f.k = f.q_t + s->HSp * BLOCK;
    f.v = f.k + s->HSp * BLOCK;
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
    rows_load_right(f->v, v + keys.from * stride, stride, keys.count, 1, s);
    if (s->pairs) rows_load_left(f->k, k + keys.from * stride, stride, keys.count, s);
    for (size_t column = 0; column < queries.count; column += WIDE) {
        Tile tile = tile_at(s, queries, keys, column);
        size_t lo = tile.lo - keys.from, hi = tile.hi - keys.from;
        LeftFactor rows = {k + tile.lo * stride, stride, false, false};
        if (s->pairs) rows = (LeftFactor){f->k + lo * (s->HSp / 2), s->HSp / 2, false, true};
        product(f->p + lo * BLOCK + column, BLOCK, rows, f->q_t + column, BLOCK, hi - lo, WIDE,
                (s->HS + s->word - 1) / s->word, false);
        rows_zero(f->p + column, 0, lo);
        rows_zero(f->p + column, hi, round_up(keys.count, 2));
        for (size_t part = 0; part < WIDE; part += VL)
            softmax_column(s, f, keys, tile, column + part, tile.query + part);
        if (s->pairs) tile_pack_columns(f->p + column, f->p + column, keys.count);
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
        Words sum = words_between(s, lo - keys.from, hi - keys.from);
        LeftFactor p = {f->p + sum.first * BLOCK + t, BLOCK, true, s->pairs};
        product(f->o + t * s->HSp, s->HSp, p, f->v + sum.first * s->HSp, s->HSp, rows, s->HSp, sum.count,
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
    float *q_t, *dout_t;    /* (HSp,BLOCK) transposed; queries are scaled, here and in q */
    float *q, *dout, *k;    /* (BLOCK,HSp) right factors */
    float *k_left, *v_left; /* (BLOCK,HSp) left factors, if pairs */
    float *p, *ds;   /* (BLOCK,BLOCK) scores, then probabilities and gradient of scores: (key, query) */
    float *ds_words; /* ds as words along the keys, if pairs */
    float *dq;       /* (BLOCK,HSp) */
    float *lse, *D;  /* (BLOCK) of each query */
    float *dk, *dv;  /* (T,HSp), whole blocks */
} Backward;

static size_t backward_floats(const Shape *s) {
    return BLOCK * (8 * s->HSp + 3 * BLOCK + 2) + 2 * s->blocks * BLOCK * s->HSp;
}
static Backward backward_carve(float *at, const Shape *s) {
    size_t matrix = s->HSp * BLOCK;
    Backward w = {.q_t = at, .dout_t = at + matrix, .q = at + 2 * matrix, .dout = at + 3 * matrix};
    w.k = at + 4 * matrix;
    w.dq = at + 5 * matrix;
    w.k_left = at + 6 * matrix;
    w.v_left = at + 7 * matrix;
    w.p = at + 8 * matrix;
    w.ds = w.p + BLOCK * BLOCK;
    w.ds_words = w.ds + BLOCK * BLOCK;
    w.lse = w.ds_words + BLOCK * BLOCK;
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
    rows_load_right(w->q, q, stride, n, s->scale, s);
    rows_load_right(w->dout, dout, s->C, n, 1, s);
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

static void backward_load_keys(const Shape *s, const Backward *w, const Head *head, Block keys) {
    size_t stride = 3 * s->C;
    const float *k = head->q + s->C + keys.from * stride, *v = k + s->C;
    rows_load_right(w->k, k, stride, keys.count, 1, s);
    if (!s->pairs) return;
    rows_load_left(w->k_left, k, stride, keys.count, s);
    rows_load_left(w->v_left, v, stride, keys.count, s);
}

/* One tile: scores to probabilities, and the gradient of those to the gradient of the scores. */
static void backward_softmax(const Shape *s, const Backward *w, Block keys, Tile tile, size_t column) {
    for (size_t key = tile.lo; key < tile.hi; key++) {
        bool whole = tile_whole_at(s, tile, key);
        for (size_t part = 0; part < WIDE; part += VL) {
            size_t at = (key - keys.from) * BLOCK + column + part;
            vf p = v_exp(v_load(w->p + at) - v_load(w->lse + column + part));
            vf ds = p * (v_load(w->ds + at) - v_load(w->D + column + part));
            if (!whole) {
                vi seen = lanes_that_see(s, tile.query + part, key);
                p = v_select(seen, p, (vf){0}), ds = v_select(seen, ds, (vf){0});
            }
            v_store(w->p + at, p);
            v_store(w->ds + at, ds);
        }
    }
}

/* p and ds of one block, both (key, query); zero where a query does not see a key. */
static void backward_scores(const Shape *s, const Backward *w, const Head *head, Block queries, Block keys) {
    size_t stride = 3 * s->C, depth = (s->HS + s->word - 1) / s->word, rows = round_up(keys.count, s->word);
    const float *v = head->q + 2 * s->C;
    for (size_t column = 0; column < queries.count; column += WIDE) {
        Tile tile = tile_at(s, queries, keys, column);
        size_t lo = tile.lo - keys.from, hi = tile.hi - keys.from;
        float *p = w->p + column, *ds = w->ds + column;
        LeftFactor k_rows = {w->k + lo * s->HSp, s->HSp, false, false};
        LeftFactor v_rows = {v + tile.lo * stride, stride, false, false};
        if (s->pairs) {
            k_rows = (LeftFactor){w->k_left + lo * (s->HSp / 2), s->HSp / 2, false, true};
            v_rows = (LeftFactor){w->v_left + lo * (s->HSp / 2), s->HSp / 2, false, true};
        }
        product(p + lo * BLOCK, BLOCK, k_rows, w->q_t + column, BLOCK, hi - lo, WIDE, depth, false);
        product(ds + lo * BLOCK, BLOCK, v_rows, w->dout_t + column, BLOCK, hi - lo, WIDE, depth, false);
        rows_zero(p, 0, lo), rows_zero(p, hi, rows);
        rows_zero(ds, 0, lo), rows_zero(ds, hi, rows);
        backward_softmax(s, w, keys, tile, column);
        if (!s->pairs) continue;
        tile_pack_columns(w->ds_words + column, ds, keys.count);
        tile_pack_rows(w->ds, column, keys.count);
        tile_pack_rows(w->p, column, keys.count);
    }
}

static void backward_add_dq(const Shape *s, const Backward *w, Block queries, Block keys) {
    for (size_t t = 0; t < queries.count; t += ROWS) {
        size_t rows = min(ROWS, queries.count - t), query = queries.from + t;
        size_t lo = max(keys.from, first_key(s, query)), hi = min(block_end(keys), query + rows);
        if (lo >= hi) continue;
        Words sum = words_between(s, lo - keys.from, hi - keys.from);
        LeftFactor ds = {(s->pairs ? w->ds_words : w->ds) + sum.first * BLOCK + t, BLOCK, true, s->pairs};
        product(w->dq + t * s->HSp, s->HSp, ds, w->k + sum.first * s->HSp, s->HSp, rows, s->HSp, sum.count,
                true);
    }
}

static void backward_add_dk_dv(const Shape *s, const Backward *w, Block queries, Block keys) {
    for (size_t j = 0; j < keys.count; j += ROWS) {
        size_t rows = min(ROWS, keys.count - j), key = keys.from + j;
        size_t lo = max(queries.from, key), hi = min(block_end(queries), key + rows - 1 + s->window);
        if (lo >= hi) continue;
        Words sum = words_between(s, lo - queries.from, hi - queries.from);
        size_t to = key * s->HSp, at = j * BLOCK + sum.first, right = sum.first * s->HSp;
        LeftFactor ds = {w->ds + at, BLOCK, false, s->pairs}, p = {w->p + at, BLOCK, false, s->pairs};
        product(w->dk + to, s->HSp, ds, w->q + right, s->HSp, rows, s->HSp, sum.count, true);
        product(w->dv + to, s->HSp, p, w->dout + right, s->HSp, rows, s->HSp, sum.count, true);
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
            backward_load_keys(s, w, head, keys);
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
