/* safetensors.c: reading; see safetensors.h. Writing is in safetensors_write.c. */
#include "run/safetensors.h"
#include "base/check.h"
#include "base/json.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SHARDS_MAX = 1024, CONFIG_BYTES_MAX = 1 << 20, LAYERS_MAX = 4096, LM_HEAD = NUM_PARAM_TENSORS };

/* One tensor of the model as a file has it. */
typedef struct {
    int tensor, layer; /* TENSOR_..., or LM_HEAD */
    TensorPlace place;
    size_t num_dims;
    uint64_t dims[2];
} Found;

typedef struct {
    uint64_t begin, end;
} Range;

/* What is gathered before the model's sizes are known. */
typedef struct {
    char paths[2][FILE_PATH_BYTES]; /* the folder, and the file or index: for messages */
    TensorFile *files;
    int file_count;
    Found *found;
    size_t count, capacity;
    int heads, window; /* 0: not said */
} Reader;

/* --- names --- */

#define X(name, scope, rows, cols, init, decay, split, transposed, huggingface)                              \
    {scope, transposed, huggingface},
static const struct {
    int scope, transposed;
    const char *name;
} tensors[] = {PARAM_TENSORS(X)};
#undef X

/* "h.LAYER.rest": the layer and the rest. */
static bool split_layer(const char *name, int *layer, const char **rest) {
    if (strncmp(name, "h.", 2) != 0) return false;
    const char *digit = name + 2;
    int value = 0;
    while (*digit >= '0' && *digit <= '9' && value < LAYERS_MAX) value = value * 10 + (*digit++ - '0');
    bool plain = digit > name + 2 && (name[2] != '0' || digit == name + 3);
    if (!plain || *digit != '.' || value >= LAYERS_MAX) return false;
    *layer = value;
    *rest = digit + 1;
    return true;
}

/* False: not a tensor of GPT-2. *tensor is -1 for one that is known and needed by nobody. */
static bool match_name(const char *name, int *tensor, int *layer) {
    const char *rest = "";
    *layer = 0;
    *tensor = LM_HEAD;
    if (!strcmp(name, "lm_head.weight")) return true;
    if (!strncmp(name, "transformer.", 12)) name += 12;
    bool layered = split_layer(name, layer, &rest);
    for (int t = 0; t < NUM_PARAM_TENSORS; t++) {
        *tensor = t;
        if (tensors[t].scope == MODEL && !strcmp(name, tensors[t].name)) return true;
        if (tensors[t].scope == LAYER && layered && !strcmp(rest, strchr(tensors[t].name, '%') + 3))
            return true;
    }
    *tensor = -1; /* old files hold the causal mask */
    return layered && (!strcmp(rest, "attn.bias") || !strcmp(rest, "attn.masked_bias"));
}

/* --- the header of a file --- */

static const struct {
    const char *name;
    int bytes;
    int type; /* TensorType, or -1: known, but no weights */
} dtypes[] = {{"F32", 4, TENSOR_F32}, {"BF16", 2, TENSOR_BF16}, {"F16", 2, TENSOR_F16}, {"F64", 8, -1},
              {"I64", 8, -1},         {"U64", 8, -1},           {"I32", 4, -1},         {"U32", 4, -1},
              {"I16", 2, -1},         {"U16", 2, -1},           {"I8", 1, -1},          {"U8", 1, -1},
              {"BOOL", 1, -1}};

static bool whole_number(const JsonNode *node, uint64_t *value) {
    if (!node || node->type != JSON_NUMBER || !node->is_int || node->integer < 0) return false;
    *value = (uint64_t)node->integer;
    return true;
}

static bool bad_tensor(const TensorFile *file, const char *name, const char *what, Error *err) {
    return error_set(err, "%s: tensor '%.100s': %s", file->path, name, what);
}

/* The shape into f, and *elements; false if it is none or absurd. */
static bool read_shape(const JsonDocument *d, const JsonNode *shape, Found *f, uint64_t *elements) {
    if (!shape || shape->type != JSON_ARRAY) return false;
    f->num_dims = 0;
    *elements = 1;
    for (const JsonNode *n = json_first(d, shape); n; n = json_next(d, shape, n)) {
        uint64_t dim;
        if (!whole_number(n, &dim) || (dim && *elements > (UINT64_MAX >> 8) / dim)) return false;
        if (f->num_dims < 2) f->dims[f->num_dims] = dim;
        f->num_dims++;
        *elements *= dim;
    }
    return true;
}

static bool add_found(Reader *r, const Found *f, Error *err) {
    if (r->count == r->capacity) {
        size_t capacity = r->capacity ? 2 * r->capacity : 256;
        Found *grown = realloc(r->found, capacity * sizeof *grown);
        if (!grown) return error_set(err, "%s: no memory to list its tensors", r->paths[1]);
        r->found = grown, r->capacity = capacity;
    }
    r->found[r->count++] = *f;
    return true;
}

/* One tensor of the header: checked, and kept if it is one of the model's. data: where the tensors begin. */
static bool read_tensor(Reader *r, int index, const JsonDocument *d, const JsonNode *node, uint64_t data,
                        Range *range, Error *err) {
    const TensorFile *file = &r->files[index];
    Found f = {.place.file = index};
    uint64_t elements;
    int known = -1;
    if (strlen(node->key) != node->key_bytes || node->type != JSON_OBJECT)
        return bad_tensor(file, node->key, "not described by an object", err);
    const JsonNode *dtype = json_get(d, node, "dtype"), *offsets = json_get(d, node, "data_offsets");
    if (!dtype || dtype->type != JSON_STRING) return bad_tensor(file, node->key, "has no dtype", err);
    for (int i = 0; i < (int)(sizeof dtypes / sizeof *dtypes); i++)
        if (!strcmp(dtype->text, dtypes[i].name)) known = i;
    if (!read_shape(d, json_get(d, node, "shape"), &f, &elements))
        return bad_tensor(file, node->key, "has no proper shape", err);
    const JsonNode *first =
        offsets && offsets->type == JSON_ARRAY && offsets->count == 2 ? json_first(d, offsets) : NULL;
    if (!whole_number(first, &range->begin) || !whole_number(json_next(d, offsets, first), &range->end) ||
        range->begin > range->end || range->end > file->bytes - data)
        return bad_tensor(file, node->key,
                          "its data_offsets do not lie in the file (truncated: copy it again)", err);
    if (known >= 0 && range->end - range->begin != elements * (uint64_t)dtypes[known].bytes)
        return bad_tensor(file, node->key, "its data_offsets do not fit its shape", err);
    if (!match_name(node->key, &f.tensor, &f.layer))
        return bad_tensor(file, node->key, "GPT-2 has no such tensor (is this another model?)", err);
    if (f.tensor < 0) return true;
    if (known < 0 || dtypes[known].type < 0)
        return bad_tensor(file, node->key, "its dtype is none of F32, BF16, F16", err);
    f.place.type = (TensorType)dtypes[known].type;
    f.place.offset = data + range->begin;
    f.place.transposed = f.tensor != LM_HEAD && tensors[f.tensor].transposed;
    return add_found(r, &f, err);
}

static int by_begin(const void *a, const void *b) {
    const Range *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

/* No tensor overlaps another, and nothing lies between or behind them. */
static bool check_ranges(const TensorFile *file, Range *ranges, size_t count, uint64_t data, Error *err) {
    uint64_t at = 0;
    qsort(ranges, count, sizeof *ranges, by_begin);
    for (size_t i = 0; i < count; i++) {
        if (ranges[i].begin != at)
            return error_set(err, "%s: its tensors overlap or leave a gap at byte %llu", file->path,
                             (unsigned long long)(data + at));
        at = ranges[i].end;
    }
    if (data + at == file->bytes) return true;
    return error_set(err, "%s: has %llu bytes; its tensors end at byte %llu", file->path,
                     (unsigned long long)file->bytes, (unsigned long long)(data + at));
}

/* A string of __metadata__ as a number; 0 if it is not there or none. */
static int metadata_number(const JsonDocument *d, const JsonNode *metadata, const char *key) {
    const JsonNode *n = json_get(d, metadata, key);
    long value = n && n->type == JSON_STRING ? strtol(n->text, NULL, 10) : 0;
    return value > 0 && value < 1 << 20 ? (int)value : 0;
}

static bool read_header(const TensorFile *file, char **text, size_t *bytes, Error *err) {
    uint64_t length;
    if (file->bytes < 8)
        return error_set(err, "%s: has only %llu bytes: not a safetensors file", file->path,
                         (unsigned long long)file->bytes);
    if (!tensor_file_read(file, 0, &length, sizeof length, err)) return false;
    if (length > SAFETENSORS_HEADER_MAX || length > file->bytes - 8)
        return error_set(err, "%s: its header of %llu bytes %s", file->path, (unsigned long long)length,
                         length > SAFETENSORS_HEADER_MAX ? "is too long: not a safetensors file, or damaged"
                                                         : "is cut off (truncated: copy it again)");
    *bytes = (size_t)length;
    *text = malloc(*bytes + 1);
    if (!*text) return error_set(err, "%s: no memory for its header", file->path);
    return tensor_file_read(file, 8, *text, *bytes, err);
}

/* Opens file number `index` and lists its tensors. */
static bool read_file(Reader *r, int index, const char *path, Error *err) {
    bool ok = false;
    TensorFile *file = &r->files[index];
    JsonDocument d = {0};
    char *text = NULL;
    Range *ranges = NULL;
    size_t bytes = 0, count = 0;
    Error why;
    if (!tensor_file_open(file, path, err) || !read_header(file, &text, &bytes, err)) goto out;
    if (!json_parse(&d, text, bytes, &why) || d.nodes[0].type != JSON_OBJECT) {
        error_set(err, "%s: its header is not a JSON object: %s", path, d.count ? "another value" : why.text);
        goto out;
    }
    ranges = malloc((d.nodes[0].count + 1) * sizeof *ranges);
    if (!ranges) {
        error_set(err, "%s: no memory for its header", path);
        goto out;
    }
    for (const JsonNode *n = json_first(&d, &d.nodes[0]); n; n = json_next(&d, &d.nodes[0], n)) {
        if (!strcmp(n->key, "__metadata__")) {
            if (!r->heads) r->heads = metadata_number(&d, n, "toroid_heads");
            if (!r->window) r->window = metadata_number(&d, n, "toroid_window");
        } else if (!read_tensor(r, index, &d, n, 8 + bytes, &ranges[count++], err)) {
            goto out;
        }
    }
    ok = check_ranges(file, ranges, count, 8 + bytes, err);
out:
    json_free(&d);
    free(text);
    free(ranges);
    return ok;
}

/* --- folders: shards and config.json --- */

static bool parse_file(JsonDocument *d, const char *path, size_t bytes_max, Error *err) {
    char *text;
    size_t bytes;
    Error why;
    if (!file_read(path, bytes_max, &text, &bytes, err)) return false;
    bool ok = json_parse(d, text, bytes, &why);
    free(text);
    if (!ok) return error_set(err, "%s: not JSON: %s", path, why.text);
    return d->nodes[0].type == JSON_OBJECT || error_set(err, "%s: not a JSON object", path);
}

static bool allocate_files(Reader *r, size_t count, Error *err) {
    r->files = calloc(count, sizeof *r->files);
    if (!r->files) return error_set(err, "%s: no memory to open it", r->paths[1]);
    for (size_t i = 0; i < count; i++) r->files[i].fd = -1;
    return true;
}

/* The distinct values of weight_map, in order, each read as it comes. */
static bool read_shards(Reader *r, const char *index_path, Error *err) {
    bool ok = false;
    JsonDocument d = {0};
    char path[FILE_PATH_BYTES];
    if (!parse_file(&d, index_path, SAFETENSORS_HEADER_MAX, err)) goto out;
    const JsonNode *map = json_get(&d, &d.nodes[0], "weight_map");
    if (!map || map->type != JSON_OBJECT || !map->count) {
        error_set(err, "%s: has no weight_map", index_path);
        goto out;
    }
    if (!allocate_files(r, SHARDS_MAX, err)) goto out;
    for (const JsonNode *n = json_first(&d, map); n; n = json_next(&d, map, n)) {
        bool seen = false;
        if (n->type != JSON_STRING || strlen(n->text) != n->bytes || !n->bytes || strchr(n->text, '/')) {
            error_set(err, "%s: weight_map names a file that is not in this folder", index_path);
            goto out;
        }
        if (!file_join(path, r->paths[0], n->text, err)) goto out;
        for (int i = 0; i < r->file_count; i++) seen |= !strcmp(path, r->files[i].path);
        if (seen) continue;
        if (r->file_count == SHARDS_MAX) {
            error_set(err, "%s: names more than %d files", index_path, SHARDS_MAX);
            goto out;
        }
        if (!read_file(r, r->file_count++, path, err)) goto out;
    }
    ok = true;
out:
    json_free(&d);
    return ok;
}

/* A member that must have one value, if it is there (null counts as not there). */
static bool must_be(const JsonDocument *d, const char *key, double value, const char *path, Error *err) {
    const JsonNode *n = json_get(d, &d->nodes[0], key);
    if (!n || n->type == JSON_NULL) return true;
    double have = n->type == JSON_BOOL ? (double)n->boolean : n->type == JSON_NUMBER ? n->number : NAN;
    if (fabs(have - value) <= 1e-9) return true;
    return error_set(err, "%s: %s must be %g (is it of these weights, and of a GPT-2?)", path, key, value);
}

static bool config_number(const JsonDocument *d, const char *key, int *value, const char *path, Error *err) {
    const JsonNode *n = json_get(d, &d->nodes[0], key);
    uint64_t number;
    if (!n || n->type == JSON_NULL) return true;
    if (!whole_number(n, &number) || number > 1 << 20)
        return error_set(err, "%s: %s is not a size", path, key);
    *value = (int)number;
    return true;
}

/* Takes heads and window from config.json, and compares the rest with the model's sizes in c. */
static bool check_config(Reader *r, const GPT2Config *c, const char *path, Error *err) {
    JsonDocument d = {0};
    bool ok = parse_file(&d, path, CONFIG_BYTES_MAX, err);
    if (!ok) goto out;
    const JsonNode *type = json_get(&d, &d.nodes[0], "model_type");
    const JsonNode *activation = json_get(&d, &d.nodes[0], "activation_function");
    if (type && (type->type != JSON_STRING || strcmp(type->text, "gpt2") != 0))
        ok = error_set(err, "%s: model_type is not gpt2", path);
    else if (activation &&
             (activation->type != JSON_STRING || (strcmp(activation->text, "gelu_new") != 0 &&
                                                  strcmp(activation->text, "gelu_pytorch_tanh") != 0)))
        ok = error_set(err, "%s: activation_function is not gelu_new, the only one that can be computed",
                       path);
    const struct {
        const char *key;
        double value;
    } fixed[] = {
        {"layer_norm_epsilon", 1e-5}, {"scale_attn_weights", 1},      {"scale_attn_by_inverse_layer_idx", 0},
        {"add_cross_attention", 0},   {"n_inner", 4.0 * c->channels}, {"vocab_size", c->vocab},
        {"n_positions", c->context},  {"n_embd", c->channels},        {"n_layer", c->layers}};
    for (size_t i = 0; ok && i < sizeof fixed / sizeof *fixed; i++)
        ok = must_be(&d, fixed[i].key, fixed[i].value, path, err);
    int heads = 0;
    ok = ok && config_number(&d, "n_head", &heads, path, err);
    ok = ok && config_number(&d, "toroid_window", &r->window, path, err);
    if (ok && heads && r->heads && heads != r->heads)
        ok = error_set(err, "%s: n_head is %d, the weights beside it have %d heads", path, heads, r->heads);
    if (heads) r->heads = heads;
out:
    json_free(&d);
    return ok;
}

/* --- the model --- */

static const Found *find(const Reader *r, int tensor) {
    for (size_t i = 0; i < r->count; i++)
        if (r->found[i].tensor == tensor) return &r->found[i];
    return NULL;
}

/* Sizes from the shapes of wte and wpe and from the names; heads from elsewhere. */
static bool find_config(Reader *r, GPT2Config *c, Error *err) {
    const Found *wte = find(r, TENSOR_wte), *wpe = find(r, TENSOR_wpe);
    const char *path = r->paths[1];
    char config_path[FILE_PATH_BYTES];
    Error why;
    if (!wte || !wpe || wte->num_dims != 2 || wpe->num_dims != 2)
        return error_set(err, "%s: has no proper wte.weight and wpe.weight: not a GPT-2", path);
    if (wte->dims[0] > 1 << 20 || wte->dims[1] > 1 << 20 || wpe->dims[0] > 1 << 20)
        return error_set(err, "%s: its sizes are larger than any GPT-2's", path);
    *c = (GPT2Config){.context = (int)wpe->dims[0],
                      .vocab = (int)wte->dims[0],
                      .vocab_padded = gpt2_pad_vocab((int)wte->dims[0]),
                      .channels = (int)wte->dims[1]};
    for (size_t i = 0; i < r->count; i++)
        if (r->found[i].layer >= c->layers && r->found[i].tensor != LM_HEAD)
            c->layers = r->found[i].layer + 1;
    if (!find(r, TENSOR_ln1w)) c->layers = 0;
    if (!file_join(config_path, r->paths[0], "config.json", err)) return false;
    if (file_exists(config_path) && !check_config(r, c, config_path, err)) return false;
    if (!r->heads && c->channels % 64)
        return error_set(err, "%s: how many heads it has is not said (put its config.json beside it)", path);
    c->heads = r->heads ? r->heads : c->channels / 64;
    c->window = r->window;
    return gpt2_config_check(c, &why) || error_set(err, "%s: not a usable model: %s", path, why.text);
}

/* Does it have the shape that this tensor must have in the file? Only matrices decay. */
static bool shape_fits(const Found *f, const GPT2Config *c) {
    TensorInfo info = gpt2_tensor(c, f->tensor);
    uint64_t rows = f->tensor == TENSOR_wte ? (uint64_t)c->vocab : info.rows;
    if (!info.decay) return f->num_dims == 1 && f->dims[0] == rows;
    return f->num_dims == 2 && f->dims[0] == (info.transposed ? info.cols : rows) &&
           f->dims[1] == (info.transposed ? rows : info.cols);
}

static bool fill_places(const Reader *r, ModelSource *source, Error *err) {
    const GPT2Config *c = &source->config;
    for (size_t i = 0; i < r->count; i++) {
        const Found *f = &r->found[i];
        if (f->tensor == LM_HEAD) continue;
        const char *file = r->files[f->place.file].path;
        if (!shape_fits(f, c))
            return error_set(err, "%s: %s of layer %d has not the shape that a model of %d channels needs",
                             file, tensors[f->tensor].name, f->layer, c->channels);
        TensorPlace *place = model_source_place(source, f->tensor, f->layer);
        if (place->file >= 0)
            return error_set(err, "%s: %s of layer %d is there twice", file, tensors[f->tensor].name,
                             f->layer);
        *place = f->place;
    }
    for (int t = 0; t < NUM_PARAM_TENSORS; t++)
        for (int l = 0; l < (tensors[t].scope == LAYER ? c->layers : 1); l++)
            if (model_source_place(source, t, l)->file < 0)
                return error_set(err, "%s: %s of layer %d is missing", r->paths[1], tensors[t].name, l);
    return true;
}

/* Do two tensors hold the same `count` values? False with *same unchanged: could not be read. */
static bool compare_values(const Reader *r, const Found *a, const Found *b, size_t count, bool *same,
                           Error *err) {
    float *blocks = malloc(2 * TENSOR_IO_BLOCK * sizeof *blocks);
    if (!blocks) return error_set(err, "%s: no memory to read it", r->paths[1]);
    const Found *both[] = {a, b};
    bool ok = true, equal = true;
    for (size_t at = 0; ok && equal && at < count; at += TENSOR_IO_BLOCK) {
        size_t n = count - at < TENSOR_IO_BLOCK ? count - at : TENSOR_IO_BLOCK;
        for (size_t i = 0; ok && i < 2; i++) {
            TensorPlace p = both[i]->place;
            uint64_t offset = p.offset + (uint64_t)at * tensor_type_bytes(p.type);
            ok = tensor_file_read_floats(&r->files[p.file], offset, p.type, blocks + i * TENSOR_IO_BLOCK, n,
                                         err);
        }
        equal = ok && !memcmp(blocks, blocks + TENSOR_IO_BLOCK, n * sizeof *blocks);
    }
    free(blocks);
    if (ok) *same = equal;
    return ok;
}

/* The output head, where it is stored too, must be wte: ours always is. */
static bool check_head(const Reader *r, const ModelSource *source, Error *err) {
    const Found *head = find(r, LM_HEAD), *wte = find(r, TENSOR_wte);
    if (!head) return true;
    bool same = head->num_dims == 2 && head->dims[0] == wte->dims[0] && head->dims[1] == wte->dims[1];
    size_t count = (size_t)source->config.vocab * (size_t)source->config.channels;
    if (same && !compare_values(r, head, wte, count, &same, err)) return false;
    return same ||
           error_set(err, "%s: lm_head.weight is not wte.weight: a head of its own cannot be computed",
                     r->paths[1]);
}

bool safetensors_recognise(const TensorFile *file) {
    unsigned char head[9];
    Error err;
    uint64_t length;
    if (file->bytes < sizeof head || !tensor_file_read(file, 0, head, sizeof head, &err)) return false;
    memcpy(&length, head, sizeof length);
    return head[8] == '{' && length >= 2 && length <= SAFETENSORS_HEADER_MAX;
}

/* Fills the reader: which files, and what is in them. */
static bool read_all(Reader *r, const char *path, Error *err) {
    char *folder = r->paths[0], *file = r->paths[1];
    if (strlen(path) >= FILE_PATH_BYTES) return error_set(err, "%.200s...: the path is too long", path);
    if (!file_is_directory(path)) {
        const char *slash = strrchr(path, '/');
        memcpy(file, path, strlen(path) + 1);
        if (slash)
            memcpy(folder, path, slash == path ? 1 : (size_t)(slash - path));
        else
            folder[0] = '.';
    } else {
        memcpy(folder, path, strlen(path) + 1);
        if (!file_join(file, path, "model.safetensors", err)) return false;
        if (!file_exists(file)) {
            if (!file_join(file, path, "model.safetensors.index.json", err)) return false;
            if (file_exists(file)) return read_shards(r, file, err);
            return error_set(
                err, "%s: no model in this folder (neither a run's checkpoints nor model.safetensors)", path);
        }
    }
    if (!allocate_files(r, 1, err)) return false;
    r->file_count = 1;
    return read_file(r, 0, file, err);
}

bool safetensors_open(ModelSource *source, const char *path, Error *err) {
    bool ok = false;
    memset(source, 0, sizeof *source);
    Reader *r = calloc(1, sizeof *r);
    if (!r) return error_set(err, "%s: no memory to open it", path);
    if (!read_all(r, path, err) || !find_config(r, &source->config, err)) goto out;
    if (!model_source_allocate(source, r->file_count, err)) goto out;
    if (!fill_places(r, source, err) || !check_head(r, source, err)) {
        model_source_close(source);
        goto out;
    }
    source->format = "safetensors";
    memcpy(source->files, r->files, (size_t)r->file_count * sizeof *r->files);
    r->file_count = 0; /* they belong to the source now */
    ok = true;
out:
    for (int i = 0; i < r->file_count; i++) tensor_file_close(&r->files[i]);
    free(r->files);
    free(r->found);
    free(r);
    return ok;
}
