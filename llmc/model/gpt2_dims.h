/* gpt2_dims.h: the dimensions by their usual letters, for the files that spell out the walk and the tensor
 * table. */
#ifndef LLMC_GPT2_DIMS_H
#define LLMC_GPT2_DIMS_H
#include "base/check.h"
#include "model/gpt2.h"

/* Of a configuration: what the shapes in PARAM_TENSORS are written with. */
#define CONFIG_DIMS(config)                                                                                  \
    size_t C = (size_t)(config)->channels, L = (size_t)(config)->layers, NH = (size_t)(config)->heads,       \
           V = (size_t)(config)->vocab, Vp = (size_t)(config)->vocab_padded,                                 \
           maxT = (size_t)(config)->context;                                                                 \
    (void)C, (void)L, (void)NH, (void)V, (void)Vp, (void)maxT

/* Of a model and its batch: N = B*T rows, HS channels a head, W the attention window. */
#define GPT2_DIMS(m)                                                                                         \
    CONFIG_DIMS(&(m)->config);                                                                               \
    size_t B = (m)->B, T = (m)->T, N = B * T, HS = C / NH, W = (size_t)(m)->config.window;                   \
    (void)N, (void)HS, (void)W

/* Under tensor parallelism one rank alone adds what must be added once. */
#define ONCE(tensor) (m->tp_first ? (tensor) : NULL)
#endif
