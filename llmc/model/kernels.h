/* kernels.h: the contract between the model and a kernel set. One set is chosen at link time: llmc/cpu or
 * llmc/cuda.
 *
 * Row-major, contiguous. B batch, T time, C channels (NH heads of HS), V vocabulary, Vp padded; N = B*T rows;
 * OC is the output width of a matmul with weight (OC, C). `d` prefix: gradient. Backward kernels ADD to
 * gradients of parameters (dw, db, dwte, dwpe) and overwrite gradients of activations, but for
 * layernorm_backward (see there). Any size works, odd ones too. The same inputs give the same bits, for any
 * number of threads. Nothing fails: sizes are checked when a model is made. */
#ifndef LLMC_KERNELS_H
#define LLMC_KERNELS_H
#include "model/device.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

/* out (B,T,C) = wte[tokens (B,T)] + wpe[t]; wte (Vp,C), wpe (maxT,C). */
void encoder_forward(floatX *out, const int32_t *tokens, const floatX *wte, const floatX *wpe, size_t B,
                     size_t T, size_t C);
/* dwte, dwpe += dout (B,T,C) where the forward read them. */
void encoder_backward(floatX *dwte, floatX *dwpe, const floatX *dout, const int32_t *tokens, size_t B,
                      size_t T, size_t C);

/* out (N,C) = (x - mean) * rstd * w + b; mean, rstd (N) are written; eps 1e-5. Ba, Kiros, Hinton, arXiv
 * 1607.06450. */
void layernorm_forward(floatX *out, float *mean, float *rstd, const floatX *x, const floatX *w,
                       const floatX *b, size_t N, size_t C);
/* The output of layernorm_forward again, from the mean and rstd (N) that it kept. */
void layernorm_recompute(floatX *out, const float *mean, const float *rstd, const floatX *x, const floatX *w,
                         const floatX *b, size_t N, size_t C);
/* dx (N,C) += (the gradient that reaches x past the block is already in it); dw, db (C) +=. */
void layernorm_backward(floatX *dx, floatX *dw, floatX *db, const floatX *dout, const floatX *x,
                        const floatX *w, const float *mean, const float *rstd, size_t N, size_t C);

/* out (N,OC) = residual + x (N,C) wT + bias; w (OC,C). bias and residual may be NULL; residual may be out. */
void matmul_forward(floatX *out, const floatX *x, const floatX *w, const floatX *bias, const floatX *residual,
                    size_t N, size_t C, size_t OC);
/* pre (N,OC) = x wT + bias; out (N,OC) = gelu(pre), the tanh form: Hendrycks, Gimpel, arXiv 1606.08415. */
void matmul_gelu_forward(floatX *out, floatX *pre, const floatX *x, const floatX *w, const floatX *bias,
                         size_t N, size_t C, size_t OC);
/* dx (N,C) = dout (N,OC) w; dw (OC,C) += doutT x; db (OC) += column sums of dout, unless db is NULL. */
void matmul_backward(floatX *dx, floatX *dw, floatX *db, const floatX *dout, const floatX *x, const floatX *w,
                     size_t N, size_t C, size_t OC);
/* The same for an input x = gelu(pre (N,C)): dpre (N,C) is the gradient before the GELU. recompute: x (N,C) is first
 * made from pre. */
void matmul_gelu_backward(floatX *dpre, floatX *x, floatX *dw, floatX *db, const floatX *dout,
                          const floatX *pre, const floatX *w, size_t N, size_t C, size_t OC, bool recompute);

/* Causal self-attention over packed qkv (B,T,3,NH,HS): out (B,T,NH,HS); lse (B,NH,T) = log sum exp of the
 * scaled scores. Row t sees columns max(0, t-window+1) .. t; window 0: all up to t. Never builds T x T;
 * O(T*window). Dao et al., arXiv 2205.14135; the window: Beltagy et al., arXiv 2004.05150. */
void attention_forward(floatX *out, float *lse, const floatX *qkv, size_t B, size_t T, size_t NH, size_t HS,
                       size_t window);
/* dqkv (B,T,3,NH,HS) from dout, out (B,T,NH,HS) and lse; dqkv is overwritten. */
void attention_backward(floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                        const floatX *qkv, size_t B, size_t T, size_t NH, size_t HS, size_t window);

/* losses (N) = cross-entropy of logits (N,Vp) against targets (N), over the first V columns. A target < 0 is
 * not counted: loss 0, gradient 0. If dloss != 0 the logits become their gradient times dloss, columns V..Vp
 * zero. */
void classifier(floatX *logits, float *losses, const int32_t *targets, float dloss, size_t N, size_t V,
                size_t Vp);

/* One AdamW step over n elements; Loshchilov, Hutter, arXiv 1711.05101. p -= lr * (m' / (sqrt(v') + eps) +
 * decay * p) with m, v fp32 and bias-corrected (step counts from 1); the gradient is first multiplied by
 * grad_scale, and is zero afterwards, ready for the next step to add to. Where floatX is bf16 the step is taken on
 * master, fp32, and p is master rounded stochastically; elsewhere master is NULL. */
typedef struct {
    float lr, beta1, beta2, eps, decay, grad_scale;
    int step;
    uint64_t seed; /* of the rounding */
    size_t first;  /* index of p[0] among all parameters, which the rounding of p[i] depends on */
} AdamWArgs;
void adamw_kernel(floatX *p, float *master, floatX *g, float *m, float *v, size_t n, const AdamWArgs *args);

/* The sum of squares of x (n) in double, added in an order that depends on n alone; waits for the result. */
double sum_of_squares(const floatX *x, size_t n);

/* --- gradients that are summed over micro-batches and ranks in any order (llmc/run/exact_sum.h) --- */

/* A block of EXACT_BLOCK elements (the last of n may be shorter) has a grid of its own. A level is an exponent field of
 * fp32: a block of level L holds magnitudes below 2^(L-126), 2^bits steps high (L < 32 counts as 32: steps stay normal
 * numbers). most: the level that the magnitudes did need; 255 if one was not finite. */
enum { EXACT_BLOCK = 256 };
/* sums (n) += g (n) on the grid of its block, rounded to nearest even, or = if first; g becomes zero; most (blocks)
 * becomes the maximum of itself (if not first) and of what g needed. Where most exceeds levels the sums are worthless.
 * 2 <= bits <= 30; a caller adds at most 2^(30-bits) times. */
void exact_add(int32_t *sums, floatX *g, uint8_t *most, const uint8_t *levels, size_t n, int bits,
               bool first);
/* g (n) = sums (n) back from the grid, rounded once; squares (blocks): the sum of squares of each block of g. */
void exact_read(floatX *g, double *squares, const int32_t *sums, const uint8_t *levels, size_t n, int bits);

/* out (n) = x rounded to nearest even; NaN stays NaN. And back. */
void bf16_from_floats(uint16_t *out, const floatX *x, size_t n);
void bf16_to_floats(floatX *x, const uint16_t *in, size_t n);

/* --- one token at a time, for generation --- */

typedef enum { WEIGHT_FP32, WEIGHT_BF16, WEIGHT_INT8 } WeightType;
/* A weight (OC,C) as generation reads it. INT8: groups of 64 along C share a scale (absolute maximum / 127);
 * the rows are padded to a multiple of 64 columns with zeros. */
typedef struct {
    WeightType type;
    size_t OC, C;
    void *data;
    float *scales;
} PackedWeight;
/* Bytes that data and scales need. */
size_t packed_weight_bytes(WeightType type, size_t OC, size_t C);
/* Fills memory (packed_weight_bytes, 64-byte aligned) from w (OC,C) and returns the view of it. */
PackedWeight packed_weight_make(WeightType type, void *memory, const floatX *w, size_t OC, size_t C);
/* out (OC) = residual + w x + bias; bias and residual may be NULL; residual may be out. Reads the weight
 * once. */
void matvec_forward(floatX *out, const floatX *x, PackedWeight w, const floatX *bias, const floatX *residual);
/* out = gelu(x), n elements; may be in place. */
void gelu_forward(floatX *out, const floatX *x, size_t n);
/* One query against a cache: qkv (3,NH,HS) of position t; its key and value are first written into keys and
 * values (slots,NH,HS) at t % slots; out (NH,HS) attends to the last min(t+1, slots, window or all)
 * positions. */
void attention_decode(floatX *out, floatX *keys, floatX *values, const floatX *qkv, size_t t, size_t slots,
                      size_t NH, size_t HS, size_t window);

#ifdef __cplusplus
}
#endif
#endif
