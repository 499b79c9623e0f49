/* presets.c: see presets.h. Learning rates of the GPT-2 sizes are those of GPT-3's models of the same size
 * (Brown et al., arXiv 2005.14165, table 2.1). */
#include "run/presets.h"
#include "base/check.h"
#include "model/adamw.h"
#include "model/device.h"
#include <string.h>

enum { ASSIGNMENTS_MAX = 16, BATCH = 4 /* what a CPU takes by itself: device_habits */ };

static const struct {
    const char *name, *about;
    int vocab; /* of the usual tokenizer: what the table shows */
    OptionPreset assignments[ASSIGNMENTS_MAX];
} presets[] = {
    {"tiny",
     "bytes; trains on two CPU cores in minutes",
     257,
     {{"layers", "4"},
      {"heads", "4"},
      {"channels", "192"},
      {"context", "128"},
      {"batch-size", "16"},
      {"learning-rate", "3e-3"},
      {"warmup", "100"},
      {"beta2", "0.99"},
      {"steps", "2000"}}},
    {"gpt2",
     "124M",
     50257,
     {{"layers", "12"},
      {"heads", "12"},
      {"channels", "768"},
      {"context", "1024"},
      {"learning-rate", "6e-4"}}},
    {"gpt2-medium",
     "350M",
     50257,
     {{"layers", "24"},
      {"heads", "16"},
      {"channels", "1024"},
      {"context", "1024"},
      {"learning-rate", "3e-4"}}},
    {"gpt2-large",
     "774M",
     50257,
     {{"layers", "36"},
      {"heads", "20"},
      {"channels", "1280"},
      {"context", "1024"},
      {"learning-rate", "2.5e-4"}}},
    {"gpt2-xl",
     "1558M",
     50257,
     {{"layers", "48"},
      {"heads", "25"},
      {"channels", "1600"},
      {"context", "1024"},
      {"learning-rate", "2e-4"}}},
};
enum { NUM_PRESETS = sizeof presets / sizeof *presets };

void presets_apply(Options *options) {
    const char *name = *options->preset || *options->init ? options->preset : presets[0].name;
    for (int i = 0; i < NUM_PRESETS; i++)
        if (!strcmp(name, presets[i].name)) options_apply_preset(options, presets[i].assignments);
}

GPT2Config presets_config(const Options *o, int vocab, const GPT2Config *base) {
    GPT2Config none = {0}, config = base ? *base : none;
    if (!base) {
        config.vocab = vocab;
        config.vocab_padded = gpt2_pad_vocab(vocab);
    }
    if (o->layers) config.layers = o->layers;
    if (o->heads) config.heads = o->heads;
    if (o->channels) config.channels = o->channels;
    if (o->context) config.context = o->context;
    if (o->source[OPTION_window] != SOURCE_DEFAULT) config.window = o->window;
    return config;
}

size_t presets_head_rows(const Options *options) {
    const size_t host = 1024, gpu = 16384; /* a GPU needs larger products to be busy */
    return options->head_rows ? (size_t)options->head_rows : device_memory_is_host() ? host : gpu;
}

/* On a CPU what is computed again is a by-product of what is computed anyway. */
GPT2Mode presets_mode(const Options *options) {
    bool is_auto = !strcmp(options->recompute, "auto");
    bool again = is_auto ? device_memory_is_host() : !strcmp(options->recompute, "yes");
    return again ? GPT2_TRAINING_RECOMPUTING : GPT2_TRAINING;
}

void presets_print(const Options *options, FILE *out) {
    fprintf(out, "%-12s %6s %5s %8s %7s %8s %11s  %s\n", "preset", "layers", "heads", "channels", "context",
            "params", "memory", "");
    for (int i = 0; i < NUM_PRESETS; i++) {
        Options o;
        options_default(&o, COMMAND_TRAIN);
        options_apply_preset(&o, presets[i].assignments);
        if (options->source[OPTION_batch_size] != SOURCE_DEFAULT) o.batch_size = options->batch_size;
        if (options->sequence) o.sequence = options->sequence;
        GPT2Config c = presets_config(&o, presets[i].vocab, NULL);
        size_t T = (size_t)(o.sequence && o.sequence < c.context ? o.sequence : c.context);
        if (!o.batch_size) o.batch_size = BATCH;
        size_t bytes = gpt2_bytes(&c, (size_t)o.batch_size, T, presets_head_rows(&o), presets_mode(&o)) +
                       adamw_bytes(gpt2_param_count(&c));
        fprintf(out, "%-12s %6d %5d %8d %7d %7.1fM %8.2f GB  %s; %d x %zu tokens a batch\n", presets[i].name,
                c.layers, c.heads, c.channels, c.context, 1e-6 * (double)gpt2_param_count(&c),
                1e-9 * (double)bytes, presets[i].about, o.batch_size, T);
    }
}
