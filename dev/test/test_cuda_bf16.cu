/* test_cuda_bf16.cu: the CUDA kernels where parameters and activations are stored in bf16, against naive.h on the same
 * rounded inputs, in three orders of threads, which must agree in every bit; rows that are read 16 bytes at a time and
 * rows that are not. */
#include "cuda/gpu.h"
#include "cuda_test.h"
#include "model/kernels.h"
extern "C" {
#include "base/rng.h"
#include "naive.h"
#include "test.h"
}
#include <algorithm>
#include <vector>

static const double NEAR = 3e-3; /* a value is stored to within 2^-9 of itself */
static uint64_t seed = 1;

/* n values on the device, and the same as doubles. */
struct Values {
    size_t n;
    bf16 *x;
    std::vector<double> wide;
    explicit Values(size_t n_, float scale = 1, float offset = 0) : n(n_), wide(n_) {
        x = (bf16 *)cuda_test_alloc(n * sizeof *x + !n);
        std::vector<float> values(n);
        test_fill(values.data(), n, scale, seed++);
        for (size_t i = 0; i < n; i++) wide[i] = (double)to_float(x[i] = bf16_from_float(values[i] + offset));
    }
    Values(const Values &other) : n(other.n), wide(other.wide) {
        x = (bf16 *)cuda_test_alloc(n * sizeof *x + !n);
        memcpy((void *)x, other.x, n * sizeof *x);
    }
    ~Values() { cuda_test_free(x); }
    void poison() { test_poison(x, n * sizeof *x); }
};
struct Floats {
    size_t n;
    float *x;
    explicit Floats(size_t n_) : n(n_) {
        x = (float *)cuda_test_alloc(n * sizeof *x + !n);
        test_poison(x, n * sizeof *x);
    }
    ~Floats() { cuda_test_free(x); }
};
struct Tokens {
    int32_t *x;
    Tokens(size_t n, size_t V, int every_other_missing = 0) {
        x = (int32_t *)cuda_test_alloc(n * sizeof *x + !n);
        for (size_t i = 0; i < n; i++)
            x[i] = every_other_missing && i % 3 == 1
                       ? -1
                       : (int32_t)((double)V * rng_uniform(seed, RNG_STREAM(RNG_TEST, 1), i) *
                                   rng_uniform(seed, RNG_STREAM(RNG_TEST, 2), i));
        seed++;
    }
    ~Tokens() { cuda_test_free(x); }
};

static void near(const char *what, const float *got, const double *want, size_t n, double bound) {
    cuda_test_sync();
    double distance = test_rel_l2(got, want, n);
    TEST_CHECK(distance <= bound, "%s: relative distance %.3g, bound %.3g", what, distance, bound);
}
static void near(const char *what, const Values &got, const std::vector<double> &want, double bound = NEAR) {
    cuda_test_sync();
    std::vector<float> floats(got.n);
    for (size_t i = 0; i < got.n; i++) floats[i] = to_float(got.x[i]);
    near(what, floats.data(), want.data(), got.n, bound);
}
/* The bits of the first order must come again in the others. */
struct Same {
    std::vector<unsigned char> first;
    void check(const char *what, const void *x, size_t bytes, int order) {
        cuda_test_sync();
        const unsigned char *p = (const unsigned char *)x;
        if (order == 1) first.assign(p, p + bytes);
        TEST_CHECK(bytes == 0 || !memcmp(first.data(), p, bytes), "%s: other bits in order %d", what, order);
    }
};
enum { ORDERS = 3 };

static void check_encoder(size_t B, size_t T, size_t C, size_t V) {
    size_t N = B * T;
    Tokens tokens(N, V);
    Values wte(V * C), wpe(T * C), dout(N * C), dwte0(V * C), dwpe0(T * C);
    std::vector<double> out(N * C);
    naive_encoder_forward(out.data(), tokens.x, wte.wide.data(), wpe.wide.data(), B, T, C);
    Same same[2];
    for (int order = 1; order <= ORDERS; order++) {
        cuda_test_order(order);
        Values got(N * C), dwte(dwte0), dwpe(dwpe0);
        got.poison();
        encoder_forward(got.x, tokens.x, wte.x, wpe.x, B, T, C);
        encoder_backward(dwte.x, dwpe.x, dout.x, tokens.x, B, T, C);
        naive_encoder_backward(dwte.wide.data(), dwpe.wide.data(), dout.wide.data(), tokens.x, B, T, C);
        near("encoder out", got, out);
        near("encoder dwte", dwte, dwte.wide);
        near("encoder dwpe", dwpe, dwpe.wide);
        same[0].check("encoder dwte", dwte.x, dwte.n * sizeof(bf16), order);
        same[1].check("encoder dwpe", dwpe.x, dwpe.n * sizeof(bf16), order);
    }
}

static void check_layernorm(size_t N, size_t C) {
    Values x(N * C, 1, 0.5f), w(C), b(C), dout(N * C), dx0(N * C), dw0(C), db0(C);
    std::vector<double> out(N * C), mean(N), rstd(N);
    naive_layernorm_forward(out.data(), mean.data(), rstd.data(), x.wide.data(), w.wide.data(), b.wide.data(),
                            N, C);
    Same same[3];
    for (int order = 1; order <= ORDERS; order++) {
        cuda_test_order(order);
        Values got(N * C), again(N * C), dx(dx0), dw(dw0), db(db0);
        Floats got_mean(N), got_rstd(N);
        got.poison();
        again.poison();
        layernorm_forward(got.x, got_mean.x, got_rstd.x, x.x, w.x, b.x, N, C);
        layernorm_recompute(again.x, got_mean.x, got_rstd.x, x.x, w.x, b.x, N, C);
        layernorm_backward(dx.x, dw.x, db.x, dout.x, x.x, w.x, got_mean.x, got_rstd.x, N, C);
        naive_layernorm_backward(dx.wide.data(), dw.wide.data(), db.wide.data(), dout.wide.data(),
                                 x.wide.data(), w.wide.data(), mean.data(), rstd.data(), N, C);
        near("layernorm out", got, out);
        near("layernorm mean", got_mean.x, mean.data(), N, 1e-5);
        near("layernorm rstd", got_rstd.x, rstd.data(), N, 1e-5);
        near("layernorm dx", dx, dx.wide);
        near("layernorm dw", dw, dw.wide);
        near("layernorm db", db, db.wide);
        TEST_CHECK(!memcmp(got.x, again.x, N * C * sizeof(bf16)), "layernorm_recompute differs");
        same[0].check("layernorm dx", dx.x, dx.n * sizeof(bf16), order);
        same[1].check("layernorm dw", dw.x, dw.n * sizeof(bf16), order);
        same[2].check("layernorm db", db.x, db.n * sizeof(bf16), order);
    }
}

static void check_classifier(size_t N, size_t V, size_t Vp, float dloss) {
    Values logits(N * Vp, 8);
    Tokens targets(N, V, 1);
    std::vector<double> want = logits.wide, losses(N);
    naive_classifier(want.data(), losses.data(), targets.x, (double)dloss, N, V, Vp);
    for (size_t i = 0; i < N; i++)
        for (size_t j = V; j < Vp; j++) logits.x[i * Vp + j] = bf16_from_float(j % 2 ? 1e30f : NAN);
    Same same;
    for (int order = 1; order <= ORDERS; order++) {
        cuda_test_order(order);
        Values got(logits);
        Floats got_losses(N);
        classifier(got.x, got_losses.x, targets.x, dloss, N, V, Vp);
        near("classifier losses", got_losses.x, losses.data(), N, 1e-6);
        if (dloss != 0)
            near("classifier gradient", got, want);
        else
            TEST_CHECK(!memcmp(got.x, logits.x, N * Vp * sizeof(bf16)), "classifier without dloss wrote");
        same.check("classifier", got.x, got.n * sizeof(bf16), order);
    }
}

/* p is the fp32 copy rounded up or down by bits of rng_block; the copy is right to fp32; `shift` elements into memory,
 * so that nothing is aligned. */
static void check_adamw(size_t n, size_t shift, AdamWArgs args) {
    Values p0(n + shift), g0(n + shift, 2);
    std::vector<float> master0(n + shift), m0(n + shift), v0(n + shift);
    test_fill(master0.data(), n + shift, 1, seed++);
    test_fill(m0.data(), n + shift, 0.1f, seed++);
    test_fill(v0.data(), n + shift, 0.01f, seed++);
    for (float &v : v0) v = fabsf(v);
    std::vector<double> p(master0.begin(), master0.end()), g = g0.wide, m(m0.begin(), m0.end());
    std::vector<double> v(v0.begin(), v0.end());
    naive_adamw(p.data() + shift, g.data() + shift, m.data() + shift, v.data() + shift, n, (double)args.lr,
                (double)args.beta1, (double)args.beta2, (double)args.eps, (double)args.decay,
                (double)args.grad_scale, args.step);
    Same same;
    for (int order = 1; order <= ORDERS; order++) {
        cuda_test_order(order);
        Values got(p0), grad(g0);
        Floats master(n + shift), gm(n + shift), gv(n + shift);
        std::copy(master0.begin(), master0.end(), master.x);
        std::copy(m0.begin(), m0.end(), gm.x);
        std::copy(v0.begin(), v0.end(), gv.x);
        adamw_kernel(got.x + shift, master.x + shift, grad.x + shift, gm.x + shift, gv.x + shift, n, &args);
        near("adamw master", master.x, p.data(), master.n, 2e-7);
        near("adamw m", gm.x, m.data(), gm.n, 5e-7);
        near("adamw v", gv.x, v.data(), gv.n, 5e-7);
        size_t wrong = 0;
        for (size_t i = 0; i < n; i++) {
            uint32_t random[4];
            size_t element = args.first + i;
            rng_block(args.seed, RNG_STREAM(RNG_ROUND, args.step), element / 8, random);
            uint32_t bits = random[element % 8 / 2] >> (element % 2 * 16) & 0xffff;
            wrong += got.x[shift + i].bits != (uint16_t)((bits_from_float(master.x[shift + i]) + bits) >> 16);
            wrong += grad.x[shift + i].bits != 0;
        }
        for (size_t i = 0; i < shift; i++)
            wrong += got.x[i].bits != p0.x[i].bits || grad.x[i].bits != g0.x[i].bits;
        TEST_CHECK(!wrong, "adamw n %zu shift %zu: %zu elements", n, shift, wrong);
        same.check("adamw p", got.x, got.n * sizeof(bf16), order);
    }
}

static void check_sum_of_squares(size_t n, size_t shift) {
    Values x(n + shift, 100);
    double want = 0, first = 0;
    for (size_t i = shift; i < n + shift; i++) want += x.wide[i] * x.wide[i];
    for (int order = 1; order <= ORDERS; order++) {
        cuda_test_order(order);
        double got = sum_of_squares(x.x + shift, n);
        if (order == 1) first = got;
        TEST_CHECK(fabs(got - want) <= 1e-13 * want, "n %zu: %.17g, want %.17g", n, got, want);
        TEST_CHECK(!memcmp(&got, &first, sizeof got), "n %zu: other bits in order %d", n, order);
    }
}

static void check_gelu(size_t n) {
    Values x(n, 6), out(n);
    std::vector<double> want(n);
    for (size_t i = 0; i < n; i++) want[i] = naive_gelu(x.wide[i]);
    out.poison();
    gelu_forward(out.x, x.x, n);
    near("gelu", out, want);
}

static void check_matvec(WeightType type, size_t OC, size_t C) {
    Values w(OC * C), x(C), bias(OC), out(OC);
    size_t bytes = packed_weight_bytes(type, OC, C);
    char *block = (char *)cuda_test_alloc(bytes + 63), *memory = block + (64 - (uintptr_t)block % 64) % 64;
    test_poison(block, bytes + 63);
    PackedWeight packed = packed_weight_make(type, memory, w.x, OC, C);
    std::vector<double> want(OC);
    naive_matvec(want.data(), x.wide.data(), w.wide.data(), bias.wide.data(), bias.wide.data(), OC, C);
    out.poison();
    matvec_forward(out.x, x.x, packed, bias.x, bias.x);
    near("matvec", out, want, type == WEIGHT_INT8 ? 1e-2 : NEAR);
    cuda_test_free(block);
}

static void check_cache(size_t T, size_t slots, size_t NH, size_t HS, size_t window) {
    size_t C = NH * HS, seen = window && window < slots ? window : slots;
    Values qkv(T * 3 * C), keys(slots * C), values(slots * C), out(T * C);
    std::vector<double> want(T * C), lse(NH * T);
    naive_attention_forward(want.data(), lse.data(), qkv.wide.data(), 1, T, NH, HS, seen);
    keys.poison();
    values.poison();
    for (size_t t = 0; t < T; t++)
        attention_decode(out.x + t * C, keys.x, values.x, qkv.x + t * 3 * C, t, slots, NH, HS, window);
    near("attention_decode", out, want);
}

/* Values get to the device and back, rounded once. */
static void check_copies(size_t n) {
    std::vector<float> values(n), back(n);
    test_fill(values.data(), n, 3, seed++);
    bf16 *memory = (bf16 *)device_alloc(n * sizeof(bf16));
    device_write_floats(memory, values.data(), n);
    device_read_floats(back.data(), memory, n);
    size_t wrong = 0;
    for (size_t i = 0; i < n; i++) wrong += back[i] != to_float(bf16_from_float(values[i]));
    TEST_CHECK(!wrong, "%zu of %zu values", wrong, n);
    device_free(memory, n * sizeof(bf16));
}

int main() {
    Error err;
    const DeviceConfig config = {0, PRECISION_BF16, NULL};
    if (!device_open(&config, &err)) {
        puts(err.text);
        return 1;
    }
    check_encoder(3, 5, 7, 11);
    check_encoder(2, 70, 136, 30);
    check_encoder(5, 129, 8, 3);
    check_layernorm(5, 7);
    check_layernorm(37, 48);
    check_layernorm(131, 771);
    check_layernorm(33, 1032);
    check_layernorm(9, 2056); /* longer than a block */
    check_classifier(7, 5, 8, 1);
    check_classifier(9, 257, 384, 0.3f);
    check_classifier(3, 4099, 4224, 0);
    check_classifier(4, 77, 77, 0.5f);
    const AdamWArgs args = {6e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.7f, 3, 1337, 0};
    for (size_t n : {(size_t)0, (size_t)1, (size_t)17, (size_t)5000})
        for (size_t shift = 0; shift < 2; shift++) {
            AdamWArgs here = args;
            here.first = shift ? 1000003 : 64;
            check_adamw(n, shift, here);
            check_sum_of_squares(n * 9, shift);
        }
    check_gelu(1000);
    check_gelu(1001);
    for (int type = WEIGHT_FP32; type <= WEIGHT_INT8; type++) {
        check_matvec((WeightType)type, 33, 63);
        check_matvec((WeightType)type, 9, 144);
    }
    check_cache(50, 33, 3, 80, 7);
    check_cache(40, 13, 2, 20, 0);
    check_copies(20001);
    return test_end("cuda_bf16");
}
