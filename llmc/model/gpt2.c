/* gpt2.c: the model: the walk (forward, loss, backward) against kernels.h. Its tables and memory are in
 * gpt2_memory.c.
 *
 * Each line is one fused operation; shapes are in kernels.h. Nothing is allocated and nothing fails here. */
#include "model/gpt2.h"
#include "model/gpt2_dims.h"
#include "model/kernels.h"

static void tp_sum(GPT2 *m, floatX *x, size_t n) {
    if (m->hooks.tp_sum) m->hooks.tp_sum(m->hooks.ctx, x, n);
}

static void layer_done(GPT2 *m, int layer) {
    if (m->hooks.layer_done) m->hooks.layer_done(m->hooks.ctx, layer);
}

static void layer_needed(GPT2 *m, int layer) {
    if (m->hooks.layer_needed) m->hooks.layer_needed(m->hooks.ctx, layer);
}

/* What enters layer l: the output of the layer before it, or of the encoder (or of the stage before). */
static floatX *layer_input(const GPT2 *m, int l) {
    return l > m->layer_begin ? gpt2_acts(m, l - 1).residual3 : gpt2_acts(m, l).encoded;
}

void gpt2_forward(GPT2 *m, const int32_t *tokens) {
    GPT2_DIMS(m);
    layer_needed(m, -1);
    if (m->layer_begin == 0) {
        Params p = gpt2_params(m, m->params, 0);
        encoder_forward(gpt2_acts(m, 0).encoded, tokens, p.wte, p.wpe, B, T, C);
    }
    for (int l = m->layer_begin; l < m->layer_end; l++) {
        Params p = gpt2_params(m, m->params, l);
        Acts a = gpt2_acts(m, l);
        floatX *x = layer_input(m, l);
        layer_needed(m, l);

        layernorm_forward(a.ln1, a.ln1_mean, a.ln1_rstd, x, p.ln1w, p.ln1b, N, C);
        matmul_forward(a.qkv, a.ln1, p.qkvw, p.qkvb, NULL, N, C, 3 * C);
        attention_forward(a.atty, a.lse, a.qkv, B, T, NH, HS, W);
        matmul_forward(a.residual2, a.atty, p.attprojw, ONCE(p.attprojb), ONCE(x), N, C, C);
        tp_sum(m, a.residual2, N * C);

        layernorm_forward(a.ln2, a.ln2_mean, a.ln2_rstd, a.residual2, p.ln2w, p.ln2b, N, C);
        matmul_gelu_forward(a.gelu, a.fch, a.ln2, p.fcw, p.fcb, N, C, 4 * C);
        matmul_forward(a.residual3, a.gelu, p.fcprojw, ONCE(p.fcprojb), ONCE(a.residual2), N, 4 * C, C);
        tp_sum(m, a.residual3, N * C);
    }
    if (m->layer_end == m->config.layers) {
        Params p = gpt2_params(m, m->params, 0);
        Acts a = gpt2_acts(m, m->layer_end - 1);
        layernorm_forward(a.lnf, a.lnf_mean, a.lnf_rstd, a.residual3, p.lnfw, p.lnfb, N, C);
    }
}

/* The head in blocks of rows: the logits of the whole batch would be larger than the model. */
void gpt2_loss(GPT2 *m, const int32_t *targets, float dloss) {
    GPT2_DIMS(m);
    Params p = gpt2_params(m, m->params, 0);
    Acts a = gpt2_acts(m, 0);
    for (size_t at = 0; at < N; at += m->head_rows) {
        size_t rows = N - at < m->head_rows ? N - at : m->head_rows;
        floatX *x = a.lnf + at * C, *dx = a.dbranch + at * C;
        matmul_forward(a.logits, x, p.wte, NULL, NULL, rows, C, Vp);
        classifier(a.logits, a.losses + at, targets + at, dloss, rows, V, Vp);
        if (dloss != 0)
            matmul_backward(dx, gpt2_params(m, m->grads, 0).wte, NULL, a.logits, x, p.wte, rows, C, Vp);
    }
}

void gpt2_backward(GPT2 *m, const int32_t *tokens) {
    GPT2_DIMS(m);
    const bool again = m->mode != GPT2_TRAINING;
    floatX *dx =
        gpt2_acts(m, 0).dresidual; /* the gradient on the residual stream, from the last layer down */
    if (m->layer_end == m->config.layers) {
        Params p = gpt2_params(m, m->params, 0), g = gpt2_params(m, m->grads, 0);
        Acts a = gpt2_acts(m, m->layer_end - 1);
        device_zero(dx, N * C * sizeof(floatX));
        layernorm_backward(dx, g.lnfw, g.lnfb, a.dbranch, a.residual3, p.lnfw, a.lnf_mean, a.lnf_rstd, N, C);
    }
    for (int l = m->layer_end - 1; l >= m->layer_begin; l--) {
        Params p = gpt2_params(m, m->params, l), g = gpt2_params(m, m->grads, l);
        Acts a = gpt2_acts(m, l);
        floatX *x = layer_input(m, l);

        matmul_gelu_backward(a.dwide, a.gelu, g.fcprojw, g.fcprojb, dx, a.fch, p.fcprojw, N, 4 * C, C, again);
        if (again) layernorm_recompute(a.ln2, a.ln2_mean, a.ln2_rstd, a.residual2, p.ln2w, p.ln2b, N, C);
        matmul_backward(a.dbranch, g.fcw, g.fcb, a.dwide, a.ln2, p.fcw, N, C, 4 * C);
        tp_sum(m, a.dbranch, N * C);
        layernorm_backward(dx, g.ln2w, g.ln2b, a.dbranch, a.residual2, p.ln2w, a.ln2_mean, a.ln2_rstd, N, C);

        matmul_backward(a.dbranch, g.attprojw, g.attprojb, dx, a.atty, p.attprojw, N, C, C);
        attention_backward(a.dwide, a.dbranch, a.atty, a.lse, a.qkv, B, T, NH, HS, W);
        if (again) layernorm_recompute(a.ln1, a.ln1_mean, a.ln1_rstd, x, p.ln1w, p.ln1b, N, C);
        matmul_backward(a.dbranch, g.qkvw, g.qkvb, a.dwide, a.ln1, p.qkvw, N, C, 3 * C);
        tp_sum(m, a.dbranch, N * C);
        layernorm_backward(dx, g.ln1w, g.ln1b, a.dbranch, x, p.ln1w, a.ln1_mean, a.ln1_rstd, N, C);
        layer_done(m, l);
    }
    if (m->layer_begin == 0) {
        Params g = gpt2_params(m, m->grads, 0);
        encoder_backward(g.wte, g.wpe, dx, tokens, B, T, C);
    }
    layer_done(m, -1);
}

double gpt2_loss_sum(const GPT2 *m) {
    enum { BLOCK = 16384 }; /* each is a wait for the device */
    float block[BLOCK];
    const float *losses = gpt2_acts(m, 0).losses;
    size_t N = m->B * m->T;
    double sum = 0;
    for (size_t at = 0; at < N; at += BLOCK) {
        size_t n = N - at < BLOCK ? N - at : BLOCK;
        device_read(block, losses + at, n * sizeof *block);
        for (size_t i = 0; i < n; i++) sum += (double)block[i];
    }
    return sum;
}

void gpt2_read_logits(GPT2 *m, size_t first, size_t rows, float *logits) {
    GPT2_DIMS(m);
    Acts a = gpt2_acts(m, 0);
    CHECK(rows <= m->head_rows && first + rows <= N);
    matmul_forward(a.logits, a.lnf + first * C, gpt2_params(m, m->params, 0).wte, NULL, NULL, rows, C, Vp);
    device_read_floats(logits, a.logits, rows * Vp);
}
