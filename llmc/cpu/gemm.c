/* gemm.c: the matmul of gemm.h: how the work is cut, packed and handed to threads.
 *
 * One operand is "shared": packed whole, by all threads together, and read by all. The other is "private": cut into
 * blocks of panels that fit in a core's second-level cache; whoever takes a block packs it and multiplies it by all
 * shared panels. So each element of either is packed once, the private ones into the cache where they are used, and
 * one barrier is enough. (A shared operand that is too large for the scratch is packed in several phases of k.)
 * Blocks are taken in order by whoever is free; while one is multiplied, the source of the next is prefetched. */
#include "cpu/gemm.h"
#include "cpu/gelu.h"
#include "cpu/gemm_kernel.h"
#include "cpu/gemm_pack.h"
#include <omp.h>

enum {
    STEPS_MAX = 768,                /* of k summed in registers before the sum goes to memory */
    PRIVATE_WORDS = 448 << 10 >> 2, /* of a private block: half a cache */
    SHARED_WORDS =
        3 << 20 >> 2, /* of what is packed for all at a time: streamed from the third-level cache */
    BLOCKS_PER_THREAD = 6,
    PACK_PANELS = 4,   /* shared panels packed by one thread at a time */
    WORK_MIN = 1 << 18 /* multiplications that are worth waking the threads */
};

/* One operand as the plan cuts it. */
typedef struct {
    const GemmOperand *m;
    size_t rows, panel_rows, panels, panel_words;
    void (*pack)(float *panels, size_t panel_words, const GemmPart *part);
} GemmSide;

typedef struct {
    const Gemm *g;
    GemmWords words;
    GemmKernel *kernel;
    bool share_a;
    size_t k_block, k_blocks, phase_k_blocks, phases;
    GemmSide shared, private;
    size_t pack_tasks;           /* per phase */
    size_t block_panels, blocks; /* private panels of a block; blocks */
    size_t split_panels,
        splits;    /* with few blocks and many threads, the shared panels of a block are split */
    float *memory; /* [phase_k_blocks][shared.panels] */
} GemmPlan;

static size_t ceil_div(size_t a, size_t b) {
    return (a + b - 1) / b;
}
static size_t max_of(size_t a, size_t b) {
    return a > b ? a : b;
}

static GemmSide side_of(const GemmPlan *p, bool is_a) {
    const Gemm *g = p->g;
    GemmSide s = {.m = is_a ? &g->a : &g->b,
                  .rows = is_a ? g->M : g->N,
                  .panel_rows = is_a ? MR : NR,
                  .pack = is_a ? gemm_pack_a : gemm_pack_b};
    s.panels = ceil_div(s.rows, s.panel_rows);
    /* a line more, so that equal places of neighbouring panels do not fall into one set of the cache */
    s.panel_words = gemm_steps(p->k_block, p->words) * s.panel_rows + LINE / sizeof(float);
    return s;
}

static GemmPlan make_plan(const Gemm *g, GemmWords words, size_t threads) {
    GemmPlan p = {.g = g, .words = words, .share_a = g->M <= g->N};
    p.kernel = gemm_kernel_choose(g->a.along_k, words);
    const size_t chunk = words == WORDS_PAIRS ? 2 * VL : VL;
    p.k_blocks = ceil_div(g->K, STEPS_MAX / VL * chunk);
    p.k_block = ceil_div(ceil_div(g->K, p.k_blocks), chunk) * chunk;
    p.k_blocks = ceil_div(g->K, p.k_block);
    p.shared = side_of(&p, p.share_a);
    p.private = side_of(&p, !p.share_a);
    p.phase_k_blocks =
        gemm_min(p.k_blocks, max_of(1, SHARED_WORDS / (p.shared.panels * p.shared.panel_words)));
    p.phases = ceil_div(p.k_blocks, p.phase_k_blocks);
    p.pack_tasks = ceil_div(p.shared.panels, PACK_PANELS);
    size_t fit = max_of(1, PRIVATE_WORDS / p.private.panel_words);
    size_t fair = max_of(1, p.private.panels / (threads * BLOCKS_PER_THREAD));
    p.blocks = ceil_div(p.private.panels, gemm_min(fit, fair));
    p.block_panels = ceil_div(p.private.panels, p.blocks);
    p.blocks = ceil_div(p.private.panels, p.block_panels);
    size_t splits = threads == 1 || p.blocks >= 4 * threads ? 1 : ceil_div(4 * threads, p.blocks);
    p.split_panels = ceil_div(p.shared.panels, gemm_min(splits, p.shared.panels));
    p.splits = ceil_div(p.shared.panels, p.split_panels);
    return p;
}

static float *shared_panel(const GemmPlan *p, size_t k_index, size_t panel) {
    return p->memory + (k_index % p->phase_k_blocks * p->shared.panels + panel) * p->shared.panel_words;
}

/* count panels from first on, of one side, in k block k_index. */
static GemmPart part_of(const GemmPlan *p, const GemmSide *s, size_t first, size_t count, size_t k_index) {
    size_t row = first * s->panel_rows, k = k_index * p->k_block, stride = s->m->stride;
    return (GemmPart){.data = s->m->data + (s->m->along_k ? row * stride + k : k * stride + row),
                      .stride = stride,
                      .rows = gemm_min(s->rows - row, count * s->panel_rows),
                      .depth = gemm_min(p->g->K - k, p->k_block),
                      .along_k = s->m->along_k,
                      .words = p->words};
}

static void pack(const GemmPlan *p, const GemmSide *s, float *to, const GemmPart *part, size_t first) {
    s->pack(to, s->panel_words, part);
    if (s->m == &p->g->a && p->g->a_sums) gemm_sum_rows(p->g->a_sums + first * MR, part);
}

static size_t phase_end(const GemmPlan *p, size_t phase) {
    return gemm_min(p->k_blocks, (phase + 1) * p->phase_k_blocks);
}

static void pack_shared(const GemmPlan *p, size_t phase, size_t task) {
    size_t first = task * PACK_PANELS, count = gemm_min(PACK_PANELS, p->shared.panels - first);
    for (size_t k = phase * p->phase_k_blocks; k < phase_end(p, phase); k++) {
        GemmPart part = part_of(p, &p->shared, first, count, k);
        pack(p, &p->shared, shared_panel(p, k, first), &part, first);
    }
}

/* --- what is prefetched during the tiles of a block: the source of the next block, in runs of a line a chunk --- */

typedef struct {
    const char *data;
    size_t step, across, along; /* bytes from line to line of a run, and to the next run across and along */
    size_t runs_across, runs, next, per_tile;
} GemmAhead;

static GemmAhead ahead_of(const GemmPart *part, size_t chunks, size_t tiles) {
    size_t row_bytes = part->stride * sizeof(float),
           lines_of_rows = ceil_div(part->rows, LINE / sizeof(float));
    size_t lines_of_depth = ceil_div(part->depth, LINE / sizeof(float));
    GemmAhead a = {.data = (const char *)part->data};
    if (part->along_k) {
        a.step = LINE, a.across = row_bytes, a.along = chunks * LINE;
        a.runs_across = part->rows;
        a.runs = a.runs_across * ceil_div(lines_of_depth, chunks);
    } else {
        a.step = row_bytes, a.across = LINE, a.along = chunks * row_bytes;
        a.runs_across = lines_of_rows;
        a.runs = a.runs_across * ceil_div(part->depth, chunks);
    }
    a.per_tile = gemm_min(AHEAD, ceil_div(a.runs, tiles));
    return a;
}

/* The runs of one tile; those that are left over prefetch what the tile reads anyway. */
static void ahead_next(GemmAhead *a, GemmTile *tile) {
    tile->ahead_step = a->next < a->runs ? a->step : 0;
    for (size_t i = 0; i < AHEAD; i++) {
        if (i < a->per_tile && a->next < a->runs) {
            tile->ahead[i] =
                a->data + a->next % a->runs_across * a->across + a->next / a->runs_across * a->along;
            a->next++;
        } else {
            tile->ahead[i] = i ? tile->ahead[0] : (const char *)tile->a;
        }
    }
}

/* --- one tile --- */

/* Rows of a tile whose sums (MR,NR) lie in memory: the edge of the matrix, or a GELU to do. */
static void finish_tile(const Gemm *g, const float *sums, size_t row, size_t col, bool first, bool last) {
    size_t rows = gemm_min(MR, g->M - row), cols = gemm_min(NR, g->N - col);
    const float *add = first ? g->add : g->out, *bias = first ? g->bias : NULL;
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j += VL) {
            size_t n = gemm_min(VL, cols - j), at = (row + i) * g->N + col + j;
            vf x = v_load(sums + i * NR + j);
            if (bias) x += v_load_n(bias + col + j, n);
            if (add) x += v_load_n(add + at, n);
            if (last && g->finish == GEMM_GELU) v_store_n(g->gelu + at, v_gelu(x), n);
            if (last && g->finish == GEMM_GELU_GRAD) {
                vf grad, y = v_gelu_both(v_load_n(g->pre + at, n), &grad);
                if (g->gelu) v_store_n(g->gelu + at, y, n);
                x *= grad;
            }
            v_store_n(g->out + at, x, n);
        }
}

/* Remembers that the store of the tile will touch the matrix m, unless there is none. */
static void touch(GemmTile *tile, const float *m, size_t at) {
    if (!m) return;
    tile->touch[tile->touch_rows / MR] = m + at;
    tile->touch_rows += MR;
}

/* The product of an A and a B panel over k block k_index; row and col are where the tile starts. */
static void multiply_tile(const GemmPlan *p, GemmTile *tile, size_t row, size_t col, size_t k_index) {
    const Gemm *g = p->g;
    const bool first = k_index == 0, last = k_index + 1 == p->k_blocks;
    const size_t at = row * g->N + col;
    const float *add = first ? g->add : g->out;
    tile->touch_rows = 0;
    tile->touch_stride = g->N;
    touch(tile, g->out, at);
    if (add != g->out) touch(tile, add, at);
    if (last && g->finish != GEMM_STORE) {
        tile->touch_rows = 0;
        touch(tile, g->out, at);
        touch(tile, g->gelu, at);
        touch(tile, g->pre, at);
    } else if (row + MR <= g->M && col + NR <= g->N) {
        tile->c = g->out + at;
        tile->c_stride = g->N;
        tile->add = add ? add + at : NULL;
        tile->bias = first && g->bias ? g->bias + col : NULL;
        p->kernel(tile);
        return;
    }
    float sums[MR * NR] __attribute__((aligned(LINE)));
    tile->c = sums;
    tile->c_stride = NR;
    tile->add = tile->bias = NULL;
    p->kernel(tile);
    finish_tile(g, sums, row, col, first, last);
}

/* --- one task: a private block times a range of the shared panels, over the k blocks of a phase --- */

static void multiply_block(const GemmPlan *p, size_t phase, size_t task, float *block, size_t threads) {
    const GemmSide *side = &p->private;
    const size_t index = task % p->blocks, first = index * p->block_panels;
    const size_t count = gemm_min(p->block_panels, side->panels - first);
    const size_t from = task / p->blocks * p->split_panels,
                 to = gemm_min(p->shared.panels, from + p->split_panels);
    for (size_t k = phase * p->phase_k_blocks; k < phase_end(p, phase); k++) {
        GemmPart part = part_of(p, side, first, count, k);
        if (from == 0)
            pack(p, side, block, &part, first);
        else
            side->pack(block, side->panel_words, &part);
        GemmAhead ahead = {0};
        GemmTile tile = {.chunks = gemm_steps(part.depth, p->words) / VL};
        size_t next = index + threads; /* the block that this thread will likely take next */
        if (k + 1 < phase_end(p, phase)) {
            part = part_of(p, side, first, count, k + 1);
            ahead = ahead_of(&part, tile.chunks, (to - from) * count);
        } else if (next < p->blocks) {
            size_t start = next * p->block_panels;
            part = part_of(p, side, start, gemm_min(p->block_panels, side->panels - start),
                           phase * p->phase_k_blocks);
            ahead = ahead_of(&part, tile.chunks, (to - from) * count);
        }
        for (size_t s = from; s < to; s++) {
            const float *shared = shared_panel(p, k, s);
            for (size_t r = 0; r < count; r++) {
                const float *own = block + r * side->panel_words;
                size_t row = p->share_a ? s : first + r, col = p->share_a ? first + r : s;
                tile.a = p->share_a ? shared : own;
                tile.b = p->share_a ? own : shared;
                ahead_next(&ahead, &tile);
                multiply_tile(p, &tile, row * MR, col * NR, k);
            }
        }
    }
}

static void run_plans(const GemmPlan *plans, int count, float *blocks, size_t block_words, size_t threads) {
    size_t phases = 0, packs = 0, tasks = 0;
    for (int i = 0; i < count; i++) {
        phases = max_of(phases, plans[i].phases);
        packs += plans[i].pack_tasks;
        tasks += plans[i].blocks * plans[i].splits;
    }
#pragma omp parallel num_threads((int)threads)
    for (size_t phase = 0; phase < phases; phase++) {
#pragma omp for schedule(dynamic, 1)
        for (size_t task = 0; task < packs; task++) {
            size_t i = 0, local = task;
            for (; local >= plans[i].pack_tasks; i++) local -= plans[i].pack_tasks;
            if (phase < plans[i].phases) pack_shared(&plans[i], phase, local);
        }
#pragma omp for schedule(dynamic, 1)
        for (size_t task = 0; task < tasks; task++) {
            size_t i = 0, local = task;
            for (; local >= plans[i].blocks * plans[i].splits; i++)
                local -= plans[i].blocks * plans[i].splits;
            float *block = blocks + (size_t)omp_get_thread_num() * block_words;
            if (phase < plans[i].phases) multiply_block(&plans[i], phase, local, block, threads);
        }
    }
}

void KERNEL(gemm_run)(const Gemm *gemms, int count) {
    GemmWords words = WORDS_FP32;
    if (cpu_precision == PRECISION_BF16) words = WORDS_ROUNDED;
#ifdef __AVX512BF16__
    if (cpu_precision == PRECISION_BF16) words = WORDS_PAIRS;
#endif
    double work = 0;
    for (int i = 0; i < count; i++) work += (double)gemms[i].M * (double)gemms[i].N * (double)gemms[i].K;
    size_t threads = work < WORK_MIN ? 1 : (size_t)cpu_threads;
    GemmPlan plans[2];
    size_t shared_words = 0, block_words = 0;
    for (int i = 0; i < count; i++) {
        plans[i] = make_plan(&gemms[i], words, threads);
        block_words = max_of(block_words, plans[i].block_panels * plans[i].private.panel_words);
        shared_words += plans[i].phase_k_blocks * plans[i].shared.panels * plans[i].shared.panel_words;
    }
    float *memory = cpu_scratch(SCRATCH_GEMM, (shared_words + threads * block_words) * sizeof(float));
    float *blocks = memory;
    memory += threads * block_words;
    for (int i = 0; i < count; i++) {
        plans[i].memory = memory;
        memory += plans[i].phase_k_blocks * plans[i].shared.panels * plans[i].shared.panel_words;
    }
    run_plans(plans, count, blocks, block_words, threads);
}
