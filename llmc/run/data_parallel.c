/* data_parallel.c: see data_parallel.h. */
#include "run/data_parallel.h"
#include "base/check.h"
#include "model/kernels.h"
#include <stdlib.h>
#include <string.h>

static size_t *offsets_of(const DataParallel *p, int bucket) {
    return p->offsets + (size_t)bucket * ((size_t)p->size + 1);
}

static size_t bucket_begin(const DataParallel *p, int bucket) {
    size_t begin, end;
    gpt2_layer_range(&p->model->config, bucket - 1, &begin, &end);
    return begin;
}

/* Waits for what is under way on a bucket; inside the walk an error can only be kept. */
static void wait_bucket(DataParallel *p, int bucket) {
    if (!p->failed && p->requests[bucket]) p->failed = !comm_wait(p->comm, p->requests[bucket], &p->error);
    p->requests[bucket] = 0;
}

static void layer_done(void *ctx, int layer) {
    DataParallel *p = ctx;
    if (!p->reducing) return;
    int bucket = layer + 1;
    p->requests[bucket] = comm_reduce_scatter(p->comm, p->model->grads + bucket_begin(p, bucket),
                                              offsets_of(p, bucket), COMM_FP32, COMM_SUM);
}

static void layer_needed(void *ctx, int layer) {
    wait_bucket(ctx, layer + 1);
}

/* Whole cache lines to every rank but the last that has any: uneven is fine, empty too. */
static void divide(DataParallel *p) {
    enum { LINE = 16 };
    for (int b = 0; b < p->buckets; b++) {
        size_t begin, end, *offsets = offsets_of(p, b);
        gpt2_layer_range(&p->model->config, b - 1, &begin, &end);
        size_t lines = (end - begin + LINE - 1) / LINE;
        for (int r = 0; r <= p->size; r++) {
            size_t at = lines * (size_t)r / (size_t)p->size * LINE;
            offsets[r] = at < end - begin ? at : end - begin;
        }
        p->shares[b] = (AdamWRange){begin + offsets[p->rank], begin + offsets[p->rank + 1]};
    }
}

bool data_parallel_open(DataParallel *p, Comm *comm, GPT2 *m, Error *err) {
    *p = (DataParallel){.comm = comm, .model = m, .rank = comm_rank(comm), .size = comm_size(comm)};
    p->buckets = m->config.layers + 1;
    p->offsets = calloc((size_t)p->buckets * ((size_t)p->size + 1), sizeof *p->offsets);
    p->shares = calloc((size_t)p->buckets, sizeof *p->shares);
    p->requests = calloc((size_t)p->buckets, sizeof *p->requests);
    if (!p->offsets || !p->shares || !p->requests)
        return error_set(err, "no memory for the shares of %d ranks", p->size);
    divide(p);
    if (p->size == 1) return true;
    size_t bytes = m->param_count * sizeof(floatX);
    floatX *params = comm_alloc(comm, bytes, err), *grads = params ? comm_alloc(comm, bytes, err) : NULL;
    if (!grads) return false;
    gpt2_use_arrays(m, params, grads);
    m->hooks.ctx = p;
    m->hooks.layer_done = layer_done;
    m->hooks.layer_needed = layer_needed;
    return true;
}

void data_parallel_close(DataParallel *p) {
    free(p->offsets);
    free(p->shares);
    free(p->requests);
    *p = (DataParallel){0};
}

void data_parallel_reduce_next(DataParallel *p) {
    p->reducing = true;
}

bool data_parallel_wait(DataParallel *p, Error *err) {
    for (int b = 0; b < p->buckets; b++) wait_bucket(p, b);
    if (p->failed) *err = p->error;
    return !p->failed;
}

bool data_parallel_finish(DataParallel *p, Error *err) {
    p->reducing = false;
    return data_parallel_wait(p, err);
}

double data_parallel_norm_squared(const DataParallel *p) {
    double sum = 0;
    for (int b = 0; b < p->buckets; b++)
        sum += sum_of_squares(p->model->grads + p->shares[b].begin, p->shares[b].end - p->shares[b].begin);
    return sum;
}

void data_parallel_gather(DataParallel *p) {
    if (p->size == 1) return;
    device_zero(p->model->grads, p->model->param_count * sizeof(floatX));
    for (int b = 0; b < p->buckets; b++)
        p->requests[b] =
            comm_all_gather(p->comm, p->model->params + bucket_begin(p, b), offsets_of(p, b), COMM_FP32);
}

bool data_parallel_sum(DataParallel *p, double *values, int count, Error *err) {
    enum { VALUES_MAX = 8, BYTES = VALUES_MAX * sizeof(double) };
    if (p->size == 1) return true;
    CHECK_OP(count, <=, VALUES_MAX);
    double *all = calloc((size_t)p->size, BYTES);
    size_t *offsets = calloc((size_t)p->size + 1, sizeof *offsets);
    bool ok = all && offsets;
    if (!ok) error_set(err, "no memory for sums over %d ranks", p->size);
    if (ok) {
        for (int r = 0; r <= p->size; r++) offsets[r] = (size_t)r * BYTES;
        memcpy(all + p->rank * VALUES_MAX, values, (size_t)count * sizeof *values);
        ok = comm_wait(p->comm, comm_all_gather(p->comm, all, offsets, COMM_UINT8), err);
    }
    for (int i = 0; ok && i < count; i++) {
        values[i] = 0;
        for (int r = 0; r < p->size; r++) values[i] += all[r * VALUES_MAX + i];
    }
    free(all);
    free(offsets);
    return ok;
}
