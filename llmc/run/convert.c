/* convert.c: see convert.h. */
#include "run/convert.h"
#include "base/log.h"
#include "base/machine.h"
#include "run/model_file.h"
#include "run/safetensors.h"
#include <stdlib.h>
#include <string.h>

enum { TOKENIZER_BYTES_MAX = 64 << 20 };

static bool ends_with(const char *text, const char *suffix) {
    size_t length = strlen(text), n = strlen(suffix);
    return length > n && !strcmp(text + length - n, suffix);
}

/* Is the output to be llm.c's file? */
static bool choose_format(const Options *o, const char *path, bool *llmc, Error *err) {
    char place[FILE_PATH_BYTES];
    const char *slash = strrchr(path, '/');
    *llmc = !strcmp(o->format, "llmc") || (!strcmp(o->format, "auto") && ends_with(path, ".bin"));
    if (*llmc && file_is_directory(path))
        return error_set(err, "%s: is a folder; an llm.c model is one file (name it NAME.bin)", path);
    if (!*llmc && model_source_checkpoints(path, place))
        return error_set(err, "%s: is a run's folder (write the model to another)", path);
    if (strcmp(o->format, "auto") != 0 || *llmc || safetensors_is_file_name(path) || file_is_directory(path))
        return true;
    if (strchr(slash ? slash + 1 : path, '.'))
        return error_set(
            err,
            "%s: which format this name means is unknown (end it in .bin or .safetensors, name a folder, "
            "or give --format)",
            path);
    return true;
}

/* The folder that a model's path is or lies in. */
static void folder_of(char folder[FILE_PATH_BYTES], const char *path) {
    snprintf(folder, FILE_PATH_BYTES, "%s", path);
    if (file_is_directory(path)) return;
    char *slash = strrchr(folder, '/');
    if (slash)
        slash[slash == folder] = 0;
    else
        snprintf(folder, FILE_PATH_BYTES, ".");
}

/* Copies the tokenizer's files from beside the model into the folder `out`. */
static bool copy_tokenizer(const char *in, const char *out, Error *err) {
    static const char *const names[] = {"tokenizer", "merges.txt", "vocab.json", "vocab.bpe"};
    char folder[FILE_PATH_BYTES], from[FILE_PATH_BYTES], to[FILE_PATH_BYTES];
    folder_of(folder, in);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *data;
        size_t bytes;
        if (!file_join(from, folder, names[i], err) || !file_join(to, out, names[i], err)) return false;
        if (!file_exists(from) || !strcmp(from, to)) continue;
        if (!file_read(from, TOKENIZER_BYTES_MAX, &data, &bytes, err)) return false;
        bool ok = file_write(to, data, bytes, err);
        free(data);
        if (!ok) return false;
    }
    return true;
}

/* An opened source as the model file `out`; in: what it was opened from. */
static bool convert_source(const Options *o, const char *in, ModelSource *source, const char *out, bool llmc,
                           Error *err) {
    TensorType type = !strcmp(o->dtype, "bf16") ? TENSOR_BF16 : TENSOR_F32;
    bool ok = false;
    GPT2 m = {0};
    double bytes = (double)gpt2_bytes(&source->config, 1, 1, 1, GPT2_INFERENCE);
    if (!machine_check_memory(bytes, device_available_bytes(), in, "convert it on a larger machine", err))
        goto out;
    if (!gpt2_init(&m, &source->config, 1, 1, 1, GPT2_INFERENCE, err)) goto out;
    if (!model_source_load(source, &m, err)) goto out;
    ok = llmc ? model_file_write(out, &m, type, err) : safetensors_write(out, &m, type, err);
    if (ok && file_is_directory(out)) ok = copy_tokenizer(in, out, err);
    if (!ok) goto out;
    log_info("%s (%s) -> %s (%s, %s): %d layers, %d heads, %d channels, vocabulary %d, context %d", in,
             source->format, out, llmc ? "llm.c model file" : "safetensors", o->dtype, m.config.layers,
             m.config.heads, m.config.channels, m.config.vocab, m.config.context);
    if (m.config.window)
        log_warn("%s: its attention window of %d tokens is unknown to %s", out, m.config.window,
                 llmc ? "this format (give --window when it is used)"
                      : "other programs, which attend to all");
out:
    if (m.params) gpt2_free(&m);
    return ok;
}

bool convert_run(const Options *o, const char *in, const CkptId *id, const char *out, Error *err) {
    bool llmc;
    ModelSource source;
    if (!choose_format(o, out, &llmc, err)) return false;
    if (!(id ? model_source_open_checkpoint(&source, in, *id, err) : model_source_open(&source, in, err)))
        return false;
    bool ok = convert_source(o, in, &source, out, llmc, err);
    model_source_close(&source);
    return ok;
}
