/* gpt2_memory.c: what tensors.h lists, as memory: shapes, offsets, views, allocation, initial
 * weights. */
#include "base/rng.h"
#include "model/gpt2_dims.h"
#include <limits.h>
#include <math.h>
#include <stdlib.h>

int gpt2_pad_vocab(int vocab) {
    return (vocab + 127) / 128 * 128;
}

bool gpt2_config_check(const GPT2Config *c, Error *err) {
    const struct {
        const char *name;
        int value, most;
    } sizes[] = {{"context", c->context, 1 << 20},
                 {"vocabulary", c->vocab, 1 << 20},
                 {"layers", c->layers, 4096},
                 {"heads", c->heads, 4096},
                 {"channels", c->channels, 1 << 16}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i].value < 1 || sizes[i].value > sizes[i].most)
            return error_set(err, "model: %s is %d; must be 1 to %d", sizes[i].name, sizes[i].value,
                             sizes[i].most);
    if (c->channels % c->heads)
        return error_set(err, "model: %d channels do not divide into %d heads (use a multiple)", c->channels,
                         c->heads);
    if (c->vocab_padded < c->vocab || c->vocab_padded > (1 << 20) + 128)
        return error_set(err, "model: padded vocabulary %d does not hold %d", c->vocab_padded, c->vocab);
    if (c->window < 0) return error_set(err, "model: window is %d; must be 0 (all) or more", c->window);
    return true;
}

/* --- parameters --- */

TensorInfo gpt2_tensor(const GPT2Config *config, int tensor) {
    CONFIG_DIMS(config);
    const TensorInfo all[] = {
#define X(name, scope, rows, cols, init, decay, split, transposed, huggingface)                              \
    {#name, scope, rows, cols, init, decay, split, transposed, huggingface},
        PARAM_TENSORS(X)
#undef X
    };
    CHECK(tensor >= 0 && tensor < NUM_PARAM_TENSORS);
    return all[tensor];
}

/* Elements of the tensors of one scope that come before `tensor`. */
static size_t scope_elements(const GPT2Config *config, int scope, int tensor) {
    size_t sum = 0;
    for (int t = 0; t < tensor; t++) {
        TensorInfo info = gpt2_tensor(config, t);
        if (info.scope == scope) sum += info.rows * info.cols;
    }
    return sum;
}

void gpt2_layer_range(const GPT2Config *config, int layer, size_t *begin, size_t *end) {
    size_t model = scope_elements(config, MODEL, NUM_PARAM_TENSORS);
    size_t one = scope_elements(config, LAYER, NUM_PARAM_TENSORS);
    *begin = layer < 0 ? 0 : model + (size_t)layer * one;
    *end = layer < 0 ? model : *begin + one;
}

size_t gpt2_tensor_offset(const GPT2Config *config, int tensor, int layer) {
    int scope = gpt2_tensor(config, tensor).scope;
    size_t begin, end;
    gpt2_layer_range(config, scope == MODEL ? -1 : layer, &begin, &end);
    return begin + scope_elements(config, scope, tensor);
}

size_t gpt2_param_count(const GPT2Config *config) {
    size_t begin, end;
    gpt2_layer_range(config, config->layers - 1, &begin, &end);
    return end;
}

double gpt2_flops_per_token(const GPT2Config *config, size_t T) {
    double C = config->channels, L = config->layers, pairs = 0;
    for (size_t t = 0; t < T; t++) {
        size_t seen = t + 1;
        if (config->window && seen > (size_t)config->window) seen = (size_t)config->window;
        pairs += (double)seen / (double)T;
    }
    return 6 * (12 * L * C * C + config->vocab * C) + 12 * L * C * pairs;
}

Params gpt2_params(const GPT2 *m, floatX *arena, int layer) {
    GPT2_DIMS(m);
    size_t model = 0, in_layer, end;
    gpt2_layer_range(&m->config, layer, &in_layer, &end);
    Params p;
#define X(name, scope, rows, cols, ...)                                                                      \
    p.name = arena + (scope == MODEL ? model : in_layer);                                                    \
    *(scope == MODEL ? &model : &in_layer) += (rows) * (cols);
    PARAM_TENSORS(X)
#undef X
    return p;
}

/* --- activations --- */

static size_t round_up(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

/* The views of `layer`; with base NULL only the total is of use. Every tensor starts on a cache line. */
static size_t acts_layout(const GPT2 *m, Acts *a, char *base, int layer) {
    GPT2_DIMS(m);
    size_t head_rows = m->head_rows, at = 0;
#define X(name, scope, type, rows, cols)                                                                     \
    {                                                                                                        \
        size_t one = round_up((rows) * (cols) * sizeof(type));                                               \
        bool each = scope == LAYER || (scope == KEPT && m->mode == GPT2_TRAINING);                           \
        if (base) a->name = (type *)(void *)(base + at + (each ? (size_t)layer * one : 0));                  \
        at += one * (each ? L : 1);                                                                          \
    }
    ACT_TENSORS(X)
#undef X
    return at;
}

Acts gpt2_acts(const GPT2 *m, int layer) {
    Acts a;
    acts_layout(m, &a, m->acts, layer);
    return a;
}

/* --- the model --- */

static GPT2 shape(const GPT2Config *config, size_t B, size_t T, size_t head_rows, GPT2Mode mode) {
    size_t rows = head_rows < B * T ? head_rows : B * T;
    return (GPT2){.config = *config,
                  .B = B,
                  .T = T,
                  .head_rows = rows,
                  .mode = mode,
                  .layer_end = config->layers,
                  .tp_first = true,
                  .param_count = gpt2_param_count(config)};
}

size_t gpt2_bytes(const GPT2Config *config, size_t B, size_t T, size_t head_rows, GPT2Mode mode) {
    GPT2 m = shape(config, B, T, head_rows, mode);
    return m.param_count * sizeof(floatX) * (mode == GPT2_INFERENCE ? 1 : 2) + acts_layout(&m, NULL, NULL, 0);
}

bool gpt2_init(GPT2 *m, const GPT2Config *config, size_t B, size_t T, size_t head_rows, GPT2Mode mode,
               Error *err) {
    *m = (GPT2){0};
    if (!gpt2_config_check(config, err)) return false;
    if (B < 1 || T < 1 || head_rows < 1 || B > INT_MAX / T)
        return error_set(err, "model: a batch of %zu sequences of %zu tokens is not possible", B, T);
    if (T > (size_t)config->context)
        return error_set(err, "model: a sequence of %zu tokens is longer than the model's context of %d", T,
                         config->context);
    *m = shape(config, B, T, head_rows, mode);
    bool training = mode != GPT2_INFERENCE;
    size_t bytes = m->param_count * sizeof(floatX);
    m->acts_bytes = acts_layout(m, NULL, NULL, 0);
    m->params = device_alloc(bytes);
    m->grads = training ? device_alloc(bytes) : NULL;
    m->acts = device_alloc(m->acts_bytes);
    if (m->params && m->acts && (m->grads || !training)) return true;
    gpt2_free(m);
    return error_set(err, "model: no memory for %.2f GB (use a smaller batch, sequence or model)",
                     1e-9 * (double)gpt2_bytes(config, B, T, head_rows, mode));
}

static void free_arrays(GPT2 *m) {
    if (m->borrowed) return;
    device_free(m->params, m->param_count * sizeof(floatX));
    device_free(m->grads, m->param_count * sizeof(floatX));
}

void gpt2_use_arrays(GPT2 *m, floatX *params, floatX *grads) {
    free_arrays(m);
    m->params = params;
    m->grads = grads;
    m->borrowed = true;
}

void gpt2_free(GPT2 *m) {
    free_arrays(m);
    device_free(m->acts, m->acts_bytes);
    *m = (GPT2){0};
}

/* Values first .. first+n of a tensor; two normals come from each random block. */
static void initial_values(float *out, size_t first, size_t n, TensorInfo info, double scale, uint64_t seed,
                           uint64_t stream) {
    for (size_t i = 0; i < n; i++) {
        double value = info.init == ONE ? 1.0 : 0.0;
        if (info.init == NORMAL || info.init == SCALED) value = scale * rng_normal(seed, stream, first + i);
        out[i] = (float)value;
    }
}

void gpt2_init_weights(GPT2 *m, uint64_t seed) {
    enum { BLOCK = 16384 };
    const GPT2Config *config = &m->config;
    for (int t = 0; t < NUM_PARAM_TENSORS; t++) {
        TensorInfo info = gpt2_tensor(config, t);
        double scale = info.init == SCALED ? 0.02 / sqrt(2.0 * config->layers) : 0.02;
        size_t used = (t == TENSOR_wte ? (size_t)config->vocab : info.rows) * info.cols;
        for (int l = 0; l < (info.scope == LAYER ? config->layers : 1); l++) {
            floatX *tensor = m->params + gpt2_tensor_offset(config, t, l);
            uint64_t stream = RNG_STREAM(RNG_INIT, (uint64_t)t * 65536 + (uint64_t)l);
#pragma omp parallel for schedule(dynamic)
            for (size_t at = 0; at < used; at += BLOCK) {
                float block[BLOCK];
                size_t n = used - at < BLOCK ? used - at : BLOCK;
                initial_values(block, at, n, info, scale, seed, stream);
                device_write_floats(tensor + at, block, n);
            }
        }
    }
}
