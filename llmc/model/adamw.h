/* adamw.h: the optimizer's state and step over one range of the model's flat arrays.
 *
 * The range is the whole model, or this rank's shard of it: nothing here depends on where it starts or ends. Which
 * tensors decay is in tensors.h. Loshchilov, Hutter, "Decoupled weight decay regularization", arXiv 1711.05101. */
#ifndef LLMC_ADAMW_H
#define LLMC_ADAMW_H
#include "model/gpt2.h"

typedef struct {
    float beta1, beta2, epsilon, weight_decay;
} AdamWConfig;

typedef struct {
    AdamWConfig config;
    size_t begin, end; /* elements of the flat arrays that it updates */
    float *m, *v;      /* first and second moment, fp32, end - begin elements each */
    int step;          /* updates done */
} AdamW;

/* Bytes of m and v for n elements. */
size_t adamw_bytes(size_t n);
/* Moments zero, step 0; begin <= end <= param_count. */
bool adamw_init(AdamW *o, const AdamWConfig *config, size_t begin, size_t end, Error *err);
void adamw_free(AdamW *o);
/* One step on the range, with the gradients of m times grad_scale (the clipping factor); leaves those zero. */
void adamw_update(AdamW *o, GPT2 *m, double learning_rate, double grad_scale);
#endif
