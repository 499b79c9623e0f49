/* evaluate.h: the validation loss, while training and in `train_gpt2 eval`. */
#ifndef LLMC_EVALUATE_H
#define LLMC_EVALUATE_H
#include "base/options.h"
#include "data/loader.h"
#include "model/gpt2.h"

/* Batches of B sequences to evaluate on: `wanted`, but no more than the data has, and at least one; 0: all whole
 * ones. */
uint64_t evaluate_batches(const Loader *loader, size_t B, int wanted);

/* Adds the losses of all tokens of batch `number`, always the same sequences, to *sum. host and device: room for
 * inputs and targets of one batch, (2,B,T). */
bool evaluate_batch(GPT2 *m, Loader *loader, int32_t *host, int32_t *device, uint64_t number, double *sum,
                    Error *err);

/* --val-data: mean loss and perplexity; --hellaswag: accuracy. To stdout. */
bool evaluate_run(const Options *options, Error *err);
#endif
