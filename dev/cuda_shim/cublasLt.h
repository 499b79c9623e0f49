/* cublasLt.h: the part of cuBLASLt that llmc/cuda/gemm_cublaslt.cuh uses, on the CPU: matrices by columns, the epilogues,
 * three proposals for every product, after one that cannot run. The second gives the bits of the first; the third adds up
 * backwards in half the time, and so gives others. A product whose leading dimensions are all odd is refused, and so is an epilogue with auxiliary data whose leading
 * dimension is no multiple of 8. */
#ifndef SHIM_CUBLASLT_H
#define SHIM_CUBLASLT_H
#include "cuda/gelu.cuh"
#include "cuda/gpu.h"

typedef enum { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_NOT_SUPPORTED = 15 } cublasStatus_t;
typedef enum { CUBLAS_OP_N, CUBLAS_OP_T } cublasOperation_t;
typedef enum { CUDA_R_32F, CUDA_R_16BF = 14 } cudaDataType_t;
typedef enum { CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_32F_FAST_16BF = 75 } cublasComputeType_t;
typedef enum {
    CUBLASLT_EPILOGUE_DEFAULT = 1,
    CUBLASLT_EPILOGUE_BIAS = 4,
    CUBLASLT_EPILOGUE_GELU_AUX = 32 | 128,
    CUBLASLT_EPILOGUE_GELU_AUX_BIAS = 32 | 128 | 4,
    CUBLASLT_EPILOGUE_DGELU = 64 | 128,
} cublasLtEpilogue_t;
typedef enum { CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2 } cublasLtReductionScheme_t;
typedef enum {
    CUBLASLT_MATMUL_DESC_TRANSA,
    CUBLASLT_MATMUL_DESC_TRANSB,
    CUBLASLT_MATMUL_DESC_EPILOGUE,
    CUBLASLT_MATMUL_DESC_BIAS_POINTER,
    CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD,
} cublasLtMatmulDescAttributes_t;
typedef enum {
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
    CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
} cublasLtMatmulPreferenceAttributes_t;

struct ShimMatmulDesc {
    cublasOperation_t transposed_a, transposed_b;
    cublasLtEpilogue_t epilogue;
    const floatX *bias;
    floatX *aux;
    int64_t aux_ld;
};
struct ShimLayout {
    uint64_t rows, cols;
    int64_t ld;
};
typedef ShimMatmulDesc *cublasLtMatmulDesc_t;
typedef ShimLayout *cublasLtMatrixLayout_t;
typedef struct shim_preference *cublasLtMatmulPreference_t;
typedef struct shim_lt *cublasLtHandle_t;
typedef struct {
    int number;
} cublasLtMatmulAlgo_t;
typedef struct {
    cublasLtMatmulAlgo_t algo;
    cublasStatus_t state;
} cublasLtMatmulHeuristicResult_t;

inline const char *cublasLtGetStatusString(cublasStatus_t status) {
    return status == CUBLAS_STATUS_SUCCESS ? "success" : "not supported";
}
inline cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    *handle = reinterpret_cast<cublasLtHandle_t>(1);
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t,
                                               cudaDataType_t) {
    *desc = new ShimMatmulDesc();
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                                     cublasLtMatmulDescAttributes_t name, const void *value,
                                                     size_t bytes) {
    switch (name) {
    case CUBLASLT_MATMUL_DESC_TRANSA: memcpy(&desc->transposed_a, value, bytes); break;
    case CUBLASLT_MATMUL_DESC_TRANSB: memcpy(&desc->transposed_b, value, bytes); break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE: memcpy(&desc->epilogue, value, bytes); break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: memcpy(&desc->bias, value, bytes); break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER: memcpy(&desc->aux, value, bytes); break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD: memcpy(&desc->aux_ld, value, bytes); break;
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: break;
    }
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType_t,
                                                 uint64_t rows, uint64_t cols, int64_t ld) {
    *layout = new ShimLayout{rows, cols, ld};
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    *preference = nullptr;
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t,
                                                           cublasLtMatmulPreferenceAttributes_t, const void *,
                                                           size_t) {
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t) {
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc,
                                                     cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                     cublasLtMatrixLayout_t, cublasLtMatrixLayout_t d,
                                                     cublasLtMatmulPreference_t, int wanted,
                                                     cublasLtMatmulHeuristicResult_t results[], int *count) {
    *count = 0;
    if (a->ld % 2 && b->ld % 2 && d->ld % 2) return CUBLAS_STATUS_NOT_SUPPORTED;
    if ((desc->epilogue & 128) && desc->aux_ld % 8) return CUBLAS_STATUS_NOT_SUPPORTED;
    for (; *count < wanted && *count < 4; (*count)++)
        results[*count] = {{*count - 1}, *count ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED};
    return CUBLAS_STATUS_SUCCESS;
}

inline void shim_matmul(const ShimMatmulDesc &desc, float beta, const floatX *a, const ShimLayout &la,
                        const floatX *b, const ShimLayout &lb, const floatX *c, floatX *d,
                        const ShimLayout &ld, bool backwards) {
    uint64_t inner = desc.transposed_a ? la.rows : la.cols;
    if ((desc.transposed_a ? la.cols : la.rows) != ld.rows ||
        (desc.transposed_b ? lb.rows : lb.cols) != ld.cols ||
        (desc.transposed_b ? lb.cols : lb.rows) != inner)
        shim::die("cublasLtMatmul: shapes do not match");
    auto at = [](const floatX *x, const ShimLayout &l, uint64_t row, uint64_t col) {
        if (row >= l.rows || col >= l.cols || (uint64_t)l.ld < l.rows) shim::die("cublasLtMatmul: outside");
        return to_float(x[row + col * (uint64_t)l.ld]);
    };
    for (uint64_t j = 0; j < ld.cols; j++)
        for (uint64_t i = 0; i < ld.rows; i++) {
            float sum = 0;
            for (uint64_t step = 0; step < (backwards ? inner : 2 * inner); step++) {
                if (step == inner) sum = 0; /* all over again */
                uint64_t k = backwards ? inner - 1 - step : step % inner;
                sum += (desc.transposed_a ? at(a, la, k, i) : at(a, la, i, k)) *
                       (desc.transposed_b ? at(b, lb, j, k) : at(b, lb, k, j));
            }
            if (beta != 0) sum += beta * at(c, ld, i, j);
            if (desc.epilogue & 4) sum += to_float(desc.bias[i]);
            floatX *aux = desc.aux ? desc.aux + i + j * (uint64_t)desc.aux_ld : nullptr;
            if (desc.epilogue & 32) {
                *aux = from_float<floatX>(sum);
                sum = gelu(sum);
            }
            if (desc.epilogue & 64) sum *= gelu_grad(to_float(*aux));
            d[i + j * (uint64_t)ld.ld] = from_float<floatX>(sum);
        }
}

inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void *, const void *a,
                                     cublasLtMatrixLayout_t la, const void *b, cublasLtMatrixLayout_t lb,
                                     const void *beta, const void *c, cublasLtMatrixLayout_t, void *d,
                                     cublasLtMatrixLayout_t ld, const cublasLtMatmulAlgo_t *algorithm, void *,
                                     size_t, cudaStream_t stream) {
    ShimMatmulDesc description = *desc; /* the caller may change it before the stream comes to this */
    float factor = *static_cast<const float *>(beta);
    bool backwards = algorithm->number == 2;
    const floatX *x = static_cast<const floatX *>(a), *y = static_cast<const floatX *>(b),
                 *z = static_cast<const floatX *>(c);
    floatX *out = static_cast<floatX *>(d);
    shim::stream_push(stream,
                      [=] { shim_matmul(description, factor, x, *la, y, *lb, z, out, *ld, backwards); });
    return CUBLAS_STATUS_SUCCESS;
}
#endif
