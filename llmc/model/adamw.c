/* adamw.c: see adamw.h. Ranges are cut at tensor borders, since decay is a property of a tensor. */
#include "model/adamw.h"
#include "base/check.h"
#include "model/kernels.h"
#include <stdlib.h>
#include <string.h>

/* Do parameters have too few bits to be stepped on? */
enum { HAS_MASTER = sizeof(floatX) < sizeof(float) };

size_t adamw_bytes(size_t n) {
    return (HAS_MASTER ? 3 : 2) * n * sizeof(float);
}

bool adamw_init(AdamW *o, const AdamWConfig *config, const AdamWRange *ranges, int num_ranges, Error *err) {
    *o = (AdamW){.config = *config, .num_ranges = num_ranges};
    for (int i = 0; i < num_ranges; i++) {
        CHECK_OP(ranges[i].begin, <=, ranges[i].end);
        o->count += ranges[i].end - ranges[i].begin;
    }
    o->ranges = malloc((size_t)num_ranges * sizeof *ranges);
    o->m = device_alloc(o->count * sizeof(float));
    o->v = device_alloc(o->count * sizeof(float));
    o->master = HAS_MASTER ? device_alloc(o->count * sizeof(float)) : NULL;
    if (o->ranges && o->m && o->v && (o->master || !HAS_MASTER)) {
        memcpy(o->ranges, ranges, (size_t)num_ranges * sizeof *ranges);
        return true;
    }
    error_set(err, "optimizer: no memory for %.2f GB (use a smaller model, or more ranks)",
              1e-9 * (double)adamw_bytes(o->count));
    adamw_free(o);
    return false;
}

void adamw_free(AdamW *o) {
    device_free(o->m, o->count * sizeof(float));
    device_free(o->v, o->count * sizeof(float));
    device_free(o->master, o->count * sizeof(float));
    free(o->ranges);
    *o = (AdamW){0};
}

/* The part of one tensor that lies in one range, whose moments begin at `moments`. */
static void update_part(AdamW *o, GPT2 *m, AdamWRange range, size_t moments, size_t from, size_t to,
                        AdamWArgs args) {
    if (from < range.begin) from = range.begin;
    if (to > range.end) to = range.end;
    if (from >= to) return;
    size_t at = moments + (from - range.begin);
    args.first = from;
    adamw_kernel(m->params + from, o->master ? o->master + at : NULL, m->grads + from, o->m + at, o->v + at,
                 to - from, &args);
}

static void update_tensor(AdamW *o, GPT2 *m, int tensor, int layer, AdamWArgs args) {
    TensorInfo info = gpt2_tensor(&m->config, tensor);
    size_t from = gpt2_tensor_offset(&m->config, tensor, layer), moments = 0;
    args.decay = info.decay ? o->config.weight_decay : 0.0f;
    for (int i = 0; i < o->num_ranges; i++) {
        update_part(o, m, o->ranges[i], moments, from, from + info.rows * info.cols, args);
        moments += o->ranges[i].end - o->ranges[i].begin;
    }
}

/* Once, so by way of the host. */
static void set_master(AdamW *o, const GPT2 *m) {
    enum { BLOCK = 16384 };
    float block[BLOCK], *to = o->master;
    for (int i = 0; i < o->num_ranges; i++)
        for (size_t at = o->ranges[i].begin; at < o->ranges[i].end;) {
            size_t left = o->ranges[i].end - at, n = left < BLOCK ? left : BLOCK;
            device_read_floats(block, m->params + at, n);
            device_write(to, block, n * sizeof *block);
            to += n, at += n;
        }
    o->master_is_set = true;
}

void adamw_update(AdamW *o, GPT2 *m, double learning_rate, double grad_scale) {
    o->step++;
    const AdamWArgs args = {.lr = (float)learning_rate,
                            .beta1 = o->config.beta1,
                            .beta2 = o->config.beta2,
                            .eps = o->config.epsilon,
                            .grad_scale = (float)grad_scale,
                            .step = o->step,
                            .seed = o->config.seed};
    if (o->master && !o->master_is_set) set_master(o, m);
    for (int t = 0; t < NUM_PARAM_TENSORS; t++) {
        int count = gpt2_tensor(&m->config, t).scope == LAYER ? m->config.layers : 1;
        for (int l = 0; l < count; l++) update_tensor(o, m, t, l, args);
    }
}
