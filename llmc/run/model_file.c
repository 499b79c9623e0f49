/* model_file.c: see model_file.h. */
#include "run/model_file.h"
#include "base/check.h"
#include "run/run_state.h"
#include "run/safetensors.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int layers_of(const GPT2Config *config, int tensor) {
    return gpt2_tensor(config, tensor).scope == LAYER ? config->layers : 1;
}

/* --- the table of places --- */

bool model_source_allocate(ModelSource *source, int files, Error *err) {
    size_t places = (size_t)source->config.layers * NUM_PARAM_TENSORS;
    source->files = calloc((size_t)files, sizeof *source->files);
    source->places = calloc(places, sizeof *source->places);
    source->file_count = files;
    if (!source->files || !source->places) {
        source->file_count = 0;
        model_source_close(source);
        return error_set(err, "model: no memory to list its tensors");
    }
    for (int i = 0; i < files; i++) source->files[i].fd = -1;
    for (size_t i = 0; i < places; i++) source->places[i].file = -1;
    return true;
}

void model_source_close(ModelSource *source) {
    for (int i = 0; i < source->file_count; i++) tensor_file_close(&source->files[i]);
    free(source->files);
    free(source->places);
    memset(source, 0, sizeof *source);
}

TensorPlace *model_source_place(const ModelSource *source, int tensor, int layer) {
    CHECK(layer >= 0 && layer < layers_of(&source->config, tensor));
    return &source->places[(size_t)layer * NUM_PARAM_TENSORS + (size_t)tensor];
}

/* --- llm.c's model file --- */

/* Elements of a tensor in llm.c's file, whose padding may differ from ours. */
static uint64_t file_elements(const GPT2Config *config, int tensor, int vocab_padded) {
    TensorInfo info = gpt2_tensor(config, tensor);
    return (tensor == TENSOR_wte ? (uint64_t)vocab_padded : info.rows) * (uint64_t)info.cols;
}

static bool llmc_config(GPT2Config *config, const int32_t *header, const char *path, Error *err) {
    Error why;
    *config = (GPT2Config){.context = header[2],
                           .vocab = header[3],
                           .vocab_padded = header[7],
                           .layers = header[4],
                           .heads = header[5],
                           .channels = header[6]};
    if (!gpt2_config_check(config, &why))
        return error_set(err, "%s: not a usable model file: %s", path, why.text);
    config->vocab_padded = gpt2_pad_vocab(config->vocab);
    return true;
}

static bool llmc_open(ModelSource *source, const char *path, Error *err) {
    TensorFile file;
    int32_t header[MODEL_FILE_HEADER_INTS];
    if (!tensor_file_open(&file, path, err)) return false;
    if (!tensor_file_read(&file, 0, header, sizeof header, err)) goto fail;
    if (header[1] != 3 && header[1] != 5) {
        error_set(err, "%s: llm.c model file of version %d; 3 (fp32) and 5 (bf16) can be read%s", path,
                  header[1], header[1] == 1 ? " (make it again with a newer train_gpt2.py)" : "");
        goto fail;
    }
    if (!llmc_config(&source->config, header, path, err)) goto fail;
    if (!model_source_allocate(source, 1, err)) goto fail;
    TensorType type = header[1] == 3 ? TENSOR_F32 : TENSOR_BF16;
    source->format = type == TENSOR_F32 ? "llm.c model file, fp32" : "llm.c model file, bf16";
    uint64_t at = sizeof header;
    for (int t = 0; t < NUM_PARAM_TENSORS; t++) {
        for (int l = 0; l < layers_of(&source->config, t); l++) {
            *model_source_place(source, t, l) = (TensorPlace){.file = 0, .type = type, .offset = at};
            at += file_elements(&source->config, t, header[7]) * tensor_type_bytes(type);
        }
    }
    if (at != file.bytes) {
        error_set(err, "%s: has %llu bytes; a model of its sizes has %llu (%s)", path,
                  (unsigned long long)file.bytes, (unsigned long long)at,
                  file.bytes < at ? "truncated: copy it again" : "its header is damaged");
        model_source_close(source);
        goto fail;
    }
    source->files[0] = file;
    return true;
fail:
    tensor_file_close(&file);
    return false;
}

/* `count` weights of m from element `first` of the flat array on. block: TENSOR_IO_BLOCK floats. */
static bool write_tensor(FileWriter *writer, const GPT2 *m, size_t first, size_t count, TensorType type,
                         float *block, Error *err) {
    for (size_t at = 0; at < count; at += TENSOR_IO_BLOCK) {
        size_t n = count - at < TENSOR_IO_BLOCK ? count - at : TENSOR_IO_BLOCK;
        device_read_floats(block, m->params + first + at, n);
        if (!tensor_write_floats(writer, type, block, n, err)) return false;
    }
    return true;
}

bool model_file_write(const char *path, const GPT2 *m, TensorType type, Error *err) {
    CHECK(type == TENSOR_F32 || type == TENSOR_BF16);
    const GPT2Config *c = &m->config;
    int32_t header[MODEL_FILE_HEADER_INTS] = {
        MODEL_FILE_MAGIC, type == TENSOR_F32 ? 3 : 5, c->context, c->vocab, c->layers, c->heads, c->channels,
        c->vocab_padded};
    bool ok = false;
    FileWriter writer = {.fd = -1};
    float *block = malloc(TENSOR_IO_BLOCK * sizeof *block);
    if (!block) {
        error_set(err, "%s: no memory to write it", path);
        goto out;
    }
    if (!file_writer_open(&writer, path, err)) goto out;
    if (!file_writer_write(&writer, header, sizeof header, err)) goto out;
    for (int t = 0; t < NUM_PARAM_TENSORS; t++) {
        TensorInfo info = gpt2_tensor(c, t);
        for (int l = 0; l < layers_of(c, t); l++)
            if (!write_tensor(&writer, m, gpt2_tensor_offset(c, t, l), info.rows * info.cols, type, block,
                              err))
                goto out;
    }
    ok = file_writer_commit(&writer, err);
out:
    file_writer_abort(&writer);
    free(block);
    return ok;
}

/* --- a run's folder --- */

static bool run_config(GPT2Config *config, const char *path, Error *err) {
    Error why;
    RunRecord record = {"config", config, sizeof *config, false};
    if (!run_state_load(path, &record, 1, err)) return false;
    return gpt2_config_check(config, &why) ||
           error_set(err, "%s: not a usable run state: %s", path, why.text);
}

static bool run_open(ModelSource *source, const char *path, Error *err) {
    const GPT2Config *c = &source->config;
    RunStatePlace params;
    if (!run_config(&source->config, path, err) || !run_state_find(path, "params", &params, err))
        return false;
    uint64_t count = gpt2_param_count(c);
    if (params.bytes != count * 4 && params.bytes != count * 2) {
        error_set(err, "%s: its record 'params' has %llu bytes; a model of its sizes has %llu",
                  params.file.path, (unsigned long long)params.bytes, (unsigned long long)count * 4);
        tensor_file_close(&params.file);
        return false;
    }
    if (!model_source_allocate(source, 1, err)) {
        tensor_file_close(&params.file);
        return false;
    }
    TensorType type = params.bytes == count * 4 ? TENSOR_F32 : TENSOR_BF16;
    source->files[0] = params.file;
    source->format = "run state";
    for (int t = 0; t < NUM_PARAM_TENSORS; t++)
        for (int l = 0; l < layers_of(c, t); l++)
            *model_source_place(source, t, l) = (TensorPlace){
                .file = 0,
                .type = type,
                .offset = params.offset + gpt2_tensor_offset(c, t, l) * tensor_type_bytes(type)};
    return true;
}

/* --- any of them --- */

bool model_source_open(ModelSource *source, const char *path, Error *err) {
    memset(source, 0, sizeof *source);
    if (file_is_directory(path)) {
        if (run_state_exists(path)) return run_open(source, path, err);
        return safetensors_open(source, path, err);
    }
    TensorFile file;
    int32_t magic = 0;
    if (!tensor_file_open(&file, path, err)) return false;
    bool ok = file.bytes >= 8 ? tensor_file_read(&file, 0, &magic, sizeof magic, err)
                              : error_set(err, "%s: has only %llu bytes: not a model file", path,
                                          (unsigned long long)file.bytes);
    bool safetensors = ok && safetensors_recognise(&file);
    tensor_file_close(&file);
    if (!ok) return false;
    if (magic == MODEL_FILE_MAGIC) return llmc_open(source, path, err);
    if (safetensors) return safetensors_open(source, path, err);
    return error_set(
        err,
        "%s: not a model file (known: llm.c's .bin, .safetensors, a Hugging Face folder, a run's folder)",
        path);
}

/* n elements of a place from element `at` on. The only damage to weights that shows: not finite. */
static bool read_block(const TensorFile *file, TensorPlace place, size_t at, float *block, size_t n,
                       Error *err) {
    uint64_t offset = place.offset + (uint64_t)at * tensor_type_bytes(place.type);
    if (!tensor_file_read_floats(file, offset, place.type, block, n, err)) return false;
    for (size_t i = 0; i < n; i++)
        if (!isfinite(block[i]))
            return error_set(err, "%s: damaged: the weight at byte %llu is not a finite number", file->path,
                             (unsigned long long)(offset + i * tensor_type_bytes(place.type)));
    return true;
}

/* A tensor stored as in memory: in blocks. */
static bool load_plain(const TensorFile *file, TensorPlace place, floatX *out, size_t count, float *block,
                       Error *err) {
    for (size_t at = 0; at < count; at += TENSOR_IO_BLOCK) {
        size_t n = count - at < TENSOR_IO_BLOCK ? count - at : TENSOR_IO_BLOCK;
        if (!read_block(file, place, at, block, n, err)) return false;
        device_write_floats(out + at, block, n);
    }
    return true;
}

/* Stored cols x rows: a whole matrix at a time, the largest that is held. */
static bool load_transposed(const TensorFile *file, TensorPlace place, floatX *out, size_t rows, size_t cols,
                            float *block, Error *err) {
    size_t count = rows * cols;
    float *matrix = malloc(count * sizeof *matrix);
    if (!matrix)
        return error_set(err, "%s: no memory to turn a matrix of %zu by %zu", file->path, rows, cols);
    for (size_t at = 0; at < count; at += TENSOR_IO_BLOCK) {
        size_t n = count - at < TENSOR_IO_BLOCK ? count - at : TENSOR_IO_BLOCK;
        if (!read_block(file, place, at, block, n, err)) {
            free(matrix);
            return false;
        }
        for (size_t i = 0; i < n; i++) matrix[(at + i) % rows * cols + (at + i) / rows] = block[i];
    }
    device_write_floats(out, matrix, count);
    free(matrix);
    return true;
}

bool model_source_load(const ModelSource *source, GPT2 *m, Error *err) {
    const GPT2Config *c = &source->config;
    CHECK_OP(m->param_count, ==, gpt2_param_count(c));
    CHECK(m->config.vocab == c->vocab && m->config.channels == c->channels && m->config.layers == c->layers &&
          m->config.context == c->context);
    bool ok = true;
    float *block = malloc(TENSOR_IO_BLOCK * sizeof *block);
    if (!block) return error_set(err, "model: no memory to read it");
    for (int t = 0; t < NUM_PARAM_TENSORS && ok; t++) {
        TensorInfo info = gpt2_tensor(c, t);
        size_t rows = t == TENSOR_wte ? (size_t)c->vocab : info.rows,
               padding = (info.rows - rows) * info.cols;
        for (int l = 0; l < layers_of(c, t) && ok; l++) {
            TensorPlace place = *model_source_place(source, t, l);
            CHECK(place.file >= 0 && place.file < source->file_count);
            const TensorFile *file = &source->files[place.file];
            floatX *out = m->params + gpt2_tensor_offset(c, t, l);
            ok = place.transposed ? load_transposed(file, place, out, rows, info.cols, block, err)
                                  : load_plain(file, place, out, rows * info.cols, block, err);
            if (padding) device_zero(out + rows * info.cols, padding * sizeof *out);
        }
    }
    free(block);
    return ok;
}
