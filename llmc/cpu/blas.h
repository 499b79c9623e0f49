/* blas.h: the matmuls of kernels.h through a library's cblas_sgemm (make BLAS=openblas|blis|mkl).
 *
 * dispatch.c calls these instead of its own when the build has a BLAS and the precision is fp32: the
 * libraries have no bf16. Which results are the same bits for any number of threads is then the library's
 * business. */
#ifndef LLMC_BLAS_H
#define LLMC_BLAS_H
#include "model/kernels.h"

#ifdef USE_BLAS
__typeof__(matmul_forward) blas_matmul_forward;
__typeof__(matmul_gelu_forward) blas_matmul_gelu_forward;
__typeof__(matmul_backward) blas_matmul_backward;
__typeof__(matmul_gelu_backward) blas_matmul_gelu_backward;
#endif
#endif
