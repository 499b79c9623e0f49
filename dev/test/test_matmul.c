/* test_matmul.c: the four matmuls against fp64, for every instruction set of this machine, both precisions and
 * several numbers of threads, which must agree in every bit.
 *
 * A process can open one instruction set only, so there is a child process for each. The parent never starts a
 * thread, so that the children can (and emulators need not start programs). With one name as argument: that set. */
#define _POSIX_C_SOURCE 200809L
#include "cpu/dispatch.h"
#include "test.h"
#include <sys/wait.h>
#include <unistd.h>

static float *fill(size_t n, float scale, uint64_t seed) {
    float *x = malloc((n + 1) * sizeof(float));
    test_fill(x, n, scale, seed);
    return x;
}
static float *poison(size_t n) {
    float *x = malloc((n + 1) * sizeof(float));
    test_poison(x, (n + 1) * sizeof(float));
    return x;
}
static float *copy_of(const float *x, size_t n) {
    float *y = malloc((n + 1) * sizeof(float));
    memcpy(y, x, n * sizeof(float));
    return y;
}

/* What the multiplication sees of an input. */
static double seen(float x) {
    if (cpu_precision == PRECISION_FP32) return x;
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
    memcpy(&x, &bits, 4);
    return x;
}

/* out (M,N) = A BT in fp64; element (i,k) of A is a[i * ai + k * ak], of B alike. */
static double *product(const float *a, size_t ai, size_t ak, const float *b, size_t bi, size_t bk, size_t M,
                       size_t N, size_t K) {
    double *out = calloc(M * N + 1, sizeof(double));
    for (size_t i = 0; i < M; i++)
        for (size_t j = 0; j < N; j++)
            for (size_t k = 0; k < K; k++)
                out[i * N + j] += seen(a[i * ai + k * ak]) * seen(b[j * bi + k * bk]);
    return out;
}

static double gelu(double x) {
    return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}
static double gelu_grad(double x) {
    double t = tanh(0.7978845608028654 * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.7978845608028654 * (1 + 3 * 0.044715 * x * x);
}

/* The element after the last is still poison, and the error is small. In bf16 the inputs are rounded before the
 * comparison, so what is left is fp32 again; x = gelu(pre) may round to another bf16, hence `loose`. */
static void compare(const char *what, const float *got, const double *want, size_t n, bool loose) {
    double bound = loose && cpu_precision == PRECISION_BF16 ? 1e-3 : 1e-6, error = test_rel_l2(got, want, n);
    TEST_CHECK(error <= bound, "%s: n %zu, %d threads, precision %d: relative error %g", what, n, cpu_threads,
               (int)cpu_precision, error);
}
static void untouched(const char *what, const float *x, size_t n) {
    uint32_t bits;
    memcpy(&bits, x + n, 4);
    TEST_CHECK(bits == 0xffffffff, "%s wrote past its end", what);
}

/* Results of one call per number of threads; all must be the bits of the first. (A BLAS library promises less.) */
typedef struct {
    const char *what;
    float *first;
} Same;
static void same_bits(Same *s, const char *what, const float *x, size_t n) {
    if (!s->first) {
        s->first = copy_of(x, n);
        return;
    }
#ifdef USE_BLAS
    if (cpu_precision == PRECISION_FP32) return;
#endif
    TEST_CHECK(!memcmp(s->first, x, n * sizeof(float)), "%s: other bits with %d threads", what, cpu_threads);
}

static const int thread_counts[] = {1, 2, 3, 13};
enum { THREAD_COUNTS = sizeof thread_counts / sizeof *thread_counts };

static void check_forward(size_t N, size_t C, size_t OC, uint64_t seed) {
    float *x = fill(N * C, 1, seed), *w = fill(OC * C, 0.5f, seed + 1), *bias = fill(OC, 1, seed + 2);
    float *residual = fill(N * OC, 1, seed + 3);
    double *plain = product(x, C, 1, w, C, 1, N, OC, C);
    for (int variant = 0; variant < 5; variant++) {
        bool use_bias = variant & 1, use_residual = variant & 2, with_gelu = variant == 4;
        double *want = calloc(N * OC + 1, sizeof(double)), *want_gelu = calloc(N * OC + 1, sizeof(double));
        for (size_t i = 0; i < N * OC; i++) {
            want[i] =
                plain[i] + (use_bias || with_gelu ? bias[i % OC] : 0) + (use_residual ? residual[i] : 0);
            want_gelu[i] = gelu(want[i]);
        }
        Same same = {0}, same_gelu = {0};
        for (int t = 0; t < THREAD_COUNTS; t++) {
            cpu_threads = thread_counts[t];
            float *out = poison(N * OC), *after = poison(N * OC);
            bool in_place = use_residual && t == 1;
            if (in_place) memcpy(out, residual, N * OC * sizeof(float));
            if (with_gelu)
                matmul_gelu_forward(after, out, x, w, bias, N, C, OC);
            else
                matmul_forward(out, x, w, use_bias ? bias : NULL,
                               in_place       ? out
                               : use_residual ? residual
                                              : NULL,
                               N, C, OC);
            compare("matmul_forward", out, want, N * OC, false);
            untouched("matmul_forward", out, N * OC);
            same_bits(&same, "matmul_forward", out, N * OC);
            if (with_gelu) {
                compare("matmul_gelu_forward", after, want_gelu, N * OC, false);
                untouched("matmul_gelu_forward", after, N * OC);
                same_bits(&same_gelu, "matmul_gelu_forward", after, N * OC);
            }
            free(out), free(after);
        }
        free(want), free(want_gelu), free(same.first), free(same_gelu.first);
    }
    free(x), free(w), free(bias), free(residual), free(plain);
}

static void check_backward(size_t N, size_t C, size_t OC, bool with_gelu, bool with_db, uint64_t seed) {
    float *dout = fill(N * OC, 1, seed), *w = fill(OC * C, 0.5f, seed + 1), *pre = fill(N * C, 3, seed + 2);
    float *dw0 = fill(OC * C, 1, seed + 3), *db0 = fill(OC, 1, seed + 4), *x0 = copy_of(pre, N * C);
    double *want_x = calloc(N * C + 1, sizeof(double)), *want_db = calloc(OC + 1, sizeof(double));
    for (size_t i = 0; i < N * C && with_gelu; i++) x0[i] = (float)(want_x[i] = gelu(pre[i]));
    double *want_dx = product(dout, OC, 1, w, 1, C, N, C, OC),
           *want_dw = product(dout, 1, OC, x0, 1, C, OC, C, N);
    for (size_t i = 0; i < N * C && with_gelu; i++) want_dx[i] *= gelu_grad(pre[i]);
    for (size_t i = 0; i < OC * C; i++) want_dw[i] += dw0[i];
    for (size_t i = 0; i < OC; i++) want_db[i] = db0[i];
    for (size_t i = 0; i < N * OC; i++) want_db[i % OC] += dout[i];
    Same same[4] = {{0}};
    for (int t = 0; t < THREAD_COUNTS; t++) {
        cpu_threads = thread_counts[t];
        float *dx = poison(N * C), *x = with_gelu ? poison(N * C) : copy_of(x0, N * C);
        bool kept = with_gelu && same[3].first; /* from then on it is given */
        if (kept) memcpy(x, same[3].first, N * C * sizeof(float));
        float *dw = poison(OC * C), *db = poison(OC);
        memcpy(dw, dw0, OC * C * sizeof(float)), memcpy(db, db0, OC * sizeof(float));
        if (with_gelu)
            matmul_gelu_backward(dx, x, dw, with_db ? db : NULL, dout, pre, w, N, C, OC, !kept);
        else
            matmul_backward(dx, dw, with_db ? db : NULL, dout, x, w, N, C, OC);
        compare("dx", dx, want_dx, N * C, false);
        compare("dw", dw, want_dw, OC * C, with_gelu);
        if (with_db)
            compare("db", db, want_db, OC, false);
        else
            TEST_CHECK(!memcmp(db, db0, OC * sizeof(float)), "db was NULL, yet written");
        untouched("dx", dx, N * C), untouched("dw", dw, OC * C), untouched("db", db, OC);
        if (with_gelu) compare("gelu(pre)", x, want_x, N * C, false), untouched("gelu(pre)", x, N * C);
        same_bits(&same[0], "dx", dx, N * C), same_bits(&same[1], "dw", dw, OC * C);
        same_bits(&same[2], "db", db, OC), same_bits(&same[3], "x", x, N * C);
        free(dx), free(x), free(dw), free(db);
    }
    for (int i = 0; i < 4; i++) free(same[i].first);
    free(dout), free(w), free(pre), free(dw0), free(db0), free(x0);
    free(want_x), free(want_db), free(want_dx), free(want_dw);
}

/* A NaN or an infinity anywhere reaches all that depends on it, and nothing else. */
static void check_not_finite(void) {
    enum { N = 19, C = 35, OC = 53 };
    const float bad[] = {NAN, INFINITY};
    for (int b = 0; b < 2; b++) {
        float *x = fill(N * C, 1, 71), *w = fill(OC * C, 1, 72), *out = poison(N * OC),
              *after = poison(N * OC);
        float *bias = fill(OC, 1, 73);
        x[3 * C + C - 1] = bad[b];
        matmul_forward(out, x, w, NULL, NULL, N, C, OC);
        size_t finite = 0, wrong = 0;
        for (size_t i = 0; i < N * OC; i++)
            finite += isfinite(out[i]) ? 1 : 0, wrong += (i / OC == 3) == isfinite(out[i]);
        TEST_CHECK(!wrong, "%g in row 3 of x: %zu of %d outputs finite", (double)bad[b], finite, N * OC);
        bias[7] = bad[b];
        matmul_gelu_forward(after, out, x, w, bias, N, C, OC);
        TEST_CHECK(!isfinite(after[7]) && isfinite(after[8]), "gelu of %g is %g", (double)bad[b],
                   (double)after[7]);
        free(x), free(w), free(out), free(after), free(bias);
    }
}

/* Sums of thousands: several k blocks, several phases of packing and more columns than one block. */
static void check_long(uint64_t seed) {
    check_forward(9, 1700, 50, seed);
    check_backward(1601, 17, 50, false, true, seed + 10);
    check_backward(9, 50, 3300, true, true, seed + 20);
    if (cpu_precision == PRECISION_FP32) check_backward(261, 263, 3100, false, true, seed + 30);
}

static int run(const char *isa) {
    Error err;
    DeviceConfig config = {.threads = 2, .isa = isa};
    if (!device_open(&config, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    static const size_t sizes[][3] = {{1, 1, 1},    {1, 7, 13},    {7, 1, 33},   {13, 33, 1},   {8, 16, 48},
                                      {33, 13, 7},  {16, 64, 96},  {257, 33, 7}, {33, 257, 49}, {7, 31, 257},
                                      {50, 97, 65}, {64, 768, 96}, {9, 800, 17}};
    for (int precision = 0; precision < 2; precision++) {
        device_precision_set(precision ? PRECISION_BF16 : PRECISION_FP32);
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            const size_t *s = sizes[i];
            check_forward(s[0], s[1], s[2], 100 * i + 1);
            for (int v = 0; v < 4; v++) check_backward(s[0], s[1], s[2], v & 1, v & 2, 100 * i + 50);
        }
        check_long(7);
        check_not_finite();
    }
    char module[64];
    snprintf(module, sizeof module, "matmul %s", isa);
    return test_end(module);
}

int main(int argc, char **argv) {
    if (argc > 1) return run(argv[1]);
    for (int i = 0; i < cpu_isa_count; i++) {
        if (!cpu_isas[i].supported()) continue;
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) exit(run(cpu_isas[i].name));
        int status = 0;
        bool waited = child > 0 && waitpid(child, &status, 0) == child;
        TEST_CHECK(waited && WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: status %d", cpu_isas[i].name,
                   status);
    }
    return test_end("matmul");
}
