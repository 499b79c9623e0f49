/* adamw.h: the optimizer's state and step over ranges of the model's flat arrays.
 *
 * They are the whole model, or this rank's shares of it: nothing here depends on where a range starts or ends. Which
 * tensors decay is in tensors.h. Loshchilov, Hutter, "Decoupled weight decay regularization", arXiv 1711.05101. */
#ifndef LLMC_ADAMW_H
#define LLMC_ADAMW_H
#include "model/gpt2.h"

typedef struct {
    float beta1, beta2, epsilon, weight_decay;
    uint64_t seed; /* of the rounding of bf16 parameters */
} AdamWConfig;

/* Elements begin <= i < end of the flat arrays. */
typedef struct {
    size_t begin, end;
} AdamWRange;

typedef struct {
    AdamWConfig config;
    AdamWRange *ranges; /* what it updates, ascending */
    int num_ranges;
    size_t count;  /* elements in all of them */
    float *m, *v;  /* (count) first and second moment, fp32, range behind range */
    float *master; /* (count) the parameters in fp32, from the first update on; NULL where floatX is float */
    bool master_is_set;
    int step; /* updates done */
} AdamW;

/* Bytes of m and v, and of master if there is one, for n elements. */
size_t adamw_bytes(size_t n);
/* Moments zero, step 0. master is set from the parameters by the first update, unless master_is_set by then (from a
 * saved state). The ranges are copied; they do not overlap and may be empty. */
bool adamw_init(AdamW *o, const AdamWConfig *config, const AdamWRange *ranges, int num_ranges, Error *err);
void adamw_free(AdamW *o);
/* One step on the ranges, with the gradients of m times grad_scale (the clipping factor); leaves those zero. */
void adamw_update(AdamW *o, GPT2 *m, double learning_rate, double grad_scale);
#endif
