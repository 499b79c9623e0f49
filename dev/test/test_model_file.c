/* test_model_file.c: llm.c's model files: what is written reads back, laid out as llm.c expects; what is
 * damaged is refused in one line; fuzzed by fuzz_model_file.c. */
#define _XOPEN_SOURCE 700
#include "base/file.h"
#include "fuzz_model_file.c"
#include "run/checkpoint.h"
#include "test.h"

static const GPT2Config shape = {
    .context = 7, .vocab = 131, .vocab_padded = 256, .layers = 3, .heads = 3, .channels = 12, .window = 4};

static GPT2 make_model(const GPT2Config *config, uint64_t seed) {
    GPT2 m;
    Error err;
    CHECK(gpt2_init(&m, config, 1, 1, 1, GPT2_INFERENCE, &err));
    test_fill(m.params, m.param_count, 1, seed);
    memset(m.params + gpt2_tensor_offset(config, TENSOR_wte, 0) + config->vocab * config->channels, 0,
           (size_t)((config->vocab_padded - config->vocab) * config->channels) * sizeof(float));
    return m;
}

/* Opens and loads the file into a model whose memory is full of NaN; *m is zero on failure. */
static bool read_model(const char *path, GPT2 *m, GPT2Config *config, Error *err) {
    ModelSource source;
    *m = (GPT2){0};
    if (!model_source_open(&source, path, err)) return false;
    *config = source.config;
    CHECK(gpt2_init(m, config, 1, 1, 1, GPT2_INFERENCE, err));
    test_poison(m->params, m->param_count * sizeof(float));
    bool ok = model_source_load(&source, m, err);
    model_source_close(&source);
    return ok;
}

static void test_numbers(void) {
    int wrong = 0;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        int sign = bits >> 15 ? -1 : 1, exponent = bits >> 10 & 31, mantissa = bits & 1023;
        double expected = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
        float x = tensor_float_from_f16((uint16_t)bits);
        if (exponent == 31)
            wrong += mantissa ? !isnan(x) : x != (float)sign * INFINITY;
        else
            wrong += (double)x != sign * expected || !signbit(x) != (sign > 0);
        float y = tensor_float_from_bf16((uint16_t)bits);
        uint16_t again = tensor_bf16_from_float(y);
        wrong += isnan(y) ? !isnan(tensor_float_from_bf16(again)) : again != bits;
    }
    TEST_CHECK(wrong == 0, "%d of 65536", wrong);
    for (uint64_t i = 0; i < 100000; i++) { /* nearest, ties to even: no neighbour is nearer */
        float x = (float)(rng_normal(1, RNG_STREAM(RNG_TEST, 3), i));
        uint16_t b = tensor_bf16_from_float(x);
        double here = fabs((double)tensor_float_from_bf16(b) - (double)x);
        double up = fabs((double)tensor_float_from_bf16((uint16_t)(b + 1)) - (double)x);
        double down = fabs((double)tensor_float_from_bf16((uint16_t)(b - 1)) - (double)x);
        wrong += here > up || here > down || ((here == up || here == down) && b % 2);
    }
    TEST_CHECK(wrong == 0, "%d of 100000", wrong);
    TEST_CHECK(tensor_bf16_from_float(1.00390625f) == 0x3f80 && tensor_bf16_from_float(1.01171875f) == 0x3f82,
               "ties");
}

static void test_round_trip(void) {
    Error err;
    GPT2 m = make_model(&shape, 1), n;
    GPT2Config config;
    TestPath path = test_path("model.bin"), again = test_path("again.bin");
    TEST_CHECK(model_file_write(path.path, &m, TENSOR_F32, &err), "%s", err.text);
    TEST_CHECK(read_model(path.path, &n, &config, &err), "%s", err.text);
    GPT2Config expected = shape;
    expected.window = 0;
    TEST_CHECK(!memcmp(&config, &expected, sizeof config), "the configuration differs");
    TEST_CHECK(!memcmp(m.params, n.params, m.param_count * sizeof(float)), "the weights differ");
    gpt2_free(&n);

    TEST_CHECK(model_file_write(path.path, &m, TENSOR_BF16, &err), "%s", err.text);
    TEST_CHECK(read_model(path.path, &n, &config, &err), "%s", err.text);
    size_t wrong = 0, bytes, bytes_again;
    for (size_t i = 0; i < m.param_count; i++)
        wrong += n.params[i] != tensor_float_from_bf16(tensor_bf16_from_float(m.params[i]));
    TEST_CHECK(!wrong, "%zu of %zu", wrong, m.param_count);
    TEST_CHECK(model_file_write(again.path, &n, TENSOR_BF16, &err), "%s", err.text);
    uint8_t *a = test_file_read(path.path, &bytes), *b = test_file_read(again.path, &bytes_again);
    TEST_CHECK(bytes == bytes_again && !memcmp(a, b, bytes), "bf16 written again differs");
    free(a), free(b);
    gpt2_free(&n), gpt2_free(&m);
}

/* llm.c: every tensor with all its layers together, after 1,024 bytes of header. */
static void test_layout(void) {
    Error err;
    GPT2 m = make_model(&shape, 2);
    TestPath path = test_path("model.bin");
    TEST_CHECK(model_file_write(path.path, &m, TENSOR_F32, &err), "%s", err.text);
    size_t bytes, C = 12, L = 3;
    uint8_t *data = test_file_read(path.path, &bytes);
    int32_t *header = (void *)data;
    const int32_t expected[] = {20240326, 3, 7, 131, 3, 3, 12, 256};
    TEST_CHECK(!memcmp(header, expected, sizeof expected), "header");
    for (int i = 8; i < 256; i++) TEST_CHECK(header[i] == 0, "header[%d] = %d", i, header[i]);
    float *file = (void *)(data + 1024);
    size_t ln1b = (256 + 7) * C + L * C, qkvw = ln1b + L * C;
    TEST_CHECK(bytes == 1024 + 4 * m.param_count, "%zu bytes", bytes);
    TEST_CHECK(file[130 * C + 5] == m.params[130 * C + 5], "wte");
    TEST_CHECK(file[ln1b + 2 * C + 3] == m.params[gpt2_tensor_offset(&shape, TENSOR_ln1b, 2) + 3],
               "ln1b of layer 2");
    TEST_CHECK(file[qkvw + 3 * C * C + 40] == m.params[gpt2_tensor_offset(&shape, TENSOR_qkvw, 1) + 40],
               "qkvw of layer 1");
    TEST_CHECK(file[m.param_count - 1] == m.params[gpt2_tensor_offset(&shape, TENSOR_lnfb, 0) + C - 1],
               "lnfb");
    free(data);
    gpt2_free(&m);
}

/* A file may pad its vocabulary otherwise, with anything in the padding. */
static void test_padding(void) {
    Error err;
    GPT2Config config;
    GPT2 m = make_model(&shape, 3), n;
    TestPath path = test_path("model.bin");
    TEST_CHECK(model_file_write(path.path, &m, TENSOR_F32, &err), "%s", err.text);
    size_t bytes, row = 12 * sizeof(float);
    uint8_t *data = test_file_read(path.path, &bytes);
    const int padded[] = {131, 132, 200, 256};
    for (size_t i = 0; i < sizeof padded / sizeof *padded; i++) {
        uint8_t *other = malloc(bytes);
        size_t head = 1024 + (size_t)padded[i] * row, tail = bytes - 1024 - 256 * row;
        memcpy(other, data, 1024);
        test_poison(other + 1024, head - 1024);
        memcpy(other + 1024, data + 1024, 131 * row);
        memcpy(other + head, data + 1024 + 256 * row, tail);
        ((int32_t *)(void *)other)[7] = padded[i];
        test_file_write(path.path, other, head + tail);
        bool ok = read_model(path.path, &n, &config, &err);
        TEST_CHECK(ok, "%d: %s", padded[i], err.text);
        TEST_CHECK(ok && !memcmp(n.params, m.params, m.param_count * sizeof(float)), "padded to %d",
                   padded[i]);
        gpt2_free(&n);
        free(other);
    }
    free(data);
    gpt2_free(&m);
}

static void refuse(const char *path, const char *reason) {
    Error err = {""};
    ModelSource source;
    bool opened = model_source_open(&source, path, &err);
    TEST_CHECK(!opened && strstr(err.text, reason) && !strchr(err.text, '\n'), "'%s' lacks '%s'", err.text,
               reason);
    if (opened) model_source_close(&source);
}

static void test_damage(void) {
    Error err;
    GPT2 m = make_model(&shape, 4);
    TestPath path = test_path("model.bin");
    TEST_CHECK(model_file_write(path.path, &m, TENSOR_BF16, &err), "%s", err.text);
    size_t bytes;
    uint8_t *data = test_file_read(path.path, &bytes);
    for (size_t cut = 0; cut < bytes; cut += cut < 1100 ? 1 : 977) {
        test_file_write(path.path, data, cut);
        refuse(path.path, cut < 8 ? "not a model file" : cut < 1024 ? "too early" : "truncated");
    }
    data = realloc(data, bytes + 1);
    data[bytes] = 0;
    test_file_write(path.path, data, bytes + 1);
    refuse(path.path, "header is damaged");
    int32_t *header = (void *)data;
    const int32_t wild[] = {0, -1, 1, 2147483647, -2147483647 - 1, 1 << 20, 65537};
    for (int i = 0; i < 8; i++) {
        for (size_t w = 0; w < sizeof wild / sizeof *wild; w++) {
            int32_t saved = header[i];
            header[i] = wild[w];
            test_file_write(path.path, data, bytes);
            bool possible = wild[w] == 1 && (i == 3 || i == 5); /* one id, or one head: the same bytes */
            if (!possible) refuse(path.path, "");
            header[i] = saved;
        }
    }
    header[1] = 1;
    test_file_write(path.path, data, bytes);
    refuse(path.path, "version 1");
    header[1] = 5;
    data[bytes - 100] = 0x80, data[bytes - 99] = 0x7f; /* an infinity */
    test_file_write(path.path, data, bytes);
    GPT2 n;
    GPT2Config config;
    TEST_CHECK(!read_model(path.path, &n, &config, &err) && strstr(err.text, "not a finite"), "%s", err.text);
    gpt2_free(&n);
    free(data);
    gpt2_free(&m);
    refuse(test_path("nowhere.bin").path, "cannot open");
    refuse(test_path("").path, "no model in this folder");
    refuse("/dev/zero", "not an ordinary file");
    test_file_write(path.path, "once upon a time there was a text", 33);
    refuse(path.path, "not a model file");
}

/* Saves a model as training does, as the checkpoint of a step. */
static void save_checkpoint(const char *run, const GPT2 *m, const GPT2Config *config, uint64_t step) {
    static TensorView views[256];
    char staging[FILE_PATH_BYTES];
    size_t count = 0;
    Error err;
    Ckpt *ckpt;
    for (int t = 0; t < NUM_PARAM_TENSORS; t++)
        for (int l = 0; l < (gpt2_tensor(&m->config, t).scope == MODEL ? 1 : m->config.layers); l++) {
            TensorInfo info = gpt2_tensor(&m->config, t);
            TensorView *v = &views[count++];
            *v = (TensorView){.type = CKPT_FP32,
                              .dims = 2,
                              .shape = {info.rows, info.cols},
                              .end = info.rows * info.cols,
                              .data = m->params + gpt2_tensor_offset(&m->config, t, l)};
            checkpoint_tensor_name(v->name, "params", &info, l);
        }
    TensorView *v = &views[count++];
    *v = (TensorView){.name = "state/config",
                      .type = CKPT_UINT8,
                      .dims = 1,
                      .shape = {sizeof *config},
                      .end = sizeof *config,
                      .data = config,
                      .copied = true};
    TEST_CHECK(file_join(staging, run, CHECKPOINT_FOLDER, &err) && file_make_directory(staging, &err), "%s",
               err.text);
    const CkptConfig c = {.directory = staging,
                          .node = "here",
                          .io = "plain",
                          .size = 1,
                          .node_first = true,
                          .attempt = (uint32_t)step,
                          .payload_bytes = m->param_count * sizeof(float) + sizeof *config,
                          .views_max = (int)count,
                          .keep = 2};
    bool ok = ckpt_open(&ckpt, &c, &err) && ckpt_begin(ckpt, step, views, count, &err);
    TEST_CHECK(ok, "%s", err.text);
    TEST_CHECK(ckpt_wait(ckpt, 60), "step %d is not durable", (int)step);
    ckpt_commit(ckpt, step, false);
    ckpt_wait(ckpt, 60);
    ckpt_close(ckpt);
}

/* The model in a run's folder, as training saves it: the newest checkpoint that can be used. */
static void test_run_folder(void) {
    Error err;
    GPT2Config config = shape;
    GPT2 m = make_model(&shape, 5), newer = make_model(&shape, 7), n;
    TestPath run = test_path("run");
    save_checkpoint(run.path, &m, &shape, 1);
    bool ok = read_model(run.path, &n, &config, &err);
    TEST_CHECK(ok, "%s", err.text);
    TEST_CHECK(ok && !memcmp(&config, &shape, sizeof config),
               "the configuration differs, or the window is lost");
    TEST_CHECK(ok && !memcmp(n.params, m.params, m.param_count * sizeof(float)), "the weights differ");
    if (ok) gpt2_free(&n);
    save_checkpoint(run.path, &newer, &shape, 2);
    ok = read_model(run.path, &n, &config, &err);
    TEST_CHECK(ok && !memcmp(n.params, newer.params, m.param_count * sizeof(float)), "not the newest");
    if (ok) gpt2_free(&n);
    config.layers = -3; /* a checkpoint that nobody could have written is passed over */
    save_checkpoint(run.path, &m, &config, 3);
    ok = read_model(run.path, &n, &config, &err);
    TEST_CHECK(ok && !memcmp(n.params, newer.params, m.param_count * sizeof(float)), "not the newest usable");
    if (ok) gpt2_free(&n);
    gpt2_free(&m);
    gpt2_free(&newer);
}

static void test_fuzz(void) {
    Error err;
    GPT2 m = make_model(&shape, 6);
    TestPath path = test_path("model.bin");
    size_t bytes;
    int loaded = 0;
    TEST_CHECK(model_file_write(path.path, &m, TENSOR_BF16, &err), "%s", err.text);
    uint8_t *data = test_file_read(path.path, &bytes), *copy = malloc(bytes);
    for (uint64_t round = 0; round < 1000; round++) {
        memcpy(copy, data, bytes);
        loaded += LLVMFuzzerTestOneInput(copy, test_mutate(copy, bytes, round % 2 ? 40 : 2000, round));
    }
    TEST_CHECK(loaded > 0 && loaded < 1000, "%d of 1000 loaded", loaded);
    free(data), free(copy);
    gpt2_free(&m);
}

int main(void) {
    test_folder_open();
    test_numbers();
    test_round_trip();
    test_layout();
    test_padding();
    test_damage();
    test_run_folder();
    test_fuzz();
    test_folder_close();
    return test_end("model_file");
}
