/* data_parallel.c: see data_parallel.h. */
#include "run/data_parallel.h"
#include "base/check.h"
#include "model/kernels.h"
#include <math.h>
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

static size_t blocks_in(size_t elements) {
    return (elements + EXACT_BLOCK - 1) / EXACT_BLOCK;
}

/* Blocks of the buckets before this one. */
static size_t block_begin(const DataParallel *p, int bucket) {
    size_t sum = 0;
    for (int b = 0; b < bucket; b++) sum += blocks_in(bucket_begin(p, b + 1) - bucket_begin(p, b));
    return sum;
}

/* The stored element on its way among ranks. */
static const CommType FLOATX_TYPE = sizeof(floatX) == sizeof(uint16_t) ? COMM_BF16 : COMM_FP32;

static int32_t *exact_sums(const DataParallel *p) {
    return p->wire;
}

/* One more micro-batch's gradients of a bucket go onto the grids, and become zero. */
static void put_on_grids(DataParallel *p, int bucket) {
    size_t begin = bucket_begin(p, bucket), block = block_begin(p, bucket);
    if (!p->levels_written) device_write(p->device_levels, p->levels, p->blocks);
    p->levels_written = true;
    exact_add(exact_sums(p) + begin, p->model->grads + begin, p->device_most + block,
              p->device_levels + block, offsets_of(p, bucket)[p->size], p->bits, p->fresh);
    if (bucket == 0) p->fresh = false;
}

static CommRequest begin_reduce(DataParallel *p, int bucket) {
    size_t begin = bucket_begin(p, bucket), *offsets = offsets_of(p, bucket);
    floatX *grads = p->model->grads + begin;
    switch (p->reduce) {
    case REDUCE_FP32: return comm_reduce_scatter(p->comm, grads, offsets, FLOATX_TYPE, COMM_SUM);
    case REDUCE_BF16:
        bf16_from_floats((uint16_t *)p->wire + begin, grads, offsets[p->size]);
        return comm_reduce_scatter(p->comm, (uint16_t *)p->wire + begin, offsets, COMM_BF16, COMM_SUM);
    case REDUCE_EXACT: break;
    }
    CommRequest request = comm_reduce_scatter(p->comm, exact_sums(p) + begin, offsets, COMM_INT32, COMM_SUM);
    return bucket ? request : comm_all_reduce(p->comm, p->device_most, p->blocks, COMM_UINT8, COMM_MAX);
}

static void layer_done(void *ctx, int layer) {
    DataParallel *p = ctx;
    int bucket = layer + 1;
    if (p->reduce == REDUCE_EXACT) put_on_grids(p, bucket);
    if (p->reducing && p->size > 1) p->requests[bucket] = begin_reduce(p, bucket);
}

static void layer_needed(void *ctx, int layer) {
    wait_bucket(ctx, layer + 1);
}

/* Whole blocks to every rank but the last that has any: uneven is fine, empty too. */
static void divide(DataParallel *p) {
    for (int b = 0; b < p->buckets; b++) {
        size_t begin, end, *offsets = offsets_of(p, b);
        gpt2_layer_range(&p->model->config, b - 1, &begin, &end);
        size_t blocks = blocks_in(end - begin);
        for (int r = 0; r <= p->size; r++) {
            size_t at = blocks * (size_t)r / (size_t)p->size * EXACT_BLOCK;
            offsets[r] = at < end - begin ? at : end - begin;
        }
        p->shares[b] = (AdamWRange){begin + offsets[p->rank], begin + offsets[p->rank + 1]};
    }
}

size_t data_parallel_bytes(size_t n, Reduce reduce) {
    switch (reduce) {
    case REDUCE_FP32: return 0;
    case REDUCE_BF16: return n * sizeof(uint16_t);
    case REDUCE_EXACT: return n * sizeof(int32_t) + blocks_in(n) * (4 + 2 * sizeof(double));
    }
    return 0;
}

/* Memory from comm_alloc that other ranks work on. */
static bool open_arrays(DataParallel *p, Error *err) {
    size_t n = p->model->param_count;
    if (p->size > 1) {
        floatX *params = comm_alloc(p->comm, n * sizeof *params, err);
        floatX *grads = params ? comm_alloc(p->comm, n * sizeof *grads, err) : NULL;
        if (!grads) return false;
        gpt2_use_arrays(p->model, params, grads);
    }
    if (p->reduce == REDUCE_FP32) return true;
    p->wire = comm_alloc(p->comm, n * (p->reduce == REDUCE_BF16 ? sizeof(uint16_t) : sizeof(int32_t)), err);
    return p->wire != NULL;
}

static bool open_exact(DataParallel *p, int64_t micro_batches, Error *err) {
    if (micro_batches > EXACT_TERMS_MAX)
        return error_set(err,
                         "--reduce exact: %lld batches a step are more than %d (raise --batch-size, or lower "
                         "--total-batch)",
                         (long long)micro_batches, EXACT_TERMS_MAX);
    p->bits = exact_bits(micro_batches);
    p->device_most = comm_alloc(p->comm, p->blocks, err);
    if (!p->device_most) return false;
    p->most = calloc(p->blocks, 1);
    p->squares = calloc(p->blocks, sizeof *p->squares);
    p->device_levels = device_alloc(p->blocks);
    p->device_squares = device_alloc(p->blocks * sizeof *p->squares);
    return (p->most && p->squares && p->device_levels && p->device_squares) ||
           error_set(err, "no memory for sums of %zu blocks", p->blocks);
}

bool data_parallel_open(DataParallel *p, Comm *comm, GPT2 *m, Reduce reduce, int64_t micro_batches,
                        Error *err) {
    *p = (DataParallel){.comm = comm, .model = m, .rank = comm_rank(comm), .size = comm_size(comm)};
    p->reduce = reduce == REDUCE_BF16 && p->size == 1 ? REDUCE_FP32 : reduce;
    p->fresh = true;
    p->buckets = m->config.layers + 1;
    p->offsets = calloc((size_t)p->buckets * ((size_t)p->size + 1), sizeof *p->offsets);
    p->shares = calloc((size_t)p->buckets, sizeof *p->shares);
    p->requests = calloc((size_t)p->buckets, sizeof *p->requests);
    p->blocks = block_begin(p, p->buckets);
    p->levels = calloc(p->blocks, 1);
    if (!p->offsets || !p->shares || !p->requests || !p->levels)
        return error_set(err, "no memory for the shares of %d ranks", p->size);
    divide(p);
    if (!open_arrays(p, err)) return false;
    if (p->reduce == REDUCE_EXACT && !open_exact(p, micro_batches, err)) return false;
    if (p->size == 1 && p->reduce == REDUCE_FP32) return true;
    m->hooks.ctx = p;
    m->hooks.layer_done = layer_done;
    m->hooks.layer_needed = layer_needed;
    return true;
}

void data_parallel_close(DataParallel *p) {
    Error ignored; /* what is under way reads the offsets */
    if (p->requests) data_parallel_wait(p, &ignored);
    free(p->offsets);
    free(p->shares);
    free(p->requests);
    free(p->levels);
    free(p->most);
    free(p->squares);
    device_free(p->device_levels, p->blocks);
    device_free(p->device_squares, p->blocks * sizeof *p->squares);
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

/* The blocks that begin in a tensor of a layer. */
static size_t tensor_blocks(const DataParallel *p, int tensor, int layer, size_t *first) {
    const GPT2Config *config = &p->model->config;
    TensorInfo info = gpt2_tensor(config, tensor);
    int bucket = info.scope == LAYER ? layer + 1 : 0;
    size_t at = gpt2_tensor_offset(config, tensor, layer) - bucket_begin(p, bucket);
    *first = blocks_in(at);
    size_t count = blocks_in(at + info.rows * info.cols) - *first;
    *first += block_begin(p, bucket);
    return count;
}

static int layers_of(const DataParallel *p, int tensor) {
    const GPT2Config *config = &p->model->config;
    return gpt2_tensor(config, tensor).scope == LAYER ? config->layers : 1;
}

static ExactVerdict judge(const DataParallel *p) {
    ExactVerdict worst = EXACT_FITS;
    for (int t = 0; t < NUM_PARAM_TENSORS; t++)
        for (int l = 0; l < layers_of(p, t); l++) {
            size_t first, count = tensor_blocks(p, t, l, &first);
            ExactVerdict verdict = exact_judge(p->most + first, p->levels + first, count);
            worst = verdict > worst ? verdict : worst;
        }
    return worst;
}

static void predict(DataParallel *p) {
    for (int t = 0; t < NUM_PARAM_TENSORS; t++)
        for (int l = 0; l < layers_of(p, t); l++) {
            size_t first, count = tensor_blocks(p, t, l, &first);
            exact_predict(p->levels + first, p->most + first, count);
        }
}

/* Were the grids right? Then the gradients are read from them, and the next step's are predicted. */
static bool read_grids(DataParallel *p) {
    device_read(p->most, p->device_most, p->blocks);
    ExactVerdict verdict = judge(p);
    p->fresh = true;
    p->levels_written = false;
    p->not_finite = verdict == EXACT_NOT_FINITE;
    if (verdict == EXACT_TOO_LARGE || verdict == EXACT_TOO_COARSE) {
        memcpy(p->levels, p->most, p->blocks);
        p->repeats++;
        return false;
    }
    if (p->not_finite) return true;
    for (int b = 0; b < p->buckets; b++) {
        AdamWRange share = p->shares[b];
        size_t block = block_begin(p, b) + (share.begin - bucket_begin(p, b)) / EXACT_BLOCK;
        exact_read(p->model->grads + share.begin, p->device_squares + block, exact_sums(p) + share.begin,
                   p->device_levels + block, share.end - share.begin, p->bits);
    }
    device_read(p->squares, p->device_squares, p->blocks * sizeof *p->squares);
    predict(p);
    return true;
}

bool data_parallel_finish(DataParallel *p, bool *again, Error *err) {
    p->reducing = *again = false;
    if (!data_parallel_wait(p, err)) return false;
    if (p->reduce == REDUCE_EXACT) *again = !read_grids(p);
    for (int b = 0; p->reduce == REDUCE_BF16 && b < p->buckets; b++)
        bf16_to_floats(p->model->grads + p->shares[b].begin, (uint16_t *)p->wire + p->shares[b].begin,
                       p->shares[b].end - p->shares[b].begin);
    return true;
}

/* Shares that lie together are added up together: each sum is a wait for the device. */
static void add_squares(const DataParallel *p, ExactSum *sum) {
    for (int b = 0; b < p->buckets;) {
        AdamWRange all = p->shares[b++];
        while (b < p->buckets && p->shares[b].begin == all.end) all.end = p->shares[b++].end;
        exact_sum_add(sum, sum_of_squares(p->model->grads + all.begin, all.end - all.begin));
    }
}

void data_parallel_norm_squared(const DataParallel *p, ExactSum *sum) {
    if (p->not_finite) exact_sum_add(sum, NAN);
    if (p->reduce != REDUCE_EXACT) add_squares(p, sum);
    for (int b = 0; b < p->buckets && p->reduce == REDUCE_EXACT; b++) {
        size_t begin = p->shares[b].begin, n = p->shares[b].end - begin;
        size_t block = block_begin(p, b) + (begin - bucket_begin(p, b)) / EXACT_BLOCK;
        for (size_t i = 0; i < blocks_in(n); i++) exact_sum_add(sum, p->squares[block + i]);
    }
}

void data_parallel_gather(DataParallel *p) {
    if (p->size == 1) return;
    if (p->reduce != REDUCE_EXACT) device_zero(p->model->grads, p->model->param_count * sizeof(floatX));
    for (int b = 0; b < p->buckets; b++)
        p->requests[b] =
            comm_all_gather(p->comm, p->model->params + bucket_begin(p, b), offsets_of(p, b), FLOATX_TYPE);
}

bool data_parallel_sum(DataParallel *p, const ExactSum *sums, double *values, int count, Error *err) {
    CHECK_OP(count, <=, DATA_PARALLEL_SUMS_MAX);
    for (int i = 0; i < count; i++) exact_sum_write(&sums[i], p->digits[i]);
    if (p->size > 1) {
        size_t n = (size_t)count * EXACT_DIGITS;
        CommRequest request = comm_all_reduce(p->comm, p->digits, n, COMM_INT32, COMM_SUM);
        if (!comm_wait(p->comm, request, err)) return false;
    }
    for (int i = 0; i < count; i++) values[i] = exact_sum_read(p->digits[i]);
    return true;
}
