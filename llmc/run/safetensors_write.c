/* safetensors_write.c: writing; see safetensors.h. Reading is in safetensors.c. */
#include "base/check.h"
#include "base/json.h"
#include "run/safetensors.h"
#include <stdlib.h>
#include <string.h>

/* Every tensor in file order: MODEL ones as the table has them, LAYER ones layer by layer. */
typedef struct {
    int tensor, layer;
    size_t rows, cols; /* as in memory, without the padding of wte */
    bool transposed, vector;
    char name[80];
} Stored;

static Stored stored(const GPT2Config *c, int tensor, int layer) {
    TensorInfo info = gpt2_tensor(c, tensor);
    Stored s = {.tensor = tensor,
                .layer = layer,
                .rows = info.rows,
                .cols = info.cols,
                .transposed = info.transposed};
    if (tensor == TENSOR_wte) s.rows = (size_t)c->vocab;
    s.vector = !info.decay;
    const char *number = strstr(info.huggingface, "%d");
    int before = number ? (int)(number - info.huggingface) : (int)strlen(info.huggingface);
    snprintf(s.name, sizeof s.name, "transformer.%.*s", before, info.huggingface);
    size_t used = strlen(s.name);
    if (number) snprintf(s.name + used, sizeof s.name - used, "%d%s", layer, number + 2);
    return s;
}

/* Calls visit for every tensor until one fails. */
typedef bool (*Visit)(const Stored *s, void *ctx, Error *err);
static bool visit_all(const GPT2Config *c, Visit visit, void *ctx, Error *err) {
    for (int t = 0; t < NUM_PARAM_TENSORS; t++) {
        int layers = gpt2_tensor(c, t).scope == LAYER ? c->layers : 1;
        for (int l = 0; l < layers; l++) {
            Stored s = stored(c, t, l);
            if (!visit(&s, ctx, err)) return false;
        }
    }
    return true;
}

/* --- the header --- */

typedef struct {
    JsonWriter json;
    uint64_t at;
    TensorType type;
} Describe;

static bool describe(const Stored *s, void *ctx, Error *err) {
    (void)err;
    Describe *d = ctx;
    uint64_t bytes = (uint64_t)s->rows * s->cols * tensor_type_bytes(d->type);
    json_object_begin(&d->json, s->name);
    json_string(&d->json, "dtype", d->type == TENSOR_F32 ? "F32" : "BF16");
    json_array_begin(&d->json, "shape");
    json_int(&d->json, NULL, (int64_t)(s->transposed ? s->cols : s->rows));
    if (!s->vector) json_int(&d->json, NULL, (int64_t)(s->transposed ? s->rows : s->cols));
    json_array_end(&d->json);
    json_array_begin(&d->json, "data_offsets");
    json_int(&d->json, NULL, (int64_t)d->at);
    json_int(&d->json, NULL, (int64_t)(d->at += bytes));
    json_array_end(&d->json);
    json_object_end(&d->json);
    return true;
}

/* The header's text, a multiple of 8 bytes with blanks behind it; NULL if there is no memory. */
static char *make_header(const GPT2Config *c, TensorType type, uint64_t *bytes) {
    size_t size = 1024 + 256 * (size_t)NUM_PARAM_TENSORS * (size_t)c->layers;
    char *text = malloc(size), number[16];
    if (!text) return NULL;
    Describe d = {.type = type};
    json_writer_open(&d.json, text, size - 8);
    json_object_begin(&d.json, NULL);
    json_object_begin(&d.json, "__metadata__");
    json_string(&d.json, "format", "pt"); /* transformers wants it */
    snprintf(number, sizeof number, "%d", c->heads);
    json_string(&d.json, "toroid_heads", number);
    snprintf(number, sizeof number, "%d", c->window);
    json_string(&d.json, "toroid_window", number);
    json_object_end(&d.json);
    Error none;
    visit_all(c, describe, &d, &none);
    json_object_end(&d.json);
    CHECK(json_writer_done(&d.json));
    *bytes = (d.json.used + 7) / 8 * 8;
    memset(text + d.json.used, ' ', *bytes - d.json.used);
    return text;
}

/* --- the data --- */

typedef struct {
    const GPT2 *m;
    FileWriter writer;
    TensorType type;
    float *block;
} Output;

static bool write_plain(Output *o, const floatX *from, size_t count, Error *err) {
    for (size_t at = 0; at < count; at += TENSOR_IO_BLOCK) {
        size_t n = count - at < TENSOR_IO_BLOCK ? count - at : TENSOR_IO_BLOCK;
        device_read_floats(o->block, from + at, n);
        if (!tensor_write_floats(&o->writer, o->type, o->block, n, err)) return false;
    }
    return true;
}

/* As cols x rows: a whole matrix is held. */
static bool write_transposed(Output *o, const floatX *from, size_t rows, size_t cols, Error *err) {
    size_t count = rows * cols;
    bool ok = true;
    float *matrix = malloc(count * sizeof *matrix);
    if (!matrix)
        return error_set(err, "%s: no memory to turn a matrix of %zu by %zu", o->writer.path, rows, cols);
    device_read_floats(matrix, from, count);
    for (size_t at = 0; at < count && ok; at += TENSOR_IO_BLOCK) {
        size_t n = count - at < TENSOR_IO_BLOCK ? count - at : TENSOR_IO_BLOCK;
        for (size_t i = 0; i < n; i++) o->block[i] = matrix[(at + i) % rows * cols + (at + i) / rows];
        ok = tensor_write_floats(&o->writer, o->type, o->block, n, err);
    }
    free(matrix);
    return ok;
}

static bool write_tensor(const Stored *s, void *ctx, Error *err) {
    Output *o = ctx;
    const floatX *from = o->m->params + gpt2_tensor_offset(&o->m->config, s->tensor, s->layer);
    return s->transposed ? write_transposed(o, from, s->rows, s->cols, err)
                         : write_plain(o, from, s->rows * s->cols, err);
}

static bool write_weights(const char *path, const GPT2 *m, TensorType type, Error *err) {
    bool ok = false;
    uint64_t bytes = 0;
    char *header = make_header(&m->config, type, &bytes);
    Output o = {.m = m, .writer.fd = -1, .type = type, .block = malloc(TENSOR_IO_BLOCK * sizeof(float))};
    if (!header || !o.block) {
        error_set(err, "%s: no memory to write it", path);
        goto out;
    }
    if (!file_writer_open(&o.writer, path, err)) goto out;
    if (!file_writer_write(&o.writer, &bytes, sizeof bytes, err)) goto out;
    if (!file_writer_write(&o.writer, header, (size_t)bytes, err)) goto out;
    if (!visit_all(&m->config, write_tensor, &o, err)) goto out;
    ok = file_writer_commit(&o.writer, err);
out:
    file_writer_abort(&o.writer);
    free(header);
    free(o.block);
    return ok;
}

/* --- config.json --- */

static bool write_config(const char *path, const GPT2Config *c, TensorType type, Error *err) {
    char text[2048];
    JsonWriter w;
    json_writer_open(&w, text, sizeof text);
    json_object_begin(&w, NULL);
    json_array_begin(&w, "architectures");
    json_string(&w, NULL, "GPT2LMHeadModel");
    json_array_end(&w);
    json_string(&w, "model_type", "gpt2");
    json_int(&w, "vocab_size", c->vocab);
    json_int(&w, "n_positions", c->context);
    json_int(&w, "n_ctx", c->context);
    json_int(&w, "n_embd", c->channels);
    json_int(&w, "n_layer", c->layers);
    json_int(&w, "n_head", c->heads);
    json_null(&w, "n_inner");
    json_string(&w, "activation_function", "gelu_new");
    json_double(&w, "layer_norm_epsilon", 1e-5);
    json_double(&w, "initializer_range", 0.02);
    json_double(&w, "embd_pdrop", 0);
    json_double(&w, "attn_pdrop", 0);
    json_double(&w, "resid_pdrop", 0);
    json_bool(&w, "tie_word_embeddings", true);
    json_int(&w, "bos_token_id", c->vocab - 1);
    json_int(&w, "eos_token_id", c->vocab - 1);
    json_string(&w, "torch_dtype", type == TENSOR_F32 ? "float32" : "bfloat16");
    json_int(&w, "toroid_window", c->window);
    json_object_end(&w);
    CHECK(json_writer_done(&w) && w.used + 1 < sizeof text);
    text[w.used] = '\n';
    return file_write(path, text, w.used + 1, err);
}

bool safetensors_is_file_name(const char *path) {
    const char *suffix = ".safetensors";
    size_t length = strlen(path), n = strlen(suffix);
    return length > n && !strcmp(path + length - n, suffix);
}

bool safetensors_write(const char *path, const GPT2 *m, TensorType type, Error *err) {
    CHECK(type == TENSOR_F32 || type == TENSOR_BF16);
    char weights[FILE_PATH_BYTES], config[FILE_PATH_BYTES];
    if (safetensors_is_file_name(path)) return write_weights(path, m, type, err);
    if (!file_make_directory(path, err)) return false;
    if (!file_join(weights, path, "model.safetensors", err) || !file_join(config, path, "config.json", err))
        return false;
    return write_weights(weights, m, type, err) && write_config(config, &m->config, type, err);
}
