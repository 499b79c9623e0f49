/* hellaswag.h: which of four endings is the likeliest? Zellers et al., arXiv 1905.07830.
 *
 * Reads the published .jsonl: an object a line with "ctx", "label" (0..3) and four "endings". An ending is scored by
 * its mean loss per token behind the context, the lowest wins ("acc_norm" of the usual harnesses). */
#ifndef LLMC_HELLASWAG_H
#define LLMC_HELLASWAG_H
#include "data/tokenizer.h"
#include "model/gpt2.h"

typedef struct {
    int questions, right_by_mean, right_by_sum; /* by mean: acc_norm; by sum: acc */
} HellaswagResult;

/* Answers up to questions_max questions (0: all). m holds batches of 4 sequences; contexts that do not fit lose
 * their beginning. */
bool hellaswag_run(GPT2 *m, const Tokenizer *tokenizer, const char *path, int questions_max,
                   HellaswagResult *result, Error *err);
#endif
