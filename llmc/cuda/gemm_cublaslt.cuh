/* gemm_cublaslt.cuh: the matrix product of gemm.h by cuBLASLt.
 *
 * The first product of each shape times the algorithms that cuBLASLt proposes for it and keeps the fastest of those that
 * give the same bits as its first proposal, so the choice, which depends on the clock, never changes a result: the same
 * seed gives the same bits in every run. Sums of split products are kept in fp32. What cuBLASLt cannot do (a shape that
 * is aligned badly, an epilogue) is done by kernels of our own, so every shape works. */
#ifndef LLMC_GEMM_CUBLASLT_CUH
#define LLMC_GEMM_CUBLASLT_CUH
#include "base/check.h"
#include "base/log.h"
#include "cuda/gelu.cuh"
#include "cuda/gemm.h"
#include "cuda/gemm_plain.cuh"
#include <cublasLt.h>
#include <vector>

namespace gemm_lt {
enum {
    PROPOSALS = 12,
    TIMED_RUNS = 3,
    WORKSPACE_BYTES = 32 << 20,
    OUTPUTS_MIN = 1 << 16 /* of a product: fewer do not tell one order of additions from another in bf16 */
};

[[noreturn]] static void fail(cublasStatus_t status, int line) {
    fprintf(stderr, "error: cuBLASLt: %s, seen at %s:%d (is its version that of the CUDA toolkit?)\n",
            cublasLtGetStatusString(status), __FILE__, line);
    exit(EXIT_FAILED);
}
#define LT_CHECK(call)                                                                                       \
    do {                                                                                                     \
        cublasStatus_t lt_status = (call);                                                                   \
        if (lt_status != CUBLAS_STATUS_SUCCESS) gemm_lt::fail(lt_status, __LINE__);                          \
    } while (0)

/* What an algorithm is chosen for: everything but the addresses, of which only the alignment counts. */
struct Shape {
    size_t rows, cols, inner;
    unsigned align_a, align_b, align_add, align_out, align_bias, align_pre; /* bytes, at most 256 */
    bool a_transposed, b_transposed, adds, has_bias;
    Epilogue epilogue;
    Precision precision;
    bool operator==(const Shape &o) const {
        return rows == o.rows && cols == o.cols && inner == o.inner && align_a == o.align_a &&
               align_b == o.align_b && align_add == o.align_add && align_out == o.align_out &&
               align_bias == o.align_bias && align_pre == o.align_pre && a_transposed == o.a_transposed &&
               b_transposed == o.b_transposed && adds == o.adds && has_bias == o.has_bias &&
               epilogue == o.epilogue && precision == o.precision;
    }
};

static unsigned alignment(const void *p) {
    uintptr_t bits = reinterpret_cast<uintptr_t>(p) | 256;
    return (unsigned)(bits & (~bits + 1));
}
static Shape shape_of(const Gemm &g) {
    return {g.rows,           g.cols,
            g.inner,          alignment(g.a),
            alignment(g.b),   alignment(g.add ? g.add : g.out),
            alignment(g.out), alignment(g.bias),
            alignment(g.pre), g.a_transposed,
            g.b_transposed,   g.add != NULL,
            g.bias != NULL,   g.epilogue,
            gpu.precision};
}

/* A shape's descriptors and its algorithm. cuBLASLt thinks in columns: it computes outT = bT aT, which is (cols,rows). */
struct Plan {
    Shape shape;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t first, second, result; /* bT, aT, outT */
    cublasLtMatmulAlgo_t algorithm;
    bool possible; /* cuBLASLt can do it */
};

static cublasLtHandle_t handle;
static void *workspace() {
    return gpu_scratch(SCRATCH_MATMUL, WORKSPACE_BYTES);
}

template <class T>
static void set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t name, const T &value) {
    LT_CHECK(cublasLtMatmulDescSetAttribute(operation, name, &value, sizeof value));
}
template <class T>
static void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t name,
                const T &value) {
    LT_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, name, &value, sizeof value));
}

static const cudaDataType_t STORED = sizeof(floatX) == 2 ? CUDA_R_16BF : CUDA_R_32F;

static cublasLtEpilogue_t epilogue_of(const Shape &s) {
    switch (s.epilogue) {
    case EPILOGUE_GELU: return s.has_bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    case EPILOGUE_DGELU: return CUBLASLT_EPILOGUE_DGELU;
    default: return s.has_bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    }
}

static Plan plan_open(const Shape &s) {
    Plan p = {};
    p.shape = s;
    bool rounds = sizeof(floatX) == 4 && s.precision == PRECISION_BF16;
    LT_CHECK(cublasLtMatmulDescCreate(
        &p.operation, rounds ? CUBLAS_COMPUTE_32F_FAST_16BF : CUBLAS_COMPUTE_32F, CUDA_R_32F));
    set(p.operation, CUBLASLT_MATMUL_DESC_TRANSA, s.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(p.operation, CUBLASLT_MATMUL_DESC_TRANSB, s.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(p.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue_of(s));
    if (s.has_bias) set(p.operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, STORED);
    if (s.epilogue != EPILOGUE_NONE) set(p.operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, (int64_t)s.cols);
    size_t first_rows = s.b_transposed ? s.inner : s.cols, second_rows = s.a_transposed ? s.rows : s.inner;
    LT_CHECK(cublasLtMatrixLayoutCreate(&p.first, STORED, first_rows, s.b_transposed ? s.cols : s.inner,
                                        (int64_t)first_rows));
    LT_CHECK(cublasLtMatrixLayoutCreate(&p.second, STORED, second_rows, s.a_transposed ? s.inner : s.rows,
                                        (int64_t)second_rows));
    LT_CHECK(cublasLtMatrixLayoutCreate(&p.result, STORED, s.cols, s.rows, (int64_t)s.cols));
    return p;
}

/* Runs g by this algorithm, the result to `out`. */
static cublasStatus_t run(const Plan &p, const Gemm &g, floatX *out, floatX *pre,
                          const cublasLtMatmulAlgo_t *algorithm) {
    const float one = 1, beta = g.add ? 1 : 0;
    if (g.bias) set(p.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias);
    if (g.epilogue != EPILOGUE_NONE) set(p.operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, pre);
    return cublasLtMatmul(handle, p.operation, &one, g.b, p.first, g.a, p.second, &beta, g.add ? g.add : out,
                          p.result, out, p.result, algorithm, workspace(), WORKSPACE_BYTES, gpu.stream);
}

/* cuBLASLt's proposals, its favourite first; returns their number. */
static int proposals(const Plan &p, const Gemm &g, cublasLtMatmulHeuristicResult_t results[PROPOSALS]) {
    const Shape &s = p.shape;
    cublasLtMatmulPreference_t preference;
    LT_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (size_t)WORKSPACE_BYTES);
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        (uint32_t)CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)s.align_b);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)s.align_a);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)s.align_add);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)s.align_out);
    /* the epilogue's pointers belong to what is asked */
    if (g.bias) set(p.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias);
    if (g.epilogue != EPILOGUE_NONE) set(p.operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, g.pre);
    int count = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, p.operation, p.first, p.second, p.result,
                                                           p.result, preference, PROPOSALS, results, &count);
    LT_CHECK(cublasLtMatmulPreferenceDestroy(preference));
    int usable = 0;
    for (int i = 0; i < count && status == CUBLAS_STATUS_SUCCESS; i++)
        if (results[i].state == CUBLAS_STATUS_SUCCESS) results[usable++] = results[i];
    return usable;
}

static __global__ void compare_kernel(int *differ, const uint16_t *x, const uint16_t *y, size_t n) {
    size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)
        if (x[i] != y[i]) *differ = 1;
}
static void compare(int *differ, const floatX *x, const floatX *y, size_t n) {
    LAUNCH(compare_kernel, 1024, 256, 0, gpu.stream, differ, reinterpret_cast<const uint16_t *>(x),
           reinterpret_cast<const uint16_t *>(y), n * sizeof(floatX) / sizeof(uint16_t));
}

/* Seconds of one run, the best of a few; negative if it cannot run. The result is in out and pre. */
static double time_one(const Plan &p, const Gemm &g, floatX *out, floatX *pre,
                       const cublasLtMatmulAlgo_t *algorithm, cudaEvent_t from, cudaEvent_t to) {
    double best = -1;
    for (int i = 0; i <= TIMED_RUNS; i++) {
        float ms = 0;
        GPU_CHECK(cudaEventRecord(from, gpu.stream));
        if (run(p, g, out, pre, algorithm) != CUBLAS_STATUS_SUCCESS) return -1;
        GPU_CHECK(cudaEventRecord(to, gpu.stream));
        GPU_CHECK(cudaEventSynchronize(to));
        GPU_CHECK(cudaEventElapsedTime(&ms, from, to));
        if (i && (best < 0 || ms < best)) best = ms; /* the first run warms up */
    }
    return 1e-3 * best;
}

/* Replaces the plan's algorithm by the fastest proposal with the same bits; false: none of them runs. Without memory to
 * try in it stays, and where there is little to gain. */
static bool choose(Plan &p, const Gemm &g, const cublasLtMatmulHeuristicResult_t *results, int count) {
    size_t n = g.rows * g.cols, bytes = (n * sizeof(floatX) + 255) / 256 * 256;
    bool writes_pre = g.epilogue == EPILOGUE_GELU;
    char *memory = NULL;
    if (count < 2 || n < OUTPUTS_MIN) return true;
    if (cudaMalloc((void **)&memory, (writes_pre ? 4 : 2) * bytes + 256) != cudaSuccess) {
        cudaGetLastError(); /* so that no launch is blamed for it */
        return true;
    }
    floatX *out[2] = {(floatX *)memory, (floatX *)(memory + bytes)};
    floatX *pre[2] = {g.pre, g.pre}; /* EPILOGUE_DGELU only reads it */
    if (writes_pre) pre[0] = (floatX *)(memory + 2 * bytes), pre[1] = (floatX *)(memory + 3 * bytes);
    int *differ = (int *)(memory + (writes_pre ? 4 : 2) * bytes), differs = 0;
    cudaEvent_t from, to;
    GPU_CHECK(cudaEventCreate(&from));
    GPU_CHECK(cudaEventCreate(&to));
    double best = -1;
    for (int i = 0; i < count; i++) { /* the first that runs leaves its result in out[0] */
        bool first = best < 0;
        double seconds = time_one(p, g, out[!first], pre[!first], &results[i].algo, from, to);
        if (seconds < 0 || (!first && seconds >= best)) continue;
        if (!first) {
            GPU_CHECK(cudaMemsetAsync(differ, 0, sizeof *differ, gpu.stream));
            compare(differ, out[0], out[1], n);
            if (writes_pre) compare(differ, pre[0], pre[1], n);
            GPU_CHECK(cudaMemcpyAsync(&differs, differ, sizeof differs, cudaMemcpyDeviceToHost, gpu.stream));
            GPU_CHECK(cudaStreamSynchronize(gpu.stream));
            if (differs) continue;
        }
        best = seconds, p.algorithm = results[i].algo;
    }
    GPU_CHECK(cudaEventDestroy(from));
    GPU_CHECK(cudaEventDestroy(to));
    GPU_CHECK(cudaFree(memory));
    return best >= 0;
}

/* Elsewhere cuBLASLt leaves GELU to a second kernel, which is slower than ours. */
static bool fuses_gelu() {
    const int hopper = 90, desktop_blackwell = 120;
    return gpu.cc >= hopper && gpu.cc < desktop_blackwell;
}

/* The plan of g's shape, made at its first use. Plans live as long as the program. */
static const Plan &plan_of(const Gemm &g) {
    static std::vector<Plan> &plans = *new std::vector<Plan>;
    Shape s = shape_of(g);
    for (const Plan &p : plans)
        if (p.shape == s) return p;
    if (!handle) LT_CHECK(cublasLtCreate(&handle));
    Plan p = plan_open(s);
    cublasLtMatmulHeuristicResult_t results[PROPOSALS];
    int count = proposals(p, g, results);
    p.possible = count > 0;
    if (!p.possible && s.epilogue == EPILOGUE_NONE && s.rows * s.cols >= OUTPUTS_MIN)
        log_warn("cuBLASLt has no algorithm for a product of %zu x %zu x %zu: it will be slow (make the "
                 "model's sizes "
                 "multiples of 8)",
                 s.rows, s.cols, s.inner);
    if (p.possible) {
        p.algorithm = results[0].algo;
        p.possible = choose(p, g, results, count);
    }
    plans.push_back(p);
    return plans.back();
}
} // namespace gemm_lt

inline void gemm(const Gemm &g) {
    CHECK(!g.add || g.epilogue == EPILOGUE_NONE);
    if (!g.rows || !g.cols) return;
    const bool fused = g.epilogue == EPILOGUE_NONE || gemm_lt::fuses_gelu();
    const gemm_lt::Plan *p = fused ? &gemm_lt::plan_of(g) : NULL;
    if (p && p->possible) {
        LT_CHECK(gemm_lt::run(*p, g, g.out, g.pre, &p->algorithm));
    } else if (g.epilogue != EPILOGUE_NONE) { /* the product alone may be possible */
        Gemm product = g;
        product.epilogue = EPILOGUE_NONE;
        if (g.epilogue == EPILOGUE_GELU) product.out = g.pre;
        gemm(product);
        gemm_plain::epilogue(g);
    } else {
        gemm_plain::product(g);
    }
}
#endif
