/* trained.h: a trained model opened for use: weights and the tokenizer that goes with them. */
#ifndef LLMC_TRAINED_H
#define LLMC_TRAINED_H
#include "base/options.h"
#include "data/tokenizer.h"
#include "model/gpt2.h"

typedef struct {
    GPT2 model;
    Tokenizer *tokenizer;
} Trained;

/* Opens --model or the first argument (a model file or a run folder), for batches of B sequences of T tokens
 * (T 0: the context; longer ones are refused), and its tokenizer: --tokenizer, or the one in the model's folder, or
 * byte and GPT-2's own when the vocabulary fits. A tokenizer with more ids than the model is an error. */
bool trained_open(Trained *t, const Options *options, size_t B, size_t T, Error *err);
void trained_close(Trained *t);
#endif
