/* test_safetensors.c: Hugging Face's files: what is written reads back, the variants that others write are
 * read, what is damaged or is no GPT-2 is refused in one line; fuzzed by fuzz_model_file.c. */
#define _XOPEN_SOURCE 700
#include "base/json.h"
#include "fuzz_model_file.c"
#include "run/safetensors.h"
#include "test.h"

static const GPT2Config shape = {
    .context = 7, .vocab = 131, .vocab_padded = 256, .layers = 2, .heads = 3, .channels = 12, .window = 4};

/* A safetensors file in memory, its header a string without blanks. */
typedef struct {
    char *header;
    size_t header_bytes; /* in the file that it was read from */
    uint8_t *data;
    size_t bytes; /* of data */
} File;

static void remove_blanks(char *text) {
    char *out = text;
    for (; *text; text++)
        if (*text != ' ') *out++ = *text;
    *out = 0;
}

static void file_free(File *f) {
    free(f->header), free(f->data);
}

static File file_read_parts(const char *path) {
    File f;
    size_t bytes;
    uint64_t length;
    uint8_t *all = test_file_read(path, &bytes);
    CHECK(all != NULL);
    memcpy(&length, all, 8);
    f.header = calloc(1, length + 1), f.bytes = bytes - 8 - length, f.data = malloc(f.bytes + 1);
    memcpy(f.header, all + 8, length), memcpy(f.data, all + 8 + length, f.bytes);
    free(all);
    remove_blanks(f.header);
    f.header_bytes = length;
    return f;
}

static void file_write_parts(const char *path, const File *f) {
    uint64_t length = strlen(f->header);
    uint8_t *all = malloc(8 + length + f->bytes);
    memcpy(all, &length, 8), memcpy(all + 8, f->header, length), memcpy(all + 8 + length, f->data, f->bytes);
    test_file_write(path, all, 8 + length + f->bytes);
    free(all);
}

/* text with every `from` replaced by `to`; free() it. */
static char *replace(const char *text, const char *from, const char *to) {
    char *out = calloc(1, 4 * strlen(text) + strlen(to) + 1), *at = out;
    for (const char *hit; (hit = strstr(text, from)); text = hit + strlen(from))
        at += sprintf(at, "%.*s%s", (int)(hit - text), text, to);
    strcpy(at, text);
    return out;
}

static GPT2 make_model(uint64_t seed) {
    GPT2 m;
    Error err;
    CHECK(gpt2_init(&m, &shape, 1, 1, 1, GPT2_INFERENCE, &err));
    test_fill(m.params, m.param_count, 1, seed);
    memset(m.params + 131 * 12, 0, (256 - 131) * 12 * sizeof(float));
    return m;
}

/* NULL, or free() them: the weights of the model at path, when its configuration is as expected. */
static float *load(const char *path, int window, Error *err) {
    ModelSource source;
    GPT2 m;
    GPT2Config expected = shape;
    expected.window = window;
    if (!model_source_open(&source, path, err)) return NULL;
    if (memcmp(&source.config, &expected, sizeof expected) != 0) {
        model_source_close(&source);
        error_set(err, "another configuration");
        return NULL;
    }
    CHECK(gpt2_init(&m, &expected, 1, 1, 1, GPT2_INFERENCE, err));
    test_poison(m.params, m.param_count * sizeof(float));
    float *out = NULL;
    if (model_source_load(&source, &m, err)) {
        out = malloc(m.param_count * sizeof(float));
        memcpy(out, m.params, m.param_count * sizeof(float));
    }
    gpt2_free(&m);
    model_source_close(&source);
    return out;
}

static void expect(const char *path, int window, const GPT2 *m, const char *what) {
    Error err = {""};
    float *weights = load(path, window, &err);
    TEST_CHECK(weights != NULL, "%s: %s", what, err.text);
    TEST_CHECK(weights && !memcmp(weights, m->params, m->param_count * sizeof(float)), "%s: other weights",
               what);
    free(weights);
}

static void refuse(const char *path, const char *reason, const char *what) {
    Error err = {""};
    ModelSource source;
    bool opened = model_source_open(&source, path, &err);
    TEST_CHECK(!opened && strstr(err.text, reason) && !strchr(err.text, '\n'), "%s: '%s' lacks '%s'", what,
               err.text, reason);
    if (opened) model_source_close(&source);
}

static void write_model(const char *path, const GPT2 *m, TensorType type) {
    Error err;
    bool ok = safetensors_write(path, m, type, &err);
    TEST_CHECK(ok, "%s", err.text);
}

static void test_round_trip(void) {
    GPT2 m = make_model(1), rounded = make_model(1);
    for (size_t i = 0; i < m.param_count; i++)
        rounded.params[i] = tensor_float_from_bf16(tensor_bf16_from_float(m.params[i]));
    TestPath folder = test_path("hf"), file = test_path("alone.safetensors"),
             inside = test_path("hf/model.safetensors");
    write_model(folder.path, &m, TENSOR_F32);
    expect(folder.path, 4, &m, "folder");
    expect(inside.path, 4, &m, "file in its folder");
    write_model(file.path, &m, TENSOR_F32);
    expect(file.path, 4, &m, "file alone: heads and window stand in it");
    write_model(folder.path, &m, TENSOR_BF16);
    expect(folder.path, 4, &rounded, "bf16");
    unlink(test_path("hf/config.json").path);
    expect(folder.path, 4, &rounded, "folder without config.json");
    gpt2_free(&m), gpt2_free(&rounded);
}

/* Shapes and orientation as Hugging Face has them, by hand. */
static void test_layout(void) {
    GPT2 m = make_model(2);
    TestPath path = test_path("alone.safetensors");
    JsonDocument d = {0};
    Error err;
    write_model(path.path, &m, TENSOR_F32);
    File f = file_read_parts(path.path);
    TEST_CHECK(f.header_bytes % 8 == 0, "header of %zu bytes", f.header_bytes);
    TEST_CHECK(json_parse(&d, f.header, strlen(f.header), &err), "%s", err.text);
    const JsonNode *n = json_get(&d, &d.nodes[0], "transformer.h.1.mlp.c_fc.weight");
    TEST_CHECK(n != NULL, "no c_fc");
    const JsonNode *dims = json_get(&d, n, "shape"), *first = json_first(&d, dims);
    TEST_CHECK(first->integer == 12 && json_next(&d, dims, first)->integer == 48, "Conv1D is (in, out)");
    size_t begin = (size_t)json_first(&d, json_get(&d, n, "data_offsets"))->integer;
    float *stored = (void *)(f.data + begin), *ours = m.params + gpt2_tensor_offset(&shape, TENSOR_fcw, 1);
    int wrong = 0;
    for (int in = 0; in < 12; in++)
        for (int out = 0; out < 48; out++) wrong += stored[in * 48 + out] != ours[out * 12 + in];
    TEST_CHECK(wrong == 0, "%d of 576", wrong);
    n = json_get(&d, &d.nodes[0], "transformer.wte.weight");
    TEST_CHECK(n && json_first(&d, json_get(&d, n, "shape"))->integer == 131, "wte has V rows");
    json_free(&d);
    file_free(&f);
    gpt2_free(&m);
}

/* Appends a tensor of `bytes` bytes to the file. */
static void append(File *f, const char *description, const void *data, size_t bytes) {
    char entry[512], *brace = strrchr(f->header, '}');
    snprintf(entry, sizeof entry, "%s,\"data_offsets\":[%zu,%zu]}}", description, f->bytes, f->bytes + bytes);
    *brace = 0;
    char *longer = malloc(strlen(f->header) + strlen(entry) + 1);
    sprintf(longer, "%s%s", f->header, entry);
    free(f->header);
    f->header = longer;
    f->data = realloc(f->data, f->bytes + bytes);
    memcpy(f->data + f->bytes, data, bytes);
    f->bytes += bytes;
}

static void test_variants(void) {
    GPT2 m = make_model(3), half = make_model(3);
    TestPath path = test_path("alone.safetensors");
    write_model(path.path, &m, TENSOR_F32);
    File f = file_read_parts(path.path);
    char *original = f.header;
    f.header = replace(original, "transformer.", "");
    file_write_parts(path.path, &f);
    expect(path.path, 4, &m, "names without their prefix");
    append(&f, ",\"h.0.attn.bias\":{\"dtype\":\"U8\",\"shape\":[1,1,7,7]", original, 49);
    append(&f, ",\"h.1.attn.masked_bias\":{\"dtype\":\"F9_QUITE_NEW\",\"shape\":[]", original, 4);
    file_write_parts(path.path, &f);
    expect(path.path, 4, &m, "the causal mask of old files");
    append(&f, ",\"lm_head.weight\":{\"dtype\":\"F32\",\"shape\":[131,12]", m.params, 131 * 12 * 4);
    file_write_parts(path.path, &f);
    expect(path.path, 4, &m, "a tied head");
    f.data[f.bytes - 5] ^= 64;
    file_write_parts(path.path, &f);
    refuse(path.path, "a head of its own", "another head");
    free(f.header);

    f.header = replace(original, "\"toroid_heads\":\"3\",\"toroid_window\":\"4\"", "\"x\":\"y\"");
    CHECK(strcmp(f.header, original) != 0);
    free(f.data);
    free(original);
    write_model(path.path, &m, TENSOR_F32);
    File whole = file_read_parts(path.path);
    f.data = whole.data, f.bytes = whole.bytes;
    free(whole.header);
    file_write_parts(path.path, &f);
    refuse(path.path, "how many heads", "nobody says how many heads");
    file_free(&f);

    write_model(path.path, &m, TENSOR_BF16);
    f = file_read_parts(path.path);
    original = f.header;
    f.header = replace(original, "BF16", "F16");
    file_write_parts(path.path, &f);
    for (size_t i = 0; i < m.param_count; i++)
        half.params[i] = tensor_float_from_f16(tensor_bf16_from_float(m.params[i]));
    expect(path.path, 4, &half, "F16");
    free(original);
    file_free(&f);
    gpt2_free(&m), gpt2_free(&half);
}

static void test_damage(void) {
    static const struct {
        const char *from, *to, *reason;
    } changes[] = {
        {"{\"__", "{[\"__", "not a JSON object"},
        {"wte.weight", "wxe.weight", "no such tensor"},
        {"h.1.ln_1.bias", "h.01.ln_1.bias", "no such tensor"},
        {"h.1.ln_1.bias", "h.4096.ln_1.bias", "no such tensor"},
        {"h.1.ln_1.bias", "h.2.ln_1.bias", "is missing"},
        {"h.1.ln_1.bias", "h.1.ln_1.weight", "there twice"},
        {"h.1.ln_1.bias", "h.1.ln_2.bias", "there twice"},
        {"\"F32\",\"shape\":[131,12]", "\"F32\",\"shape\":[12,131]", "do not divide"},
        {"\"shape\":[131,12]", "\"shape\":[131,12,1]", "no proper wte"},
        {"\"shape\":[131,12]", "\"shape\":[131,13]", "do not fit its shape"},
        {"\"shape\":[131,12]", "\"shape\":[-131,-12]", "no proper shape"},
        {"\"shape\":[131,12]", "\"shape\":[131.5,12]", "no proper shape"},
        {"\"shape\":[131,12]", "\"shape\":[4611686018427387904,4611686018427387904]", "no proper shape"},
        {"\"shape\":[131,12]", "\"shape\":7", "no proper shape"},
        {"\"shape\":[12]", "\"shape\":[12,1]", "not the shape"},
        {"\"shape\":[48]", "\"shape\":[4,12]", "not the shape"},
        {"F32", "F64", "do not fit its shape"},
        {"F32", "I32", "none of F32"},
        {"\"F32\"", "32", "has no dtype"},
        {"\"data_offsets\":[0,", "\"data_offsets\":[4,", "do not fit its shape"},
        {"\"data_offsets\":[0,6288]", "\"data_offsets\":[6288,12576]", "overlap or leave a gap"},
        {"\"data_offsets\":[0,6288]", "\"data_offsets\":[6288,0]", "do not lie in the file"},
        {"\"data_offsets\":[0,6288]", "\"data_offsets\":[0]", "do not lie in the file"},
        {"\"data_offsets\":[0,6288]", "\"data_offsets\":[99999999999,99999999999]", "do not lie in the file"},
        {"\"toroid_heads\":\"3\"", "\"toroid_heads\":\"5\"", "do not divide"},
    };
    GPT2 m = make_model(4);
    TestPath path = test_path("alone.safetensors");
    write_model(path.path, &m, TENSOR_F32);
    File f = file_read_parts(path.path);
    char *original = f.header;
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        f.header = replace(original, changes[i].from, changes[i].to);
        TEST_CHECK(strcmp(f.header, original) != 0, "%s is not in the header", changes[i].from);
        file_write_parts(path.path, &f);
        refuse(path.path, changes[i].reason, changes[i].to);
        free(f.header);
    }
    f.header = original;
    f.bytes -= 4;
    file_write_parts(path.path, &f);
    refuse(path.path, "truncated", "cut off");
    f.bytes += 4;
    f.data = realloc(f.data, f.bytes + 4);
    f.bytes += 4;
    file_write_parts(path.path, &f);
    refuse(path.path, "its tensors end at", "bytes behind");
    test_file_write(path.path, "\xff\xff\xff\xff\0\0\0\0{}", 10);
    refuse(path.path, "not a model file", "a header of 4 GB");
    test_file_write(path.path, "\xff\xff\0\0\0\0\0\0{}", 10);
    refuse(path.path, "cut off", "a header behind the end");
    test_file_write(path.path, "\2\0\0\0\0\0\0\0{}", 10);
    refuse(path.path, "not a GPT-2", "an empty file");
    file_free(&f);
    gpt2_free(&m);
}

static void test_config(void) {
    static const struct {
        const char *from, *to, *reason; /* NULL: is read */
    } changes[] = {
        {"{", "", "not JSON"},
        {"\"gpt2\"", "\"llama\"", "model_type"},
        {"gelu_new", "relu", "activation_function"},
        {"1e-05", "1e-6", "layer_norm_epsilon"},
        {"\"n_inner\":null", "\"n_inner\":24", "n_inner"},
        {"\"n_inner\":null", "\"n_inner\":48", NULL},
        {"\"n_inner\":null", "\"scale_attn_by_inverse_layer_idx\":true", "scale_attn_by_inverse_layer_idx"},
        {"\"vocab_size\":131", "\"vocab_size\":132", "vocab_size"},
        {"\"n_head\":3", "\"n_head\":4", "n_head"},
        {"\"n_head\":3", "\"n_head\":null", NULL},
        {"\"n_head\":3", "\"n_head\":\"three\"", "n_head"},
        {",\"toroid_window\":4", "", NULL},
        {"\"toroid_window\":4", "\"toroid_window\":-4", "toroid_window"},
    };
    GPT2 m = make_model(5);
    TestPath folder = test_path("configs"), path = test_path("configs/config.json");
    write_model(folder.path, &m, TENSOR_F32);
    size_t bytes;
    uint8_t *read = test_file_read(path.path, &bytes);
    read[bytes] = 0;
    char *original = replace((char *)read, "x", "x");
    remove_blanks(original);
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        char *text = replace(original, changes[i].from, changes[i].to);
        TEST_CHECK(strcmp(text, original) != 0, "%s is not in config.json", changes[i].from);
        test_file_write(path.path, text, strlen(text));
        if (changes[i].reason)
            refuse(folder.path, changes[i].reason, changes[i].to);
        else
            expect(folder.path, 4, &m, changes[i].to);
        free(text);
    }
    uint8_t *copy = malloc(bytes);
    Error err;
    int opened = 0;
    for (uint64_t round = 0; round < 1000; round++) {
        ModelSource source;
        memcpy(copy, read, bytes);
        test_file_write(path.path, copy, test_mutate(copy, bytes, bytes, round));
        if (!model_source_open(&source, folder.path, &err)) {
            CHECK(!strchr(err.text, '\n'));
            continue;
        }
        opened++;
        model_source_close(&source);
    }
    TEST_CHECK(opened > 0 && opened < 1000, "%d of 1000 opened", opened);
    free(copy), free(original), free(read);
    gpt2_free(&m);
}

/* The tensors dealt out to three files, and their index. */
static void test_shards(void) {
    enum { SHARDS = 3 };
    GPT2 m = make_model(6);
    TestPath folder = test_path("shards"), whole = test_path("shards/model.safetensors");
    TestPath index_path = test_path("shards/model.safetensors.index.json");
    write_model(folder.path, &m, TENSOR_F32);
    File f = file_read_parts(whole.path), shards[SHARDS];
    char names[SHARDS][64], *index = calloc(1, 100000), *at = index;
    JsonDocument d = {0};
    Error err;
    CHECK(json_parse(&d, f.header, strlen(f.header), &err));
    for (int i = 0; i < SHARDS; i++) {
        shards[i] = (File){calloc(1, 100000), 0, NULL, 0};
        strcpy(shards[i].header, "{\"__metadata__\":{\"format\":\"pt\"}}");
        snprintf(names[i], sizeof names[i], "model-%05d-of-%05d.safetensors", i + 1, SHARDS);
    }
    at += sprintf(at, "{\"metadata\":{\"total_size\":%zu},\"weight_map\":{", f.bytes);
    int k = 0;
    for (const JsonNode *n = json_first(&d, &d.nodes[0]); n; n = json_next(&d, &d.nodes[0], n)) {
        if (!strcmp(n->key, "__metadata__")) continue;
        char text[400], dims[64] = "";
        const JsonNode *s = json_get(&d, n, "shape"), *o = json_first(&d, json_get(&d, n, "data_offsets"));
        size_t begin = (size_t)o->integer,
               end = (size_t)json_next(&d, json_get(&d, n, "data_offsets"), o)->integer;
        for (const JsonNode *v = json_first(&d, s); v; v = json_next(&d, s, v))
            sprintf(dims + strlen(dims), "%s%d", *dims ? "," : "", (int)v->integer);
        snprintf(text, sizeof text, ",\"%s\":{\"dtype\":\"F32\",\"shape\":[%s]", n->key, dims);
        append(&shards[k % SHARDS], text, f.data + begin, end - begin);
        at += sprintf(at, "%s\"%s\":\"%s\"", k ? "," : "", n->key, names[k % SHARDS]);
        k++;
    }
    strcpy(at, "}}");
    unlink(whole.path);
    char path[1024];
    for (int i = 0; i < SHARDS; i++) {
        snprintf(path, sizeof path, "%s/%s", folder.path, names[i]);
        file_write_parts(path, &shards[i]);
        file_free(&shards[i]);
    }
    test_file_write(index_path.path, index, strlen(index));
    expect(folder.path, 4, &m, "shards");
    unlink(path);
    refuse(folder.path, "cannot open", "a shard is missing");
    char *outside = replace(index, names[0], "../model.safetensors");
    test_file_write(index_path.path, outside, strlen(outside));
    refuse(folder.path, "not in this folder", "a shard elsewhere");
    test_file_write(index_path.path, "{}", 2);
    refuse(folder.path, "no weight_map", "an empty index");
    free(outside), free(index);
    json_free(&d);
    file_free(&f);
    gpt2_free(&m);
}

static void test_fuzz(void) {
    GPT2 m = make_model(7);
    TestPath path = test_path("alone.safetensors");
    size_t bytes;
    uint64_t header;
    int loaded = 0;
    write_model(path.path, &m, TENSOR_BF16);
    uint8_t *data = test_file_read(path.path, &bytes), *copy = malloc(bytes);
    memcpy(&header, data, 8);
    for (uint64_t round = 0; round < 1000; round++) {
        memcpy(copy, data, bytes);
        loaded +=
            LLVMFuzzerTestOneInput(copy, test_mutate(copy, bytes, round % 4 ? 8 + header : bytes, round));
    }
    TEST_CHECK(loaded > 0 && loaded < 1000, "%d of 1000 loaded", loaded);
    free(data), free(copy);
    gpt2_free(&m);
}

int main(void) {
    test_folder_open();
    test_round_trip();
    test_layout();
    test_variants();
    test_damage();
    test_config();
    test_shards();
    test_fuzz();
    test_folder_close();
    return test_end("safetensors");
}
