/* presets.h: model sizes by name, as assignments to options. */
#ifndef LLMC_PRESETS_H
#define LLMC_PRESETS_H
#include "base/options.h"
#include "model/gpt2.h"

/* Applies the preset that options->preset names (as "tiny" if it is empty and no model is given to start from). */
void presets_apply(Options *options);

/* Every preset with its size, parameters and memory, as a table; batch sizes and sequences as options give them. */
void presets_print(const Options *options, FILE *out);

/* The model that the options describe, for a vocabulary; what they leave at 0 is taken from base (NULL: none). */
GPT2Config presets_config(const Options *options, int vocab, const GPT2Config *base);

/* What the options say of memory: rows of logits held at once, and what is kept for the backward. */
size_t presets_head_rows(const Options *options);
GPT2Mode presets_mode(const Options *options);
#endif
