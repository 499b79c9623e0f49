/* generate.c: the walk of gpt2.c for a single row, against the cache; see generate.h. */
#include "model/generate.h"
#include "model/gpt2_dims.h"
#include <stdlib.h>
#include <string.h>

/* The matrices of a layer, in the order of Generator.weights. */
enum { W_QKV, W_ATTPROJ, W_FC, W_FCPROJ, WEIGHTS_PER_LAYER };
static const int layer_weights[] = {TENSOR_qkvw, TENSOR_attprojw, TENSOR_fcw, TENSOR_fcprojw};

static int weight_tensor(const GPT2Config *c, int i) {
    return i == c->layers * WEIGHTS_PER_LAYER ? TENSOR_wte : layer_weights[i % WEIGHTS_PER_LAYER];
}

static size_t slot_count(const GPT2Config *c) {
    return (size_t)(c->window && c->window < c->context ? c->window : c->context);
}

/* Takes bytes from the arena in whole cache lines; with base NULL it only counts. */
static void *take(char *base, size_t *at, size_t bytes) {
    void *p = base ? base + *at : NULL;
    *at += (bytes + 63) / 64 * 64;
    return p;
}

/* Lays out everything but the packed weights; returns its bytes. */
static size_t layout(Generator *g, const GPT2Config *config, char *base) {
    CONFIG_DIMS(config);
    size_t at = 0, slots = slot_count(config), cache = L * slots * C * sizeof(floatX);
    g->keys = take(base, &at, cache);
    g->values = take(base, &at, cache);
    g->x = take(base, &at, C * sizeof(floatX));
    g->ln = take(base, &at, C * sizeof(floatX));
    g->qkv = take(base, &at, 3 * C * sizeof(floatX));
    g->atty = take(base, &at, C * sizeof(floatX));
    g->wide = take(base, &at, 4 * C * sizeof(floatX));
    g->logits = take(base, &at, Vp * sizeof(floatX));
    g->mean = take(base, &at, sizeof(float));
    g->rstd = take(base, &at, sizeof(float));
    g->token = take(base, &at, sizeof(int32_t));
    return at;
}

/* Packs every weight behind what layout took; base NULL only counts. Returns the end of the arena. */
static size_t pack(Generator *g, const GPT2Config *config, WeightType type, char *base, size_t at) {
    for (int i = 0; i <= config->layers * WEIGHTS_PER_LAYER; i++) {
        int t = weight_tensor(config, i);
        TensorInfo info = gpt2_tensor(config, t);
        void *memory = take(base, &at, packed_weight_bytes(type, info.rows, info.cols));
        if (!base) continue;
        const floatX *w = g->model->params + gpt2_tensor_offset(config, t, i / WEIGHTS_PER_LAYER);
        g->weights[i] = packed_weight_make(type, memory, w, info.rows, info.cols);
    }
    return at;
}

/* What generator_init allocates. */
static size_t generator_bytes(const GPT2Config *config, WeightType type) {
    Generator g = {0};
    return pack(&g, config, type, NULL, layout(&g, config, NULL));
}

bool generator_init(Generator *g, const GPT2 *model, WeightType type, Error *err) {
    const GPT2Config *config = &model->config;
    size_t bytes = generator_bytes(config, type);
    *g = (Generator){.model = model, .memory_bytes = bytes, .slots = slot_count(config), .type = type};
    g->memory = device_alloc(bytes);
    g->weights = malloc(((size_t)config->layers * WEIGHTS_PER_LAYER + 1) * sizeof *g->weights);
    g->host_logits = malloc((size_t)config->vocab_padded * sizeof(float));
    g->history = malloc((size_t)config->context * sizeof *g->history);
    if (!g->memory || !g->weights || !g->host_logits || !g->history) {
        generator_free(g);
        return error_set(err, "generation: no memory for %.2f GB (use --weights=int8, or a smaller model)",
                         1e-9 * (double)bytes);
    }
    generator_repack(g);
    return true;
}

void generator_free(Generator *g) {
    device_free(g->memory, g->memory_bytes);
    free(g->weights);
    free(g->host_logits);
    free(g->history);
    *g = (Generator){0};
}

void generator_reset(Generator *g) {
    g->length = 0;
}

void generator_repack(Generator *g) {
    generator_reset(g);
    pack(g, &g->model->config, g->type, g->memory, layout(g, &g->model->config, g->memory));
}

/* One token at the next position; the logits are left on the device. */
static void forward(Generator *g, int32_t token) {
    const GPT2 *m = g->model;
    CONFIG_DIMS(&m->config);
    size_t t = (size_t)g->length, HS = C / NH, W = (size_t)m->config.window, cache = g->slots * C;
    Params p = gpt2_params(m, m->params, 0);
    device_write(g->token, &token, sizeof token);
    encoder_forward(g->x, g->token, p.wte, p.wpe + t * C, 1, 1, C);
    for (int l = 0; l < m->config.layers; l++) {
        const PackedWeight *w = g->weights + l * WEIGHTS_PER_LAYER;
        p = gpt2_params(m, m->params, l);
        layernorm_forward(g->ln, g->mean, g->rstd, g->x, p.ln1w, p.ln1b, 1, C);
        matvec_forward(g->qkv, g->ln, w[W_QKV], p.qkvb, NULL);
        attention_decode(g->atty, g->keys + (size_t)l * cache, g->values + (size_t)l * cache, g->qkv, t,
                         g->slots, NH, HS, W);
        matvec_forward(g->x, g->atty, w[W_ATTPROJ], p.attprojb, g->x);
        layernorm_forward(g->ln, g->mean, g->rstd, g->x, p.ln2w, p.ln2b, 1, C);
        matvec_forward(g->wide, g->ln, w[W_FC], p.fcb, NULL);
        gelu_forward(g->wide, g->wide, 4 * C);
        matvec_forward(g->x, g->wide, w[W_FCPROJ], p.fcprojb, g->x);
    }
    layernorm_forward(g->ln, g->mean, g->rstd, g->x, p.lnfw, p.lnfb, 1, C);
    matvec_forward(g->logits, g->ln, g->weights[L * WEIGHTS_PER_LAYER], NULL, NULL);
    g->history[g->length++] = token;
}

float *generator_step(Generator *g, int32_t token) {
    const GPT2Config *config = &g->model->config;
    CHECK(token >= 0 && token < config->vocab);
    if (g->length == config->context) {
        int kept = config->context / 2;
        memmove(g->history, g->history + config->context - kept, (size_t)kept * sizeof *g->history);
        generator_reset(g);
        for (int i = 0; i < kept; i++) forward(g, g->history[i]);
    }
    forward(g, token);
    device_read_floats(g->host_logits, g->logits, (size_t)config->vocab_padded);
    return g->host_logits;
}
