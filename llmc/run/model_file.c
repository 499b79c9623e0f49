/* model_file.c: see model_file.h. */
#include "run/model_file.h"
#include "base/check.h"
#include "base/log.h"
#include "run/checkpoint.h"
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
    ckpt_reader_close(source->reader);
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

/* --- checkpoints: a run's folder, a staging folder, a remote store --- */

bool model_source_checkpoints(const char *path, char place[FILE_PATH_BYTES]) {
    static const char *const inside[] = {"manifest", "ckpt"}; /* of a staging folder, of a store's */
    Error ignored;
    char folder[FILE_PATH_BYTES];
    bool found = !strncmp(path, "s3://", 5);
    if (!found && file_join(place, path, CHECKPOINT_FOLDER, &ignored) && file_is_directory(place))
        return true;
    for (size_t i = 0; i < sizeof inside / sizeof *inside; i++)
        found |= file_join(folder, path, inside[i], &ignored) && file_is_directory(folder);
    return found && snprintf(place, FILE_PATH_BYTES, "%s", path) < FILE_PATH_BYTES;
}

static CkptType float_type(CkptReader *reader, CkptId id) {
    const CkptTensor *tensors;
    size_t count;
    Error ignored;
    if (ckpt_reader_tensors(reader, id, &tensors, &count, &ignored))
        for (size_t i = 0; i < count; i++)
            if (!strcmp(tensors[i].name, "params/wte")) return tensors[i].type;
    return CKPT_FP32;
}

/* The newest restorable checkpoint before `limit` whose configuration can be read. */
static bool choose_checkpoint(ModelSource *source, const char *path, CkptId limit, Error *err) {
    const CkptInfo *list;
    size_t count = ckpt_reader_list(source->reader, &list);
    GPT2Config *config = &source->config;
    error_set(err, "%s: holds no checkpoint that can be read ('train_gpt2 ckpt ls %s' tells what is there)",
              path, path);
    for (size_t i = 0; i < count; i++) {
        CkptId id = list[i].id;
        if (list[i].state != CKPT_RESTORABLE || ckpt_id_compare(id, limit) >= 0) continue;
        if (!ckpt_reader_read(source->reader, id, "state/config", CKPT_UINT8, 0, sizeof *config, config,
                              err) ||
            !gpt2_config_check(config, err)) {
            log_warn("%s, step %llu: %s; trying the checkpoint before it", path, (unsigned long long)id.step,
                     err->text);
            continue;
        }
        source->checkpoint = id;
        return true;
    }
    return false;
}

static bool checkpoint_source_open(ModelSource *source, const char *path, const char *place, CkptId limit,
                                   Error *err) {
    source->format = "checkpoint";
    if (!ckpt_reader_open(&source->reader, place, err)) return false;
    if (choose_checkpoint(source, path, limit, err)) return true;
    model_source_close(source);
    return false;
}

bool model_source_open_checkpoint(ModelSource *source, const char *path, CkptId id, Error *err) {
    char place[FILE_PATH_BYTES];
    memset(source, 0, sizeof *source);
    if (!model_source_checkpoints(path, place)) return error_set(err, "%s: holds no checkpoints", path);
    if (!checkpoint_source_open(source, path, place, (CkptId){id.attempt, id.step + 1}, err)) return false;
    if (ckpt_id_compare(source->checkpoint, id) == 0) return true;
    model_source_close(source);
    return error_set(err, "%s: step %llu cannot be read", path, (unsigned long long)id.step);
}

/* Elements read at a time: a multiple of what one checksum covers, so that little is read twice. */
enum { CHECKPOINT_BLOCK = 8 << 20 };

static bool load_checkpoint_tensor(const ModelSource *source, const char *name, floatX *out, size_t count,
                                   void *block, float *floats, Error *err) {
    CkptType type = float_type(source->reader, source->checkpoint);
    for (size_t at = 0; at < count; at += CHECKPOINT_BLOCK) {
        size_t n = count - at < CHECKPOINT_BLOCK ? count - at : CHECKPOINT_BLOCK;
        if (!ckpt_reader_read(source->reader, source->checkpoint, name, type, at, at + n, block, err))
            return false;
        if (type == CKPT_BF16)
            for (size_t i = 0; i < n; i++) floats[i] = tensor_float_from_bf16(((const uint16_t *)block)[i]);
        device_write_floats(out + at, type == CKPT_BF16 ? floats : block, n);
    }
    return true;
}

static bool load_checkpoint_once(const ModelSource *source, GPT2 *m, Error *err) {
    const GPT2Config *c = &source->config;
    float *block = malloc(CHECKPOINT_BLOCK * sizeof *block),
          *floats = malloc(CHECKPOINT_BLOCK * sizeof *floats);
    bool ok = (block && floats) || error_set(err, "no memory to read a checkpoint");
    for (int t = 0; t < NUM_PARAM_TENSORS && ok; t++) {
        TensorInfo info = gpt2_tensor(c, t);
        for (int l = 0; l < layers_of(c, t) && ok; l++) {
            char name[CKPT_NAME_BYTES];
            checkpoint_tensor_name(name, "params", &info, l);
            ok = load_checkpoint_tensor(source, name, m->params + gpt2_tensor_offset(c, t, l),
                                        info.rows * info.cols, block, floats, err);
        }
    }
    free(block);
    free(floats);
    return ok;
}

/* A checkpoint that turns out damaged is passed over for the one before it, if that is of the same model. */
static bool load_checkpoint(ModelSource *source, GPT2 *m, Error *err) {
    const GPT2Config config = source->config;
    while (!load_checkpoint_once(source, m, err)) {
        Error why;
        uint64_t step = source->checkpoint.step;
        if (!choose_checkpoint(source, "checkpoints", source->checkpoint, &why)) return false;
        if (memcmp(&config, &source->config, sizeof config) != 0) return false;
        log_warn("step %llu: %s; taking step %llu instead", (unsigned long long)step, err->text,
                 (unsigned long long)source->checkpoint.step);
    }
    return true;
}

/* --- any of them --- */

bool model_source_open(ModelSource *source, const char *path, Error *err) {
    memset(source, 0, sizeof *source);
    char place[FILE_PATH_BYTES];
    if (model_source_checkpoints(path, place)) {
        const CkptId newest = {UINT32_MAX, UINT64_MAX};
        return checkpoint_source_open(source, path, place, newest, err);
    }
    if (file_is_directory(path)) return safetensors_open(source, path, err);
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

bool model_source_load(ModelSource *source, GPT2 *m, Error *err) {
    const GPT2Config *c = &source->config;
    CHECK_OP(m->param_count, ==, gpt2_param_count(c));
    CHECK(m->config.vocab == c->vocab && m->config.channels == c->channels && m->config.layers == c->layers &&
          m->config.context == c->context);
    if (source->reader) return load_checkpoint(source, m, err);
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
