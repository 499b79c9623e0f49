/* sampling.h: the work behind `train_gpt2 sample`, and the text that training shows. */
#ifndef LLMC_SAMPLING_H
#define LLMC_SAMPLING_H
#include "base/options.h"
#include "data/tokenizer.h"
#include "model/generate.h"
#include "model/sample.h"

/* Feeds the prompt (ids, count; none: end of text) and prints tokens_max tokens to stdout as they come, or fewer up
 * to an end of text. first_draw: the number of the first random draw; use different ones for different texts.
 * Returns the tokens printed. */
int sampling_write(Generator *g, const Tokenizer *tokenizer, const uint16_t *ids, size_t count,
                   int tokens_max, const SampleConfig *config, uint64_t first_draw);

/* Samples as the options say, the prompt first, to stdout. */
bool sampling_run(const Options *options, Error *err);
#endif
