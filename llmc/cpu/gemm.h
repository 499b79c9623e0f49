/* gemm.h: out (M,N) = A (M,K) B (N,K)T, with what follows a matmul done while its tile is still in registers.
 *
 * All matmuls of training, forward and backward, are this one with the operands read along one side or the other.
 * Each element is summed over k in one order that depends on K and the precision alone: the number of threads, the
 * tile that it falls in and who computed it leave no trace in its bits. */
#ifndef LLMC_GEMM_H
#define LLMC_GEMM_H
#include "cpu/isa.h"
#include <stdbool.h>

/* A matrix of rows by K: element (row, k) is data[row * stride + k] if along_k, else data[k * stride + row]. */
typedef struct {
    const float *data;
    size_t stride;
    bool along_k;
} GemmOperand;

typedef enum {
    GEMM_STORE,    /* out = sum */
    GEMM_GELU,     /* out = sum, gelu = gelu(sum) */
    GEMM_GELU_GRAD /* out = sum * gelu'(pre), gelu = gelu(pre) unless it is NULL */
} GemmFinish;

/* sum = A BT + add + bias; out, add, pre and gelu are (M,N), bias (N); NULL where there is none. add may be out. */
typedef struct {
    size_t M, N, K;
    GemmOperand a, b;
    float *out;
    const float *add, *bias, *pre;
    float *gelu;
    GemmFinish finish;
    float *a_sums; /* (M) += sums of A over k, in fp32; A must not be along_k; or NULL */
} Gemm;

#ifdef ISA
/* Runs count (1 or 2) independent products together, in the precision of cpu_precision and on cpu_threads threads. */
void KERNEL(gemm_run)(const Gemm *gemms, int count);
#endif
#endif
