/* trained.c: see trained.h. */
#include "run/trained.h"
#include "base/file.h"
#include "base/machine.h"
#include "run/model_file.h"
#include "run/presets.h"
#include <string.h>

/* Files that a model's folder may hold its tokenizer in: ours, and Hugging Face's merges. */
static const char *const tokenizer_files[] = {"tokenizer", "merges.txt", "vocab.bpe"};

static bool find_tokenizer(const char *model_path, const GPT2Config *config, char spec[FILE_PATH_BYTES],
                           Error *err) {
    char directory[FILE_PATH_BYTES];
    snprintf(directory, sizeof directory, "%s", model_path);
    if (!file_is_directory(directory)) {
        char *slash = strrchr(directory, '/');
        if (slash)
            *slash = 0;
        else
            snprintf(directory, sizeof directory, ".");
    }
    for (size_t i = 0; i < sizeof tokenizer_files / sizeof *tokenizer_files; i++)
        if (file_join(spec, directory, tokenizer_files[i], err) && file_exists(spec)) return true;
    if (config->vocab != 257 && config->vocab != 50257)
        return error_set(err, "%s: no tokenizer beside it (give --tokenizer the file that made its data)",
                         model_path);
    snprintf(spec, FILE_PATH_BYTES, "%s", config->vocab == 257 ? "byte" : "gpt2");
    return true;
}

static bool open_tokenizer(Trained *t, const Options *o, const char *path, Error *err) {
    char spec[FILE_PATH_BYTES];
    if (*o->tokenizer)
        snprintf(spec, sizeof spec, "%s", o->tokenizer);
    else if (!find_tokenizer(path, &t->model.config, spec, err))
        return false;
    t->tokenizer = tokenizer_open(spec, err);
    if (!t->tokenizer) return false;
    int ids = tokenizer_vocab_size(t->tokenizer);
    if (ids > t->model.config.vocab)
        return error_set(
            err, "%s: has %d tokens, the model %s only %d (give --tokenizer the one it was trained with)",
            spec, ids, path, t->model.config.vocab);
    return true;
}

static bool open_model(Trained *t, const Options *o, ModelSource *source, size_t B, size_t T, Error *err) {
    GPT2Config config = source->config;
    if (o->source[OPTION_window] != SOURCE_DEFAULT) config.window = o->window;
    if (!T) T = (size_t)config.context;
    size_t bytes = gpt2_bytes(&config, B, T, presets_head_rows(o), GPT2_INFERENCE);
    return machine_check_memory((double)bytes, device_available_bytes(), "this model",
                                "lower --batch-size, --sequence or --head-rows", err) &&
           gpt2_init(&t->model, &config, B, T, presets_head_rows(o), GPT2_INFERENCE, err) &&
           model_source_load(source, &t->model, err);
}

bool trained_open(Trained *t, const Options *o, size_t B, size_t T, Error *err) {
    *t = (Trained){0};
    const char *path = *o->model ? o->model : o->num_arguments ? o->arguments[0] : NULL;
    if (!path) return error_set(err, "no model given (name a model file or a run folder)");
    ModelSource source;
    if (!model_source_open(&source, path, err)) return false;
    bool ok = open_model(t, o, &source, B, T, err);
    model_source_close(&source);
    if (ok) ok = open_tokenizer(t, o, path, err);
    if (!ok) trained_close(t);
    return ok;
}

void trained_close(Trained *t) {
    tokenizer_close(t->tokenizer);
    gpt2_free(&t->model);
    *t = (Trained){0};
}
