/* adamw.c: see adamw.h. The range is cut at tensor borders, since decay is a property of a tensor. */
#include "model/adamw.h"
#include "base/check.h"
#include "model/kernels.h"

size_t adamw_bytes(size_t n) {
    return 2 * n * sizeof(float);
}

bool adamw_init(AdamW *o, const AdamWConfig *config, size_t begin, size_t end, Error *err) {
    CHECK_OP(begin, <=, end);
    size_t n = end - begin;
    *o = (AdamW){.config = *config, .begin = begin, .end = end};
    o->m = device_alloc(n * sizeof(float));
    o->v = device_alloc(n * sizeof(float));
    if (o->m && o->v) return true;
    adamw_free(o);
    return error_set(err, "optimizer: no memory for %.2f GB (use a smaller model, or more ranks)",
                     1e-9 * (double)adamw_bytes(n));
}

void adamw_free(AdamW *o) {
    device_free(o->m, (o->end - o->begin) * sizeof(float));
    device_free(o->v, (o->end - o->begin) * sizeof(float));
    *o = (AdamW){0};
}

static void update_tensor(AdamW *o, GPT2 *m, int tensor, int layer, AdamWArgs args) {
    TensorInfo info = gpt2_tensor(&m->config, tensor);
    size_t from = gpt2_tensor_offset(&m->config, tensor, layer), to = from + info.rows * info.cols;
    if (from < o->begin) from = o->begin;
    if (to > o->end) to = o->end;
    if (from >= to) return;
    args.decay = info.decay ? o->config.weight_decay : 0.0f;
    size_t at = from - o->begin;
    adamw_kernel(m->params + from, m->grads + from, o->m + at, o->v + at, to - from, &args);
}

void adamw_update(AdamW *o, GPT2 *m, double learning_rate, double grad_scale) {
    o->step++;
    const AdamWArgs args = {.lr = (float)learning_rate,
                            .beta1 = o->config.beta1,
                            .beta2 = o->config.beta2,
                            .eps = o->config.epsilon,
                            .grad_scale = (float)grad_scale,
                            .step = o->step};
    for (int t = 0; t < NUM_PARAM_TENSORS; t++) {
        int count = gpt2_tensor(&m->config, t).scope == LAYER ? m->config.layers : 1;
        for (int l = 0; l < count; l++) update_tensor(o, m, t, l, args);
    }
}
