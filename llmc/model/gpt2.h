/* gpt2.h: GPT-2 as one walk over the kernels of kernels.h.
 *
 * Radford et al., "Language models are unsupervised multitask learners", 2019: learned positions,
 * pre-LayerNorm blocks, tanh GELU, output head tied to the token embedding. What always holds: one allocation
 * per class (parameters, gradients, activations), made before the first step; parameters and gradients are
 * flat arrays with the same layout: the MODEL tensors first, then one block per layer, so a layer's gradients
 * are one range. */
#ifndef LLMC_GPT2_H
#define LLMC_GPT2_H
#include "base/error.h"
#include "model/device.h"
#include "model/tensors.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    int context;      /* longest sequence, tokens */
    int vocab;        /* V */
    int vocab_padded; /* Vp: V rounded up to a multiple of 128; the extra rows are zero and stay zero */
    int layers, heads, channels;
    int window; /* attention window, tokens; 0: all before */
} GPT2Config;

/* Rounds vocab up to the multiple of 128 that vocab_padded holds. */
int gpt2_pad_vocab(int vocab);
/* Says what is wrong with a configuration, if anything (sizes, heads that do not divide channels, overflow).
 */
bool gpt2_config_check(const GPT2Config *config, Error *err);

/* --- tensors --- */

typedef struct {
    const char *name;
    int scope;         /* MODEL or LAYER */
    size_t rows, cols; /* of one layer; vectors: cols 1 */
    int init, decay, split, transposed;
    const char *huggingface; /* %d: the layer */
} TensorInfo;

/* tensor: TENSOR_wte .. TENSOR_lnfb. */
TensorInfo gpt2_tensor(const GPT2Config *config, int tensor);
/* Elements before this tensor in the flat array; layer is ignored for MODEL tensors. */
size_t gpt2_tensor_offset(const GPT2Config *config, int tensor, int layer);
/* The range of layer l, or with l == -1 of the MODEL tensors, in the flat array. */
void gpt2_layer_range(const GPT2Config *config, int layer, size_t *begin, size_t *end);
/* Elements of the flat array (the padded vocabulary included). */
size_t gpt2_param_count(const GPT2Config *config);

/* Useful FLOPs of one training step per token, the numerator of MFU: 6 per weight of a matmul (12 L C^2 + V C of
 * them) and 12 L C per pair of a token and one it may see, of which there are on average (T+1)/2 without a window. */
double gpt2_flops_per_token(const GPT2Config *config, size_t T);

#define X(name, ...) floatX *name;
typedef struct {
    PARAM_TENSORS(X)
} Params;
#undef X
#define X(name, scope, type, rows, cols) type *name;
typedef struct {
    ACT_TENSORS(X)
} Acts;
#undef X

/* --- the model --- */

/* The only places where communication meets computation. NULL: not called. */
typedef struct {
    void *ctx;
    /* The gradients of this layer (-1: of the MODEL tensors) are complete; called in the order L-1 .. 0, -1.
     */
    void (*layer_done)(void *ctx, int layer);
    /* The parameters of this layer (-1: the MODEL tensors) are about to be read by the forward. */
    void (*layer_needed)(void *ctx, int layer);
    /* Tensor parallelism: sum x (n) over the ranks that hold parts of one matmul, in the forward and
     * backward. */
    void (*tp_sum)(void *ctx, floatX *x, size_t n);
} GPT2Hooks;

/* What memory there is for. RECOMPUTING: LayerNorm and GELU outputs are not kept for the backward, which computes them
 * again: a third less memory for activations, and the same results but for the rounding of GELU's in bf16. */
typedef enum { GPT2_INFERENCE, GPT2_TRAINING, GPT2_TRAINING_RECOMPUTING } GPT2Mode;

typedef struct {
    GPT2Config config;
    GPT2Mode mode;
    size_t B, T;                /* the largest batch and sequence that the activations hold; T <= context */
    size_t head_rows;           /* rows of logits held at once */
    int layer_begin, layer_end; /* the layers of this pipeline stage: 0 .. layers for one stage */
    bool tp_first; /* adds biases and residuals of matmuls split by columns; true without a split */
    GPT2Hooks hooks;
    floatX *params, *grads; /* param_count each; grads is NULL for inference */
    void *acts;
    size_t param_count, acts_bytes;
    bool borrowed; /* params and grads belong to someone else */
} GPT2;

/* Bytes that gpt2_init allocates; the optimizer's are adamw_bytes. */
size_t gpt2_bytes(const GPT2Config *config, size_t B, size_t T, size_t head_rows, GPT2Mode mode);
/* Allocates; all zero. B, T, head_rows >= 1; head_rows is cut to B*T. */
bool gpt2_init(GPT2 *m, const GPT2Config *config, size_t B, size_t T, size_t head_rows, GPT2Mode mode,
               Error *err);
/* From now on the parameters and gradients (param_count each, zero, device memory) are these, which stay their owner's. */
void gpt2_use_arrays(GPT2 *m, floatX *params, floatX *grads);
void gpt2_free(GPT2 *m);
/* Weights as GPT-2's: a function of the seed and the shape alone. */
void gpt2_init_weights(GPT2 *m, uint64_t seed);

/* Views: every LAYER pointer is that of `layer`; arena is m->params or m->grads. */
Params gpt2_params(const GPT2 *m, floatX *arena, int layer);
Acts gpt2_acts(const GPT2 *m, int layer);

/* tokens, targets (B,T), device memory, ids below V; a target < 0 is not counted. Smaller B and T than at
 * gpt2_init are set in m->B and m->T before a forward. */
void gpt2_forward(GPT2 *m, const int32_t *tokens);
/* Losses of the last forward. dloss != 0: also starts the backward, with dloss the weight of each row's loss
 * (1 / (rows of the whole step)): gradients of wte and of the last LayerNorm's output. */
void gpt2_loss(GPT2 *m, const int32_t *targets, float dloss);
/* After gpt2_loss with dloss != 0: ADDS the gradients of all parameters. */
void gpt2_backward(GPT2 *m, const int32_t *tokens);

/* Sum of the losses of the last gpt2_loss over its B*T rows, in double; waits for the device. */
double gpt2_loss_sum(const GPT2 *m);
/* logits (rows,Vp) of `rows` rows from row `first` of the last forward, as fp32 on the host; rows <=
 * head_rows. */
void gpt2_read_logits(GPT2 *m, size_t first, size_t rows, float *logits);
#endif
