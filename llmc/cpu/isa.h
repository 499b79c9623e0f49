/* isa.h: how a CPU kernel exists once in the source and once per instruction set in the binary.
 *
 * Inside a kernel file `void KERNEL(gelu_forward)(...)` defines gelu_forward_avx2 when compiled for avx2.
 * dispatch.c holds a table of these per ISA, and the public gelu_forward, which calls through the chosen one.
 */
#ifndef LLMC_ISA_H
#define LLMC_ISA_H
#include "model/kernels.h"

#define JOIN_(a, b)  a##_##b
#define JOIN(a, b)   JOIN_(a, b)
#define KERNEL(name) JOIN(name, ISA)

/* Everything that is compiled per ISA and called from outside it; CPU_PRODUCTS: what multiplies pairs of bf16 where
 * the processor does. */
#define CPU_KERNELS(X) CPU_PRODUCTS(X) CPU_OTHERS(X)
#define CPU_PRODUCTS(X)                                                                                      \
    X(device_peak_flops)                                                                                     \
    X(matmul_forward)                                                                                        \
    X(matmul_gelu_forward)                                                                                   \
    X(matmul_backward)                                                                                       \
    X(matmul_gelu_backward)                                                                                  \
    X(attention_forward)                                                                                     \
    X(attention_backward)
#define CPU_OTHERS(X)                                                                                        \
    X(encoder_forward)                                                                                       \
    X(encoder_backward)                                                                                      \
    X(layernorm_forward)                                                                                     \
    X(layernorm_recompute)                                                                                   \
    X(layernorm_backward)                                                                                    \
    X(classifier)                                                                                            \
    X(adamw_kernel)                                                                                          \
    X(sum_of_squares)                                                                                        \
    X(exact_add)                                                                                             \
    X(exact_read)                                                                                            \
    X(bf16_from_floats)                                                                                      \
    X(bf16_to_floats)                                                                                        \
    X(packed_weight_make)                                                                                    \
    X(matvec_forward)                                                                                        \
    X(gelu_forward)                                                                                          \
    X(attention_decode)

#define X(name) __typeof__(name) *name;
typedef struct {
    CPU_KERNELS(X)
} CpuKernels;
#undef X

#ifdef ISA
#define X(name) __typeof__(name) KERNEL(name);
CPU_KERNELS(X)
#undef X
#endif

/* Set by device_open and device_precision_set; read by the matmuls. */
extern Precision cpu_precision;
extern int cpu_threads;

/* Scratch that a kernel keeps between calls, one slot per use, grown when asked for more than it holds (so it
 * grows in the first step only). 2 MiB aligned, not zeroed after the first time. Call outside parallel
 * regions. */
enum { SCRATCH_GEMM, SCRATCH_ATTENTION, SCRATCH_REDUCE, SCRATCH_DECODE, NUM_SCRATCH };
void *cpu_scratch(int slot, size_t bytes);
#endif
