/* sampling.c: see sampling.h. */
#include "run/sampling.h"
#include "base/file.h"
#include "base/log.h"
#include "run/trained.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PROMPT_BYTES_MAX = 16 << 20 };

int sampling_write(Generator *g, const Tokenizer *tokenizer, const uint16_t *ids, size_t count,
                   int tokens_max, const SampleConfig *config, uint64_t first_draw) {
    int end = tokenizer_end_of_text(tokenizer), vocab = tokenizer_vocab_size(tokenizer), written = 0;
    float *logits = NULL;
    generator_reset(g);
    if (!count) logits = generator_step(g, end);
    for (size_t i = 0; i < count; i++) logits = generator_step(g, ids[i]);
    for (; written < tokens_max; written++) {
        int token = sample_token(logits, vocab, config, first_draw + (uint64_t)written);
        size_t bytes;
        const char *text = tokenizer_decode(tokenizer, token, &bytes);
        if (!text || token == end) break;
        fwrite(text, 1, bytes, stdout);
        if (fflush(stdout)) break; /* nobody gets to see it: the caller says so */
        if (written + 1 < tokens_max) logits = generator_step(g, token);
    }
    return written;
}

static WeightType weight_type(const char *name) {
    return !strcmp(name, "bf16") ? WEIGHT_BF16 : !strcmp(name, "int8") ? WEIGHT_INT8 : WEIGHT_FP32;
}

static bool read_prompt(const Options *o, const Tokenizer *tokenizer, char **text, size_t *bytes,
                        Tokens *tokens, Error *err) {
    if (!strcmp(o->prompt, "-")) {
        if (!file_read("-", PROMPT_BYTES_MAX, text, bytes, err)) return false;
    } else {
        *bytes = strlen(o->prompt);
        *text = malloc(*bytes + 1);
        if (!*text) return error_set(err, "no memory for the prompt");
        memcpy(*text, o->prompt, *bytes + 1);
    }
    return tokenizer_encode(tokenizer, *text, *bytes, tokens, err);
}

bool sampling_run(const Options *o, Error *err) {
    Trained t;
    Generator g = {0};
    Tokens tokens = {0};
    char *prompt = NULL;
    size_t prompt_bytes = 0;
    bool ok = false;
    if (!trained_open(&t, o, 1, 1, err)) return false;
    if (!generator_init(&g, &t.model, weight_type(o->weights), err)) goto out;
    if (!read_prompt(o, t.tokenizer, &prompt, &prompt_bytes, &tokens, err)) goto out;
    const SampleConfig config = {o->temperature, o->top_k, o->top_p, (uint64_t)o->seed};
    double start = log_seconds();
    long written = 0;
    for (int i = 0; i < o->count && !ferror(stdout); i++) {
        if (i) printf("\n---\n");
        fwrite(prompt, 1, prompt_bytes, stdout);
        written +=
            sampling_write(&g, t.tokenizer, tokens.ids, tokens.count, o->tokens, &config, (uint64_t)i << 32);
        printf("\n");
    }
    if (fflush(stdout) || ferror(stdout)) {
        error_set(err, "stdout: cannot write the sample (is the disk full, or stdout closed?)");
        goto out;
    }
    double seconds = log_seconds() - start;
    log_info("%ld tokens in %.2f s: %.1f tokens/s", written, seconds, (double)written / seconds);
    ok = true;
out:
    free(prompt);
    free(tokens.ids);
    generator_free(&g);
    trained_close(&t);
    return ok;
}
