/* test_cuda_matmul.cu: the matmuls of llmc/cuda against double: odd shapes, every optional operand, accumulation, the
 * same bits in three orders of threads; and the kernels that stand in for cuBLASLt. Under the shim cuBLASLt is that of
 * dev/cuda_shim, which tells layouts and epilogues apart but knows nothing of speed. */
#include "cuda/gemm_cublaslt.cuh"
#include "cuda/matmul.cuh"
#include "cuda_test.h"
#include "test.h"
#include <vector>

void *gpu_scratch(int slot, size_t bytes) { /* of exact size, so that a sanitizer sees a step outside it */
    static void *memory[NUM_SCRATCH];
    static size_t size[NUM_SCRATCH];
    if (bytes == size[slot]) return memory[slot];
    cuda_test_sync();
    cuda_test_free(memory[slot]);
    memory[slot] = cuda_test_alloc(bytes), size[slot] = bytes;
    test_poison(memory[slot], bytes);
    return memory[slot];
}

typedef std::vector<double> Doubles;

static floatX *device_values(size_t n) {
    floatX *x = static_cast<floatX *>(cuda_test_alloc(n * sizeof *x));
    if (!x) {
        puts("cuda matmul: no memory that a GPU reaches (is there a GPU?)");
        exit(1);
    }
    return x;
}

/* A matrix on the device and its values as doubles; freed with it. */
struct Matrix {
    floatX *x;
    Doubles wide;
    size_t n;
    Matrix(size_t count, float scale, uint64_t seed) : wide(count), n(count) {
        std::vector<float> values(count);
        test_fill(values.data(), count, scale, seed);
        x = device_values(count);
        for (size_t i = 0; i < count; i++) {
            x[i] = from_float<floatX>(values[i]);
            wide[i] = (double)to_float(x[i]);
        }
    }
    explicit Matrix(size_t count) : n(count) {
        x = device_values(count);
        test_poison(x, count * sizeof *x);
    }
    Matrix(const Matrix &o) : wide(o.wide), n(o.n) {
        x = device_values(n);
        memcpy(x, o.x, n * sizeof *x);
    }
    Matrix &operator=(const Matrix &) = delete;
    ~Matrix() { cuda_test_free(x); }
};

/* Relative to the reference's size, which includes what was there before. */
static void check_near(const char *what, const Matrix &got, const Doubles &want) {
    double error = 0, square = 0;
    for (size_t i = 0; i < got.n; i++) {
        double e = (double)to_float(got.x[i]) - want[i];
        error += e * e, square += want[i] * want[i];
    }
    double distance = sqrt(error / square), bound = sizeof(floatX) == 2 ? 4e-3 : 2e-6;
    TEST_CHECK(distance <= bound, "%s: relative distance %.3g", what, distance);
}
static void check_same(const char *what, const Matrix &a, const Matrix &b) {
    TEST_CHECK(!memcmp(a.x, b.x, a.n * sizeof *a.x), "%s: other bits", what);
}

static double gelu_wide(double x) {
    return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1.0)) * (x + 0.044715 * x * x * x)));
}
static double gelu_grad_wide(double x) {
    double k = sqrt(2 / acos(-1.0)), t = tanh(k * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * k * (1 + 3 * 0.044715 * x * x);
}

/* a (rows,inner) b (inner,cols), either stored transposed. */
static Doubles product(const Doubles &a, bool a_transposed, const Doubles &b, bool b_transposed, size_t rows,
                       size_t inner, size_t cols) {
    Doubles out(rows * cols);
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < inner; k++)
            for (size_t c = 0; c < cols; c++)
                out[r * cols + c] += a[a_transposed ? k * rows + r : r * inner + k] *
                                     b[b_transposed ? c * inner + k : k * cols + c];
    return out;
}

static void check_forward(size_t N, size_t C, size_t OC) {
    const Matrix x(N * C, 1, 1), w(OC * C, 1, 2), bias(OC, 1, 3), residual(N * OC, 1, 4);
    const Doubles sum = product(x.wide, false, w.wide, true, N, C, OC);
    char what[96];
    for (int has = 0; has < 4; has++) {
        Doubles want = sum;
        for (size_t i = 0; i < N * OC; i++)
            want[i] += (has & 1 ? bias.wide[i % OC] : 0) + (has & 2 ? residual.wide[i] : 0);
        Matrix out(N * OC), in_place(residual);
        snprintf(what, sizeof what, "forward N %zu C %zu OC %zu operands %d", N, C, OC, has);
        matmul_forward(out.x, x.x, w.x, has & 1 ? bias.x : NULL, has & 2 ? residual.x : NULL, N, C, OC);
        matmul_forward(in_place.x, x.x, w.x, has & 1 ? bias.x : NULL, has & 2 ? in_place.x : NULL, N, C, OC);
        cuda_test_sync();
        check_near(what, out, want);
        check_same(what, in_place, out);
    }
    Matrix pre(N * OC), out(N * OC);
    Doubles want_pre = sum, want(N * OC);
    for (size_t i = 0; i < N * OC; i++) want_pre[i] += bias.wide[i % OC];
    matmul_gelu_forward(out.x, pre.x, x.x, w.x, bias.x, N, C, OC);
    cuda_test_sync();
    for (size_t i = 0; i < N * OC; i++) want[i] = gelu_wide(want_pre[i]);
    snprintf(what, sizeof what, "gelu forward N %zu C %zu OC %zu", N, C, OC);
    check_near(what, pre, want_pre);
    check_near(what, out, want);
}

static void check_backward(size_t N, size_t C, size_t OC) {
    const Matrix x(N * C, 1, 1), w(OC * C, 1, 2), dout(N * OC, 1, 3), dw0(OC * C, 1, 4), db0(OC, 1, 5);
    Doubles want_dx = product(dout.wide, false, w.wide, false, N, OC, C);
    Doubles want_dw = product(dout.wide, true, x.wide, false, OC, N, C), want_db = db0.wide;
    for (size_t i = 0; i < OC * C; i++) want_dw[i] += dw0.wide[i];
    for (size_t i = 0; i < N * OC; i++) want_db[i % OC] += dout.wide[i];
    char what[96];
    Matrix first_dx(N * C), first_dw(dw0), first_db(db0);
    for (int order = 1; order <= 3; order++) {
        cuda_test_order(order);
        snprintf(what, sizeof what, "backward N %zu C %zu OC %zu, order %d", N, C, OC, order);
        Matrix dx(N * C), dw(dw0), db(db0);
        matmul_backward(dx.x, dw.x, db.x, dout.x, x.x, w.x, N, C, OC);
        cuda_test_sync();
        if (order == 1) {
            check_near(what, dx, want_dx);
            check_near(what, dw, want_dw);
            check_near(what, db, want_db);
            memcpy(first_dx.x, dx.x, dx.n * sizeof *dx.x);
            memcpy(first_dw.x, dw.x, dw.n * sizeof *dw.x);
            memcpy(first_db.x, db.x, db.n * sizeof *db.x);
        }
        check_same(what, dx, first_dx);
        check_same(what, dw, first_dw);
        check_same(what, db, first_db);
    }
    Matrix dx(N * C), dw(dw0);
    matmul_backward(dx.x, dw.x, NULL, dout.x, x.x, w.x, N, C, OC);
    cuda_test_sync();
    check_same(what, dw, first_dw);
}

/* x is the pre-activation here. */
static void check_gelu_backward(size_t N, size_t C, size_t OC) {
    const Matrix pre(N * C, 3, 1), w(OC * C, 1, 2), dout(N * OC, 1, 3), dw0(OC * C, 1, 4), db0(OC, 1, 5);
    Matrix dpre(N * C), x(N * C), dw(dw0), db(db0);
    Doubles want_dpre = product(dout.wide, false, w.wide, false, N, OC, C), want_x(N * C);
    for (size_t i = 0; i < N * C; i++) {
        want_dpre[i] *= gelu_grad_wide(pre.wide[i]);
        want_x[i] = gelu_wide(pre.wide[i]);
    }
    Doubles want_dw = product(dout.wide, true, want_x, false, OC, N, C), want_db = db0.wide;
    for (size_t i = 0; i < OC * C; i++) want_dw[i] += dw0.wide[i];
    for (size_t i = 0; i < N * OC; i++) want_db[i % OC] += dout.wide[i];
    matmul_gelu_backward(dpre.x, x.x, dw.x, db.x, dout.x, pre.x, w.x, N, C, OC, true);
    cuda_test_sync();
    Matrix kept(x), dpre2(N * C), dw2(dw0), db2(db0);
    matmul_gelu_backward(dpre2.x, kept.x, dw2.x, db2.x, dout.x, pre.x, w.x, N, C, OC, false);
    cuda_test_sync();
    check_same("gelu backward, kept: dpre", dpre2, dpre);
    check_same("gelu backward, kept: x", kept, x);
    check_same("gelu backward, kept: dw", dw2, dw);
    char what[96];
    snprintf(what, sizeof what, "gelu backward N %zu C %zu OC %zu", N, C, OC);
    check_near(what, dpre, want_dpre);
    check_near(what, x, want_x);
    check_near(what, dw, want_dw);
    check_near(what, db, want_db);
}

/* The kernels that stand in for cuBLASLt, with every layout and epilogue. */
static void check_plain(size_t rows, size_t inner, size_t cols) {
    for (int layout = 0; layout < 4; layout++)
        for (int epilogue = EPILOGUE_NONE; epilogue <= EPILOGUE_DGELU; epilogue++) {
            const Matrix a(rows * inner, 1, 1), b(inner * cols, 1, 2), bias(cols, 1, 3),
                add(rows * cols, 1, 4);
            Matrix out(rows * cols), pre(rows * cols, 2, 5);
            Gemm g = {};
            g.out = out.x, g.a = a.x, g.b = b.x, g.a_transposed = layout & 1, g.b_transposed = layout >> 1;
            g.rows = rows, g.inner = inner, g.cols = cols, g.pre = pre.x, g.epilogue = (Epilogue)epilogue;
            if (epilogue != EPILOGUE_DGELU) g.bias = bias.x;
            if (epilogue == EPILOGUE_NONE) g.add = add.x;
            Doubles want = product(a.wide, layout & 1, b.wide, layout >> 1, rows, inner, cols);
            for (size_t i = 0; i < rows * cols; i++) {
                if (g.bias) want[i] += bias.wide[i % cols];
                if (g.add) want[i] += add.wide[i];
                if (epilogue == EPILOGUE_GELU) want[i] = gelu_wide(want[i]);
                if (epilogue == EPILOGUE_DGELU) want[i] *= gelu_grad_wide(pre.wide[i]);
            }
            Gemm plain = g;
            if (epilogue == EPILOGUE_GELU) plain.out = pre.x;
            gemm_plain::product(plain);
            gemm_plain::epilogue(g);
            cuda_test_sync();
            char what[96];
            snprintf(what, sizeof what, "plain %zu %zu %zu layout %d epilogue %d", rows, inner, cols, layout,
                     epilogue);
            check_near(what, out, want);
        }
}

/* The fastest algorithm is taken only if it gives the bits of cuBLASLt's favourite. */
static void check_choice() {
#ifdef CUDA_SHIM
    const size_t n = 256, inner = 100;
    const Matrix a(n * inner, 1, 1), b(inner * n, 1, 2);
    Matrix out(n * n);
    Gemm g = {};
    g.out = out.x, g.a = a.x, g.b = b.x, g.rows = g.cols = n, g.inner = inner;
    gemm(g);
    cuda_test_sync();
    const gemm_lt::Plan &p = gemm_lt::plan_of(g);
    TEST_CHECK(p.possible, "cuBLASLt refuses %zu", n);
    const int backwards = 2;
    TEST_CHECK(p.algorithm.number != backwards, "other bits were taken for speed");
#endif
}

int main() {
    const size_t shapes[][3] = {{1, 1, 1},     {7, 5, 3},     {64, 64, 128},
                                {33, 96, 264}, {130, 48, 65}, {259, 8, 16}};
    gpu.sm_count = 4;
    gpu.precision = PRECISION_FP32;
    for (const auto &s : shapes) {
        check_backward(s[0], s[1], s[2]);
        for (int cc : {80, 90}) { /* GELU is a kernel of its own, part of the product */
            gpu.cc = cc;
            check_forward(s[0], s[1], s[2]);
            check_gelu_backward(s[0], s[1], s[2]);
        }
    }
    check_backward(1000, 3, 40); /* many stretches of rows */
    check_choice();
    check_plain(1, 1, 1);
    check_plain(33, 70, 40);
    check_plain(64, 32, 31);
    return test_end("cuda matmul");
}
