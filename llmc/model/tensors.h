/* tensors.h: the one place that knows which tensors exist.
 *
 * Structs, sizes, layer views, initialisation, weight decay, tensor-parallel split, file names and test loops
 * are generated from these two tables. A tensor is rows x cols, row-major; vectors have cols 1.
 * Dimensions: V vocabulary, Vp the same padded, maxT context, L layers, NH heads, C channels; N = B*T rows of a
 * batch of B sequences of T tokens. */
#ifndef LLMC_TENSORS_H
#define LLMC_TENSORS_H

/* clang-format off */
/* Parameters, in file and memory order within their scope.
 *   X(name, scope, rows, cols, init, decay, split, transposed, huggingface)
 *   scope       MODEL: one. LAYER: one per layer.
 *   init        NORMAL: N(0, 0.02). SCALED: N(0, 0.02 / sqrt(2 L)), for what adds to the residual. ZERO, ONE.
 *   decay       1: AdamW decays it (matrices). 0: it does not (biases, LayerNorm).
 *   split       under tensor parallelism: WHOLE on every rank, by ROWS, by COLS, or QKV (rows, in each third by head).
 *   transposed  1: Hugging Face stores cols x rows (its Conv1D).
 *   huggingface its name there; %d is the layer. */
#define PARAM_TENSORS(X) \
    X(wte,      MODEL, Vp,    C,     NORMAL, 1, ROWS,  0, "wte.weight") \
    X(wpe,      MODEL, maxT,  C,     NORMAL, 1, WHOLE, 0, "wpe.weight") \
    X(ln1w,     LAYER, C,     1,     ONE,    0, WHOLE, 0, "h.%d.ln_1.weight") \
    X(ln1b,     LAYER, C,     1,     ZERO,   0, WHOLE, 0, "h.%d.ln_1.bias") \
    X(qkvw,     LAYER, 3 * C, C,     NORMAL, 1, QKV,   1, "h.%d.attn.c_attn.weight") \
    X(qkvb,     LAYER, 3 * C, 1,     ZERO,   0, QKV,   0, "h.%d.attn.c_attn.bias") \
    X(attprojw, LAYER, C,     C,     SCALED, 1, COLS,  1, "h.%d.attn.c_proj.weight") \
    X(attprojb, LAYER, C,     1,     ZERO,   0, WHOLE, 0, "h.%d.attn.c_proj.bias") \
    X(ln2w,     LAYER, C,     1,     ONE,    0, WHOLE, 0, "h.%d.ln_2.weight") \
    X(ln2b,     LAYER, C,     1,     ZERO,   0, WHOLE, 0, "h.%d.ln_2.bias") \
    X(fcw,      LAYER, 4 * C, C,     NORMAL, 1, ROWS,  1, "h.%d.mlp.c_fc.weight") \
    X(fcb,      LAYER, 4 * C, 1,     ZERO,   0, ROWS,  0, "h.%d.mlp.c_fc.bias") \
    X(fcprojw,  LAYER, C,     4 * C, SCALED, 1, COLS,  1, "h.%d.mlp.c_proj.weight") \
    X(fcprojb,  LAYER, C,     1,     ZERO,   0, WHOLE, 0, "h.%d.mlp.c_proj.bias") \
    X(lnfw,     MODEL, C,     1,     ONE,    0, WHOLE, 0, "ln_f.weight") \
    X(lnfb,     MODEL, C,     1,     ZERO,   0, WHOLE, 0, "ln_f.bias")

/* What the forward keeps for the backward, and the scratch of both.
 *   X(name, scope, type, rows, cols)
 *   scope       KEPT: one per layer, or, where the backward computes them again (GPT2Mode), one. */
#define ACT_TENSORS(X) \
    X(encoded,   MODEL, floatX, N,         C) \
    X(ln1_mean,  LAYER, float,  N,         1) \
    X(ln1_rstd,  LAYER, float,  N,         1) \
    X(qkv,       LAYER, floatX, N,         3 * C) \
    X(atty,      LAYER, floatX, N,         C) \
    X(lse,       LAYER, float,  N * NH,    1) \
    X(residual2, LAYER, floatX, N,         C) \
    X(ln2_mean,  LAYER, float,  N,         1) \
    X(ln2_rstd,  LAYER, float,  N,         1) \
    X(fch,       LAYER, floatX, N,         4 * C) \
    X(residual3, LAYER, floatX, N,         C) \
    X(lnf,       MODEL, floatX, N,         C) \
    X(lnf_mean,  MODEL, float,  N,         1) \
    X(lnf_rstd,  MODEL, float,  N,         1) \
    X(ln1,       KEPT,  floatX, N,         C) \
    X(ln2,       KEPT,  floatX, N,         C) \
    X(gelu,      KEPT,  floatX, N,         4 * C) \
    X(logits,    MODEL, floatX, head_rows, Vp) \
    X(losses,    MODEL, float,  N,         1) \
    X(dresidual, MODEL, floatX, N,         C) \
    X(dbranch,   MODEL, floatX, N,         C) \
    X(dwide,     MODEL, floatX, N,         4 * C)

/* clang-format on */

enum { MODEL, LAYER, KEPT };
enum { WHOLE, ROWS, COLS, QKV };
enum { ZERO, ONE, NORMAL, SCALED };

#define X(name, scope, rows, cols, init, decay, split, transposed, huggingface) TENSOR_##name,
enum { PARAM_TENSORS(X) NUM_PARAM_TENSORS };
#undef X
#endif
