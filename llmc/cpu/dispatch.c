/* dispatch.c: the public kernels of the CPU set: each calls through the table of the instruction set that
 * device_open chose. An indirect call per operation costs nothing beside the operation. */
#include "cpu/dispatch.h"

/* --- one table per instruction set of this build --- */

static bool always(void) {
    return true;
}

#define X(name) __typeof__(name) name##_portable;
CPU_KERNELS(X)
#undef X
#define X(name) name##_portable,
static const CpuKernels kernels_portable = {CPU_KERNELS(X)};
#undef X

#ifdef HAVE_ISA_neon
#define X(name) __typeof__(name) name##_neon;
CPU_KERNELS(X)
#undef X
#define X(name) name##_neon,
static const CpuKernels kernels_neon = {CPU_KERNELS(X)};
#undef X
#endif

#ifdef HAVE_ISA_avx2
#define X(name) __typeof__(name) name##_avx2;
CPU_KERNELS(X)
#undef X
#define X(name) name##_avx2,
static const CpuKernels kernels_avx2 = {CPU_KERNELS(X)};
#undef X
static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

#ifdef HAVE_ISA_avx512
#define X(name) __typeof__(name) name##_avx512;
CPU_KERNELS(X)
#undef X
#define X(name) name##_avx512,
static const CpuKernels kernels_avx512 = {CPU_KERNELS(X)};
#undef X
static bool has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

#ifdef HAVE_ISA_avx512bf16
#define X(name) __typeof__(name) name##_avx512bf16;
CPU_PRODUCTS(X)
#undef X
#define X(name) name##_avx512bf16,
#define Y(name) name##_avx512,
static const CpuKernels kernels_avx512bf16 = {CPU_PRODUCTS(X) CPU_OTHERS(Y)};
#undef X
#undef Y
static bool has_avx512bf16(void) {
    return has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
}
#endif

const CpuIsa cpu_isas[] = {
    {"portable", &kernels_portable, always},
#ifdef HAVE_ISA_neon
    {"neon", &kernels_neon, always},
#endif
#ifdef HAVE_ISA_avx2
    {"avx2", &kernels_avx2, has_avx2},
#endif
#ifdef HAVE_ISA_avx512
    {"avx512", &kernels_avx512, has_avx512},
#endif
#ifdef HAVE_ISA_avx512bf16
    {"avx512bf16", &kernels_avx512bf16, has_avx512bf16},
#endif
};
const int cpu_isa_count = (int)(sizeof cpu_isas / sizeof *cpu_isas);
const CpuKernels *cpu_kernels;

/* --- the public functions; kernels.h says what they do --- */

double device_peak_flops(Precision precision, double seconds) {
    return cpu_kernels->device_peak_flops(precision, seconds);
}
void encoder_forward(floatX *out, const int32_t *tokens, const floatX *wte, const floatX *wpe, size_t B,
                     size_t T, size_t C) {
    cpu_kernels->encoder_forward(out, tokens, wte, wpe, B, T, C);
}
void encoder_backward(floatX *dwte, floatX *dwpe, const floatX *dout, const int32_t *tokens, size_t B,
                      size_t T, size_t C) {
    cpu_kernels->encoder_backward(dwte, dwpe, dout, tokens, B, T, C);
}
void layernorm_forward(floatX *out, float *mean, float *rstd, const floatX *x, const floatX *w,
                       const floatX *b, size_t N, size_t C) {
    cpu_kernels->layernorm_forward(out, mean, rstd, x, w, b, N, C);
}
void layernorm_recompute(floatX *out, const float *mean, const float *rstd, const floatX *x, const floatX *w,
                         const floatX *b, size_t N, size_t C) {
    cpu_kernels->layernorm_recompute(out, mean, rstd, x, w, b, N, C);
}
void layernorm_backward(floatX *dx, floatX *dw, floatX *db, const floatX *dout, const floatX *x,
                        const floatX *w, const float *mean, const float *rstd, size_t N, size_t C) {
    cpu_kernels->layernorm_backward(dx, dw, db, dout, x, w, mean, rstd, N, C);
}
void attention_forward(floatX *out, float *lse, const floatX *qkv, size_t B, size_t T, size_t NH, size_t HS,
                       size_t window) {
    cpu_kernels->attention_forward(out, lse, qkv, B, T, NH, HS, window);
}
void attention_backward(floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                        const floatX *qkv, size_t B, size_t T, size_t NH, size_t HS, size_t window) {
    cpu_kernels->attention_backward(dqkv, dout, out, lse, qkv, B, T, NH, HS, window);
}
void classifier(floatX *logits, float *losses, const int32_t *targets, float dloss, size_t N, size_t V,
                size_t Vp) {
    cpu_kernels->classifier(logits, losses, targets, dloss, N, V, Vp);
}
void adamw_kernel(floatX *p, float *master, floatX *g, float *m, float *v, size_t n, const AdamWArgs *args) {
    cpu_kernels->adamw_kernel(p, master, g, m, v, n, args);
}
double sum_of_squares(const floatX *x, size_t n) {
    return cpu_kernels->sum_of_squares(x, n);
}
void exact_add(int32_t *sums, floatX *g, uint8_t *most, const uint8_t *levels, size_t n, int bits,
               bool first) {
    cpu_kernels->exact_add(sums, g, most, levels, n, bits, first);
}
void exact_read(floatX *g, double *squares, const int32_t *sums, const uint8_t *levels, size_t n, int bits) {
    cpu_kernels->exact_read(g, squares, sums, levels, n, bits);
}
void bf16_from_floats(uint16_t *out, const floatX *x, size_t n) {
    cpu_kernels->bf16_from_floats(out, x, n);
}
void bf16_to_floats(floatX *x, const uint16_t *in, size_t n) {
    cpu_kernels->bf16_to_floats(x, in, n);
}
void gelu_forward(floatX *out, const floatX *x, size_t n) {
    cpu_kernels->gelu_forward(out, x, n);
}
void attention_decode(floatX *out, floatX *keys, floatX *values, const floatX *qkv, size_t t, size_t slots,
                      size_t NH, size_t HS, size_t window) {
    cpu_kernels->attention_decode(out, keys, values, qkv, t, slots, NH, HS, window);
}
PackedWeight packed_weight_make(WeightType type, void *memory, const floatX *w, size_t OC, size_t C) {
    return cpu_kernels->packed_weight_make(type, memory, w, OC, C);
}
void matvec_forward(floatX *out, const floatX *x, PackedWeight w, const floatX *bias,
                    const floatX *residual) {
    cpu_kernels->matvec_forward(out, x, w, bias, residual);
}

size_t packed_weight_bytes(WeightType type, size_t OC, size_t C) {
    size_t groups = (C + 63) / 64;
    switch (type) {
    case WEIGHT_FP32: return OC * C * 4;
    case WEIGHT_BF16: return OC * C * 2;
    default: return OC * groups * (64 + sizeof(float));
    }
}

/* The matmuls can be a BLAS library's instead (make BLAS=...), in fp32. */
#ifdef USE_BLAS
#include "cpu/blas.h"
#define MATMUL(name) (cpu_precision == PRECISION_FP32 ? blas_##name : cpu_kernels->name)
#else
#define MATMUL(name) cpu_kernels->name
#endif

void matmul_forward(floatX *out, const floatX *x, const floatX *w, const floatX *bias, const floatX *residual,
                    size_t N, size_t C, size_t OC) {
    MATMUL(matmul_forward)(out, x, w, bias, residual, N, C, OC);
}
void matmul_gelu_forward(floatX *out, floatX *pre, const floatX *x, const floatX *w, const floatX *bias,
                         size_t N, size_t C, size_t OC) {
    MATMUL(matmul_gelu_forward)(out, pre, x, w, bias, N, C, OC);
}
void matmul_backward(floatX *dx, floatX *dw, floatX *db, const floatX *dout, const floatX *x, const floatX *w,
                     size_t N, size_t C, size_t OC) {
    MATMUL(matmul_backward)(dx, dw, db, dout, x, w, N, C, OC);
}
void matmul_gelu_backward(floatX *dpre, floatX *x, floatX *dw, floatX *db, const floatX *dout,
                          const floatX *pre, const floatX *w, size_t N, size_t C, size_t OC, bool recompute) {
    MATMUL(matmul_gelu_backward)(dpre, x, dw, db, dout, pre, w, N, C, OC, recompute);
}
