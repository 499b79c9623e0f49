/* sample.h: from logits to a token. */
#ifndef LLMC_SAMPLE_H
#define LLMC_SAMPLE_H
#include <stdint.h>

typedef struct {
    double temperature; /* 0: the most likely token */
    int top_k;          /* only the k most likely; 0: all */
    double top_p;       /* only the most likely that together reach p (nucleus: arXiv 1904.09751); 1: all */
    uint64_t seed;
} SampleConfig;

/* One token from logits (vocab), on the host, which are overwritten. A pure function of the logits, the
 * configuration and index (the number of the draw). Ties go to the lower id. All logits NaN or -inf: token 0. */
int sample_token(float *logits, int vocab, const SampleConfig *config, uint64_t index);
#endif
