/* generate.h: one token at a time with a cache of keys and values.
 *
 * Works on a model's weights, packed once as fp32, bf16 or int8. A step reads every weight once, so its speed is
 * memory bandwidth over weight bytes. Positions are learned, so a context that is full starts again from its newer
 * half. */
#ifndef LLMC_GENERATE_H
#define LLMC_GENERATE_H
#include "model/gpt2.h"
#include "model/kernels.h"

typedef struct {
    const GPT2 *model;
    PackedWeight *weights; /* four per layer (qkvw, attprojw, fcw, fcprojw), then the head */
    void *memory;          /* packed weights, cache and scratch: one allocation */
    size_t memory_bytes;
    floatX *keys, *values; /* (L, slots, C) */
    floatX *x, *ln, *qkv, *atty, *wide, *logits;
    float *mean, *rstd;
    int32_t *token;     /* on the device */
    float *host_logits; /* (Vp) */
    int32_t *history;   /* (context) tokens in the cache, oldest first */
    size_t slots;
    WeightType type;
    int length; /* tokens in the cache */
} Generator;

/* The model must outlive the generator; its activations are not used. */
bool generator_init(Generator *g, const GPT2 *model, WeightType type, Error *err);
void generator_free(Generator *g);
/* Forgets all tokens; generator_repack also packs the weights anew, after the model has been trained further. */
void generator_reset(Generator *g);
void generator_repack(Generator *g);
/* Appends a token (0 <= token < vocab) and returns the logits (vocab) of what follows; valid until the next step. */
float *generator_step(Generator *g, int32_t token);
#endif
