/* test_data_parallel.c: sums of gradients over ranks (data_parallel.h) on given gradients, without a model's arithmetic: each
 * Reduce against sums in double; exact the same bits for every number of ranks and backend, also where one micro-batch of
 * one rank outgrows the grids or is not finite, which all ranks have to act on alike.
 *
 * A rank writes a line per step to stderr: hash of the summed gradients, norm, repeats. */
#define _GNU_SOURCE
#include "base/crc32c.h"
#include "comm_lab.h"
#include "model/kernels.h"
#include "run/data_parallel.h"
#include "test.h"

enum { MICRO_BATCHES = 12, STEPS = 7, LIMIT_SECONDS = 60 };
/* What is unusual about a step, and the steps that exact has computed twice when it is over. */
static const struct {
    int micro_batch; /* the one that is */
    float value;     /* of one of its gradients; 0: nothing is */
    int64_t repeats;
} script[STEPS] = {{0, 0, 1},    /* measured */
                   {0, 0, 1},    /* predicted */
                   {7, 1e6f, 2}, /* too large, */
                   {10, NAN, 2}, /* which is forgotten neither by what is not finite */
                   {0, 0, 3},    /* nor by itself: too coarse */
                   {0, -INFINITY, 3}, {11, 0.5f, 3}};

/* --- a rank --- */

static void must(bool ok, const Error *err) {
    if (ok) return;
    fprintf(stderr, "%s\n", err->text);
    exit(3);
}

static float gradient(int step, int micro_batch, size_t i, size_t n) {
    if (script[step].value != 0.0f && micro_batch == script[step].micro_batch && i == n / 3)
        return script[step].value;
    uint64_t key = (uint64_t)micro_batch * n + i;
    double size = ldexp(1, -(int)(i / 700 % 9)); /* other magnitudes in other places; each step a little */
    return (float)(size * (1 + 0.01 * step) * (2 * rng_uniform(3, RNG_STREAM(RNG_TEST, 0), key) - 1));
}

/* What the walk would do for the gradients of one step; true: once more. */
static bool pass(DataParallel *p, int step) {
    GPT2 *m = p->model;
    Error err;
    bool again;
    for (int k = p->rank; k < MICRO_BATCHES; k += p->size) {
        for (size_t i = 0; i < m->param_count; i++) m->grads[i] += gradient(step, k, i, m->param_count);
        if (k + p->size >= MICRO_BATCHES) data_parallel_reduce_next(p);
        for (int l = m->config.layers - 1; m->hooks.layer_done && l >= -1; l--)
            m->hooks.layer_done(m->hooks.ctx, l);
    }
    must(data_parallel_finish(p, &again, &err), &err);
    return again;
}

/* The gradients of all shares, in the parameters; the gradients are zero. */
static void gather(DataParallel *p) {
    GPT2 *m = p->model;
    Error err;
    for (int b = 0; b < p->buckets; b++) {
        AdamWRange share = p->shares[b];
        memcpy(m->params + share.begin, m->grads + share.begin,
               (share.end - share.begin) * sizeof *m->params);
        memset(m->grads + share.begin, 0, (share.end - share.begin) * sizeof *m->grads);
    }
    data_parallel_gather(p);
    must(data_parallel_wait(p, &err), &err);
}

/* Relative distance of the summed gradients from the sums in double. */
static double distance(const GPT2 *m, int step) {
    double *want = calloc(m->param_count, sizeof *want);
    if (!want) abort();
    for (int k = 0; k < MICRO_BATCHES; k++)
        for (size_t i = 0; i < m->param_count; i++) want[i] += (double)gradient(step, k, i, m->param_count);
    double d = test_rel_l2(m->params, want, m->param_count);
    free(want);
    return d;
}

static int run_rank(void) {
    static const GPT2Config config = {
        .context = 5, .vocab = 10, .vocab_padded = 128, .layers = 2, .heads = 1, .channels = 13};
    const DeviceConfig device = {.threads = 1};
    const CommConfig comm_config = {.backend = lab_case(), .topology = "", .timeout_seconds = 20};
    const Reduce reduce = (Reduce)atoi(lab_argument());
    const double bounds[] = {3e-7, 2e-2, 3e-7}; /* by Reduce */
    Comm *comm;
    DataParallel p;
    GPT2 m;
    Error err;
    must(device_open(&device, &err), &err);
    must(comm_open(&comm, &comm_config, &err), &err);
    must(gpt2_init(&m, &config, 1, 1, 1, GPT2_TRAINING, &err), &err);
    must(data_parallel_open(&p, comm, &m, reduce, MICRO_BATCHES, &err), &err);
    for (int step = 0; step < STEPS; step++) {
        ExactSum squares = {{0}};
        double sum;
        while (pass(&p, step)) continue;
        data_parallel_norm_squared(&p, &squares);
        must(data_parallel_sum(&p, &squares, &sum, 1, &err), &err);
        if (isfinite(script[step].value)) {
            gather(&p);
            double far = distance(&m, step), norm = sum_of_squares(m.params, m.param_count);
            bool good = far <= bounds[reduce] && fabs(sum - norm) <= 1e-9 * norm;
            if (!good) fprintf(stderr, "step %d: %g from the sum, norm %g, not %g\n", step, far, sum, norm);
        } else { /* skipped */
            if (isfinite(sum)) fprintf(stderr, "step %d: the norm is %g\n", step, sum);
            memset(m.grads, 0, m.param_count * sizeof *m.grads);
            memset(m.params, 0, m.param_count * sizeof *m.params);
        }
        uint32_t hash = crc32c(0, m.params, m.param_count * sizeof *m.params);
        fprintf(stderr, "%08x %a %lld\n", (unsigned)hash, isfinite(sum) ? sum : -1.0, (long long)p.repeats);
        if (reduce == REDUCE_EXACT && p.repeats != script[step].repeats)
            fprintf(stderr, "step %d: %lld repeats\n", step, (long long)p.repeats);
    }
    data_parallel_close(&p);
    gpt2_free(&m);
    comm_close(comm);
    return 0;
}

/* --- the parent --- */

/* What every rank says, which has to be the same; after the communicator's own line. */
static void run(int size, const char *backend, Reduce reduce, char said[LAB_LINE_BYTES]) {
    Lab lab;
    char argument[8], text[LAB_LINE_BYTES];
    snprintf(argument, sizeof argument, "%d", reduce);
    lab_start(&lab, size, 0, backend, argument);
    lab_finish(&lab, LIMIT_SECONDS);
    for (int r = 0; r < size; r++) {
        const char *lines = lab_stderr(&lab, r, text);
        if (!strncmp(lines, "comm ", 5)) lines = strchr(lines, '\n') ? strchr(lines, '\n') + 1 : "";
        TEST_CHECK(lab_exit_code(&lab, r) == 0, "%s, rank %d of %d: exit %d: %s", backend, r, size,
                   lab_exit_code(&lab, r), text);
        if (r == 0) snprintf(said, LAB_LINE_BYTES, "%s", lines);
        TEST_CHECK(!strcmp(lines, said), "%s, rank %d of %d: says %s and not %s", backend, r, size, lines,
                   said);
    }
    TEST_CHECK(*said && !strstr(said, "step"), "%s, %d ranks, reduce %d: %s", backend, size, reduce, said);
    lab_clean(&lab);
}

int main(void) {
    char one[LAB_LINE_BYTES], many[LAB_LINE_BYTES];
    if (lab_is_rank()) return run_rank();
    run(1, "self", REDUCE_EXACT, one);
    for (int size = 2; size <= 6; size++) {
        if (MICRO_BATCHES % size) continue;
        for (int torus = 0; torus < 2; torus++) {
            run(size, torus ? "torus" : "shm", REDUCE_EXACT, many);
            TEST_CHECK(!strcmp(one, many), "%d ranks, torus %d: %s is not %s", size, torus, many, one);
        }
    }
    run(3, "shm", REDUCE_FP32, many);
    run(2, "shm", REDUCE_BF16, many);
    run(4, "torus", REDUCE_BF16, many);
    return test_end("data_parallel");
}
