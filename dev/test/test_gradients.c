/* test_gradients.c: the backward against finite differences of the forward, tensor by tensor, with and
 * without a window, in odd shapes; batches in parts against the whole.
 *
 * Central differences of the loss in fp32, summed in double. Along a direction of the whole tensor the loss
 * moves far more than it is rounded, so that is the sharp check; single weights show a wrong place. */
#include "model/gpt2.h"
#include "model/kernels.h"
#include "test.h"

typedef struct {
    const char *what;
    GPT2Config config;
    size_t B, T, head_rows;
} Case;

static const Case cases[] = {
    {"plain", {16, 37, 128, 2, 3, 24, 0}, 2, 11, 100},
    {"window", {16, 37, 128, 2, 3, 24, 4}, 2, 16, 100},
    {"one token", {4, 37, 128, 2, 2, 16, 0}, 1, 1, 1},
    {"heads of one channel", {9, 20, 128, 1, 6, 6, 0}, 1, 9, 4},
    {"one head, padded little", {19, 127, 128, 3, 1, 20, 0}, 2, 19, 7},
    {"window of one token", {13, 129, 256, 1, 2, 10, 1}, 3, 13, 5},
    {"longer than the blocks of attention", {150, 50, 128, 1, 2, 32, 0}, 1, 150, 64},
    {"the same with a window", {150, 50, 128, 1, 2, 32, 70}, 1, 150, 64},
};

enum { ROWS_MAX = 256, SAMPLES = 4 };
static int32_t tokens[ROWS_MAX], targets[ROWS_MAX];

/* Weights large enough that attention and GELU bend; a tenth of the targets is not counted. */
static void make_model(GPT2 *m, const Case *c, GPT2Mode mode, uint64_t seed) {
    Error err;
    if (!gpt2_init(m, &c->config, c->B, c->T, c->head_rows, mode, &err)) {
        printf("%s\n", err.text);
        exit(1);
    }
    for (int t = 0; t < NUM_PARAM_TENSORS; t++) {
        TensorInfo info = gpt2_tensor(&c->config, t);
        size_t rows = t == TENSOR_wte ? (size_t)c->config.vocab : info.rows;
        for (int l = 0; l < (info.scope == LAYER ? c->config.layers : 1); l++) {
            float *x = m->params + gpt2_tensor_offset(&c->config, t, l);
            float scale =
                t == TENSOR_wte || t == TENSOR_wpe || !info.decay ? 0.5f : 1.5f / sqrtf((float)info.cols);
            test_fill(x, rows * info.cols, scale, seed + (uint64_t)(100 * t + l));
            if (info.init == ONE)
                for (size_t i = 0; i < rows; i++) x[i] += 1;
        }
    }
    for (size_t i = 0; i < c->B * c->T; i++) {
        uint32_t r[4];
        rng_block(seed, RNG_STREAM(RNG_TEST, 5), i, r);
        tokens[i] = (int32_t)(r[0] % (uint32_t)c->config.vocab);
        targets[i] = r[2] % 10 || i == 0 ? (int32_t)(r[1] % (uint32_t)c->config.vocab) : -1;
    }
}

/* Mean loss over the rows of the batch. */
static double loss_of(GPT2 *m) {
    gpt2_forward(m, tokens);
    gpt2_loss(m, targets, 0);
    return gpt2_loss_sum(m) / (double)(m->B * m->T);
}

static void gradients(GPT2 *m) {
    gpt2_forward(m, tokens);
    gpt2_loss(m, targets, 1.0f / (float)(m->B * m->T));
    gpt2_backward(m, tokens);
}

/* The change of the loss for a step of +-h along direction d (n) from x, divided by 2 h. saved: n floats. */
static double slope(GPT2 *m, float *x, const float *d, size_t n, double h, float *saved) {
    memcpy(saved, x, n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (float)((double)saved[i] + h * (double)d[i]);
    double up = loss_of(m);
    for (size_t i = 0; i < n; i++) x[i] = (float)((double)saved[i] - h * (double)d[i]);
    double down = loss_of(m);
    memcpy(x, saved, n * sizeof *x);
    return (up - down) / (2 * h);
}

/* Richardson's extrapolation of two central differences: the error is of order h^4. */
static double steep(GPT2 *m, float *x, const float *d, size_t n, double h, float *saved) {
    return (4 * slope(m, x, d, n, h / 2, saved) - slope(m, x, d, n, h, saved)) / 3;
}

static void check_tensor(GPT2 *m, const Case *c, int t, int layer, float *direction, float *saved) {
    TensorInfo info = gpt2_tensor(&c->config, t);
    size_t n = (t == TENSOR_wte ? (size_t)c->config.vocab : info.rows) * info.cols;
    size_t offset = gpt2_tensor_offset(&c->config, t, layer);
    float *x = m->params + offset, *g = m->grads + offset;
    double square = 0, along = 0;
    for (size_t i = 0; i < n; i++) square += (double)g[i] * (double)g[i];
    double norm = sqrt(square);

    /* half along the gradient, where the slope is its norm, half anywhere */
    test_fill(direction, n, 1, (uint64_t)(7 * t + layer));
    for (size_t i = 0; i < n; i++) {
        direction[i] = (float)((double)direction[i] * sqrt(3.0 / (double)n) * 0.5);
        if (norm > 0) direction[i] += (float)((double)g[i] / norm);
        along += (double)g[i] * (double)direction[i];
    }
    double found = steep(m, x, direction, n, 0.02, saved);
    double tolerance = 3e-4 * norm + 1e-5;
    TEST_CHECK(fabs(found - along) <= tolerance, "%s: %s of layer %d: slope %.8f, gradient %.8f", c->what,
               info.name, layer, found, along);

    double largest = 0;
    for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs((double)g[i]));
    for (uint64_t s = 0; s < SAMPLES; s++) {
        uint32_t r[4];
        rng_block(3, RNG_STREAM(RNG_TEST, t * 16 + layer), s, r);
        size_t i = r[0] % n;
        const float one = 1;
        found = steep(m, x + i, &one, 1, 0.03, saved);
        TEST_CHECK(fabs(found - (double)g[i]) <= 2e-3 * largest + 1e-5,
                   "%s: %s of layer %d at %zu: slope %.8f, gradient %.8f", c->what, info.name, layer, i,
                   found, (double)g[i]);
    }
}

static void check_case(const Case *c) {
    GPT2 m;
    make_model(&m, c, GPT2_TRAINING, 1);
    gradients(&m);
    float *direction = malloc(m.param_count * sizeof(float)), *saved = malloc(m.param_count * sizeof(float));
    for (int t = 0; t < NUM_PARAM_TENSORS; t++) {
        TensorInfo info = gpt2_tensor(&c->config, t);
        for (int l = 0; l < (info.scope == LAYER ? c->config.layers : 1); l++)
            check_tensor(&m, c, t, l, direction, saved);
    }
    size_t C = (size_t)c->config.channels, V = (size_t)c->config.vocab, Vp = (size_t)c->config.vocab_padded;
    size_t wpe = gpt2_tensor_offset(&c->config, TENSOR_wpe, 0), wrong = 0;
    for (size_t i = V * C; i < Vp * C; i++) wrong += m.grads[i] != 0;
    for (size_t i = c->T * C; i < (size_t)c->config.context * C; i++) wrong += m.grads[wpe + i] != 0;
    TEST_CHECK(wrong == 0, "%s: %zu gradients of rows that are not used", c->what, wrong);
    free(direction), free(saved);
    gpt2_free(&m);
}

static double distance(const GPT2 *m, const float *a, const double *b) {
    return test_rel_l2(a, b, m->param_count);
}

/* A window as long as the context is no window; a window changes the loss. */
static void test_window(void) {
    Case c = cases[0], wide = c, narrow = c;
    wide.config.window = (int)c.T, narrow.config.window = (int)c.T - 1;
    GPT2 m, w, n;
    make_model(&m, &c, GPT2_TRAINING, 2), make_model(&w, &wide, GPT2_TRAINING, 2),
        make_model(&n, &narrow, GPT2_TRAINING, 2);
    double plain = loss_of(&m), same = loss_of(&w), other = loss_of(&n);
    TEST_CHECK(fabs(plain - same) <= 1e-6, "%.9f, %.9f", plain, same);
    TEST_CHECK(fabs(plain - other) > 1e-6, "%.9f, %.9f", plain, other);
    gpt2_free(&m), gpt2_free(&w), gpt2_free(&n);
}

/* Two half batches, run in a model made for more, add up to the gradient of the whole batch. */
static void test_parts(void) {
    Case c = {"parts", {33, 61, 128, 2, 2, 24, 6}, 4, 17, 30}, large = c;
    large.B = 5, large.T = 33;
    GPT2 whole, parts;
    double loss = 0;
    make_model(&parts, &large, GPT2_TRAINING, 3);
    make_model(&whole, &c, GPT2_TRAINING, 3);
    memcpy(parts.params, whole.params, whole.param_count * sizeof(float));
    gradients(&whole);
    double expected = gpt2_loss_sum(&whole), *reference = malloc(whole.param_count * sizeof *reference);
    for (size_t i = 0; i < whole.param_count; i++) reference[i] = (double)whole.grads[i];

    parts.B = c.B / 2, parts.T = c.T;
    for (size_t half = 0; half < 2; half++) {
        size_t at = half * parts.B * parts.T;
        gpt2_forward(&parts, tokens + at);
        gpt2_loss(&parts, targets + at, 1.0f / (float)(c.B * c.T));
        gpt2_backward(&parts, tokens + at);
        loss += gpt2_loss_sum(&parts);
    }
    TEST_CHECK(fabs(loss - expected) <= 1e-5, "%.9f, %.9f", loss, expected);
    TEST_CHECK(distance(&whole, parts.grads, reference) <= 1e-6, "%.2e",
               distance(&whole, parts.grads, reference));

    /* logits of a row are the same wherever its batch ends */
    float *a = malloc(128 * sizeof *a), *b = malloc(128 * sizeof *b);
    gpt2_forward(&whole, tokens);
    gpt2_read_logits(&whole, 16, 1, a);
    parts.B = 1, parts.T = c.T;
    gpt2_forward(&parts, tokens);
    gpt2_read_logits(&parts, 16, 1, b);
    double most = 0;
    for (int i = 0; i < 61; i++) most = fmax(most, fabs((double)a[i] - (double)b[i]));
    TEST_CHECK(most <= 1e-5, "%.2e", most);
    free(a), free(b), free(reference);
    gpt2_free(&whole), gpt2_free(&parts);
}

/* What the backward computes again has the bits that the forward made. */
static void test_recompute(const Case *c) {
    GPT2 kept, again;
    make_model(&kept, c, GPT2_TRAINING, 5), make_model(&again, c, GPT2_TRAINING_RECOMPUTING, 5);
    gradients(&kept), gradients(&again);
    TEST_CHECK(!memcmp(kept.grads, again.grads, kept.param_count * sizeof *kept.grads), "%s: other bits",
               c->what);
    TEST_CHECK(c->config.layers == 1 || kept.acts_bytes > again.acts_bytes, "%s: %zu bytes, %zu", c->what,
               kept.acts_bytes, again.acts_bytes);
    gpt2_free(&kept), gpt2_free(&again);
}

/* The same bits for any number of threads, and for a second time. */
static void test_bits(void) {
    Error err;
    GPT2 m;
    float *first = NULL;
    make_model(&m, &cases[6], GPT2_TRAINING, 4);
    for (int threads = 1; threads <= 4; threads++) {
        DeviceConfig device = {.threads = threads};
        if (!device_open(&device, &err)) exit(1);
        device_zero(m.grads, m.param_count * sizeof(float));
        gradients(&m);
        if (!first) {
            first = malloc(m.param_count * sizeof(float));
            memcpy(first, m.grads, m.param_count * sizeof(float));
        }
        TEST_CHECK(!memcmp(first, m.grads, m.param_count * sizeof(float)), "%d threads: other bits", threads);
    }
    free(first);
    gpt2_free(&m);
}

int main(void) {
    Error err;
    DeviceConfig device = {0};
    if (!device_open(&device, &err)) {
        printf("%s\n", err.text);
        return 1;
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_case(&cases[i]), test_recompute(&cases[i]);
    test_window();
    test_parts();
    test_bits();
    return test_end("gradients");
}
