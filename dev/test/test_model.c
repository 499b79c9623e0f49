/* test_model.c: what surrounds the walk: layout of the arrays, schedules, AdamW over shards, sampling, generation. */
#include "base/error.h"
#include "model/adamw.h"
#include "model/generate.h"
#include "model/sample.h"
#include "model/schedule.h"
#include "run/outlier.h"
#include "test.h"

static const GPT2Config small = {
    .context = 12, .vocab = 29, .vocab_padded = 128, .layers = 3, .heads = 2, .channels = 10};

static GPT2 make_model(GPT2Config config, size_t B, size_t T, GPT2Mode mode) {
    GPT2 m;
    Error err;
    if (!gpt2_init(&m, &config, B, T, 7, mode, &err)) {
        printf("%s\n", err.text);
        exit(1);
    }
    gpt2_init_weights(&m, 5);
    for (size_t i = 0; i < m.param_count; i++) /* larger, so that the logits differ well */
        m.params[i] *= 8;
    return m;
}

/* Every element of the flat array belongs to exactly one tensor, and the views agree with the offsets. */
static void layout(void) {
    GPT2 m = make_model(small, 2, 6, GPT2_TRAINING);
    size_t total = 0, begin, end, expected = 0;
    unsigned char *owned = calloc(m.param_count, 1);
    for (int t = 0; t < NUM_PARAM_TENSORS; t++) {
        TensorInfo info = gpt2_tensor(&small, t);
        for (int l = 0; l < (info.scope == LAYER ? small.layers : 1); l++) {
            size_t offset = gpt2_tensor_offset(&small, t, l);
            for (size_t i = 0; i < info.rows * info.cols; i++) owned[offset + i]++;
            total += info.rows * info.cols;
        }
    }
    TEST_CHECK(total == m.param_count, "%zu of %zu", total, m.param_count);
    for (size_t i = 0; i < m.param_count; i++)
        TEST_CHECK(owned[i] == 1, "element %zu has %d owners", i, owned[i]);
    for (int l = -1; l < small.layers; l++) {
        gpt2_layer_range(&small, l, &begin, &end);
        TEST_CHECK(begin == expected && end > begin, "layer %d: %zu %zu", l, begin, end);
        expected = end;
    }
    TEST_CHECK(expected == m.param_count, "%zu", expected);
    Params p = gpt2_params(&m, m.params, 2);
    TEST_CHECK(p.fcw == m.params + gpt2_tensor_offset(&small, TENSOR_fcw, 2), "fcw");
    TEST_CHECK(p.lnfb == m.params + gpt2_tensor_offset(&small, TENSOR_lnfb, 0), "lnfb");
    GPT2Config gpt2 = {1024, 50257, 50304, 12, 12, 768, 0};
    TEST_CHECK(gpt2_param_count(&gpt2) == 124475904, "%zu", gpt2_param_count(&gpt2));
    TEST_CHECK(fabs(gpt2_flops_per_token(&gpt2, 1024) -
                    (6 * (12.0 * 12 * 768 * 768 + 50257.0 * 768) + 12.0 * 12 * 768 * 512.5)) < 1,
               "flops");
    free(owned);
    gpt2_free(&m);
}

static void bad_configs(void) {
    Error err;
    GPT2 m;
    GPT2Config c = small;
    c.heads = 3;
    TEST_CHECK(!gpt2_init(&m, &c, 1, 1, 1, GPT2_TRAINING, &err) && strstr(err.text, "heads"), "%s", err.text);
    c = small, c.layers = 0;
    TEST_CHECK(!gpt2_init(&m, &c, 1, 1, 1, GPT2_TRAINING, &err) && strstr(err.text, "layers"), "%s",
               err.text);
    TEST_CHECK(!gpt2_init(&m, &small, 1, 13, 1, GPT2_TRAINING, &err) && strstr(err.text, "context"), "%s",
               err.text);
    TEST_CHECK(!gpt2_init(&m, &small, (size_t)1 << 40, 2, 1, GPT2_TRAINING, &err), "huge batch");
}

static void schedules(void) {
    Schedule s = {SCHEDULE_COSINE, 1.0, 0.1, 0.25, 10, 110};
    const struct {
        ScheduleKind kind;
        int step;
        double value;
    } cases[] = {
        {SCHEDULE_COSINE, 0, 0.1},   {SCHEDULE_COSINE, 9, 1.0},    {SCHEDULE_COSINE, 10, 1.0},
        {SCHEDULE_COSINE, 109, 0.1}, {SCHEDULE_COSINE, 5000, 0.1}, {SCHEDULE_LINEAR, 10, 1.0},
        {SCHEDULE_LINEAR, 109, 0.1}, {SCHEDULE_CONSTANT, 50, 1.0}, {SCHEDULE_CONSTANT, 109, 1.0},
        {SCHEDULE_WSD, 50, 1.0},     {SCHEDULE_WSD, 82, 1.0},      {SCHEDULE_WSD, 109, 0.1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        s.kind = cases[i].kind;
        double value = schedule_learning_rate(&s, cases[i].step);
        TEST_CHECK(fabs(value - cases[i].value) < 1e-12, "kind %d step %d: %g", (int)cases[i].kind,
                   cases[i].step, value);
    }
    Schedule one = {SCHEDULE_COSINE, 1.0, 0.1, 0.25, 0, 1};
    TEST_CHECK(isfinite(schedule_learning_rate(&one, 0)), "one step");
}

static void outliers(void) {
    Outlier o = {0};
    for (int i = 0; i < OUTLIER_WINDOW; i++)
        TEST_CHECK(outlier_score(&o, i % 2) == 0, "before the window is full");
    TEST_CHECK(fabs(outlier_score(&o, 3.0) - 5.0) < 1e-9, "z of 3 among 0s and 1s is (3 - 0.5) / 0.5");
    TEST_CHECK(isinf(outlier_score(&o, NAN)) && o.seen == OUTLIER_WINDOW + 1, "NaN is not taken in");
}

/* One optimizer over everything, or two over uneven shares: the same bits. */
static void adamw_shards(void) {
    AdamWConfig config = {0.9f, 0.95f, 1e-8f, 0.1f, 0};
    GPT2 a = make_model(small, 1, 4, GPT2_TRAINING), b = make_model(small, 1, 4, GPT2_TRAINING);
    size_t n = a.param_count, cuts[] = {0, 17, n / 2 + 3, n};
    Error err;
    AdamW whole, part[2]; /* one of one share, one of two with a hole between them */
    const AdamWRange middle = {cuts[1], cuts[2]}, outer[] = {{cuts[0], cuts[1]}, {cuts[2], cuts[3]}};
    TEST_CHECK(adamw_init(&whole, &config, &(AdamWRange){0, n}, 1, &err), "%s", err.text);
    TEST_CHECK(adamw_init(&part[0], &config, &middle, 1, &err), "%s", err.text);
    TEST_CHECK(adamw_init(&part[1], &config, outer, 2, &err), "%s", err.text);
    for (int step = 0; step < 3; step++) {
        test_fill(a.grads, n, 1.0f, (uint64_t)step + 1);
        memcpy(b.grads, a.grads, n * sizeof(float));
        adamw_update(&whole, &a, 1e-2, 0.5);
        for (int i = 0; i < 2; i++) adamw_update(&part[i], &b, 1e-2, 0.5);
    }
    TEST_CHECK(!memcmp(a.params, b.params, n * sizeof(float)), "shards differ from the whole");
    TEST_CHECK(a.grads[0] == 0 && a.grads[n - 1] == 0, "gradients are left zero");
    adamw_free(&whole);
    for (int i = 0; i < 2; i++) adamw_free(&part[i]);
    gpt2_free(&a);
    gpt2_free(&b);
}

static void sampling(void) {
    enum { V = 6, DRAWS = 20000 };
    const float logits[V] = {0.0f, 1.0f, 2.0f, 2.0f, -1.0f, -INFINITY};
    const struct {
        SampleConfig config;
        double p[V];
    } cases[] = {
        {{0, 0, 1, 1}, {0, 0, 1, 0, 0, 0}},
        {{1, 1, 1, 1}, {0, 0, 1, 0, 0, 0}},
        {{1, 2, 1, 1}, {0, 0, 0.5, 0.5, 0, 0}},
        {{1, 0, 0.5, 1}, {0, 0, 0.5, 0.5, 0, 0}},
        {{1, 3, 1, 1}, {0, 0.1554, 0.4223, 0.4223, 0, 0}},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        int counts[V] = {0};
        for (uint64_t i = 0; i < DRAWS; i++) {
            float copy[V];
            memcpy(copy, logits, sizeof copy);
            int token = sample_token(copy, V, &cases[c].config, i);
            TEST_CHECK(token >= 0 && token < V, "%d", token);
            counts[token]++;
        }
        for (int v = 0; v < V; v++)
            TEST_CHECK(fabs((double)counts[v] / DRAWS - cases[c].p[v]) < 0.02,
                       "case %zu token %d: %g, not %g", c, v, (double)counts[v] / DRAWS, cases[c].p[v]);
    }
    float nans[V] = {NAN, NAN, NAN, NAN, NAN, NAN};
    TEST_CHECK(sample_token(nans, V, &cases[2].config, 0) == 0, "NaN");
}

/* The cache gives the logits of the whole forward, windowed or not, and past the end of the context. */
static void generation(int window, WeightType type, double bound) {
    GPT2Config config = small;
    config.window = window;
    enum { TOKENS = 31 };
    GPT2 m = make_model(config, 1, (size_t)config.context, GPT2_INFERENCE);
    Generator g;
    Error err;
    TEST_CHECK(generator_init(&g, &m, type, &err), "%s", err.text);
    int32_t tokens[TOKENS];
    int length = 0;
    for (int i = 0; i < TOKENS; i++) {
        int32_t token = (int32_t)(rng_uniform(2, RNG_STREAM(RNG_TEST, 1), (uint64_t)i) * config.vocab);
        if (length == config.context) {
            memmove(tokens, tokens + config.context - config.context / 2,
                    (size_t)(config.context / 2) * sizeof *tokens);
            length = config.context / 2;
        }
        tokens[length++] = token;
        m.T = (size_t)length;
        gpt2_forward(&m, tokens);
        float expected[128];
        double wide[128];
        gpt2_read_logits(&m, (size_t)length - 1, 1, expected);
        for (int v = 0; v < config.vocab; v++) wide[v] = expected[v];
        double error = test_rel_l2(generator_step(&g, token), wide, (size_t)config.vocab);
        TEST_CHECK(error < bound, "window %d, type %d, token %d: %g", window, (int)type, i, error);
    }
    generator_free(&g);
    gpt2_free(&m);
}

int main(void) {
    Error err;
    DeviceConfig device = {2, PRECISION_FP32, "auto"};
    if (!device_open(&device, &err)) {
        printf("%s\n", err.text);
        return 1;
    }
    layout();
    bad_configs();
    schedules();
    outliers();
    adamw_shards();
    sampling();
    for (int window = 0; window <= 5; window += 5) {
        generation(window, WEIGHT_FP32, 1e-5);
        generation(window, WEIGHT_BF16, 5e-2);
        generation(window, WEIGHT_INT8, 0.15);
    }
    return test_end("model");
}
