/* gemm.h: the one matrix product that the CUDA kernels call, and what may be fused to it. On a GPU it is cuBLASLt
 * (gemm_cublaslt.cuh); under the shim dev/cuda_shim/gemm_naive.h. Row-major, contiguous. */
#ifndef LLMC_GEMM_H
#define LLMC_GEMM_H
#include "cuda/gpu.h"

enum Epilogue {
    EPILOGUE_NONE,
    EPILOGUE_GELU,  /* out = gelu(sum), and pre = sum */
    EPILOGUE_DGELU, /* out = sum * gelu'(pre) */
};
/* out (rows,cols) = epilogue(a (rows,inner) b (inner,cols) + add (rows,cols) + bias (cols)). */
struct Gemm {
    floatX *out;
    const floatX *a, *b;
    bool a_transposed, b_transposed; /* stored as (inner,rows), (cols,inner) */
    size_t rows, cols, inner;
    const floatX *add;  /* NULL: none; may be out. Not with an epilogue */
    const floatX *bias; /* NULL: none. Not with EPILOGUE_DGELU */
    Epilogue epilogue;
    floatX *pre; /* (rows,cols), for the epilogues that name it; only read by EPILOGUE_DGELU */
};
/* In the stream. Accumulates in fp32; what is multiplied is floatX, or bf16 where gpu.precision says so. */
inline void gemm(const Gemm &g);
#endif
