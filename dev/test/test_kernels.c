/* test_kernels.c: the kernels besides matmuls, attention and decoding against naive.h, for every instruction set and
 * odd sizes; the same bits for 1, 2 and 3 threads. */
#include "kernel_test.h"

static void check_encoder(const char *isa, size_t B, size_t T, size_t C, size_t V) {
    size_t N = B * T;
    int32_t *tokens = test_alloc(N * sizeof *tokens);
    for (size_t i = 0; i < N; i++) /* a few tokens come many times */
        tokens[i] = (int32_t)((double)V * rng_uniform(test_seed, RNG_STREAM(RNG_TEST, 1), i) *
                              rng_uniform(test_seed, RNG_STREAM(RNG_TEST, 2), i));
    float *wte = test_random(V * C, 1), *wpe = test_random(T * C, 1), *dout = test_random(N * C, 1);
    float *dwte0 = test_random(V * C, 1), *dwpe0 = test_random(T * C, 1);
    double *out_wide = test_doubles(NULL, N * C), *dwte_wide = test_doubles(dwte0, V * C);
    double *dwpe_wide = test_doubles(dwpe0, T * C);
    naive_encoder_forward(out_wide, tokens, test_doubles(wte, V * C), test_doubles(wpe, T * C), B, T, C);
    naive_encoder_backward(dwte_wide, dwpe_wide, test_doubles(dout, N * C), tokens, B, T, C);
    float *first_dwte = NULL, *first_dwpe = NULL;
    for (int threads = 1; threads <= 3; threads++) {
        test_threads(threads);
        float *out = test_poisoned(N * C), *dwte = test_copy(dwte0, V * C), *dwpe = test_copy(dwpe0, T * C);
        encoder_forward(out, tokens, wte, wpe, B, T, C);
        encoder_backward(dwte, dwpe, dout, tokens, B, T, C);
        test_near(isa, "encoder out", out, out_wide, N * C, 1e-7);
        test_near(isa, "encoder dwte", dwte, dwte_wide, V * C, 1e-6);
        test_near(isa, "encoder dwpe", dwpe, dwpe_wide, T * C, 1e-6);
        if (threads == 1) first_dwte = dwte, first_dwpe = dwpe;
        test_same_bits(isa, "encoder dwte", dwte, first_dwte, V * C, threads);
        test_same_bits(isa, "encoder dwpe", dwpe, first_dwpe, T * C, threads);
    }
    test_free_all();
}

/* offset: a mean far from zero, where a one-pass variance would lose everything. */
static void check_layernorm(const char *isa, size_t N, size_t C, float offset) {
    float *x = test_random(N * C, 1), *w = test_random(C, 1), *b = test_random(C, 1),
          *dout = test_random(N * C, 1);
    for (size_t i = 0; i < N * C; i++) x[i] += offset;
    float *dx0 = test_random(N * C, 1), *dw0 = test_random(C, 1), *db0 = test_random(C, 1);
    double *x_wide = test_doubles(x, N * C), *w_wide = test_doubles(w, C),
           *out_wide = test_doubles(NULL, N * C);
    double *mean_wide = test_doubles(NULL, N), *rstd_wide = test_doubles(NULL, N);
    double *dx_wide = test_doubles(dx0, N * C), *dw_wide = test_doubles(dw0, C),
           *db_wide = test_doubles(db0, C);
    naive_layernorm_forward(out_wide, mean_wide, rstd_wide, x_wide, w_wide, test_doubles(b, C), N, C);
    naive_layernorm_backward(dx_wide, dw_wide, db_wide, test_doubles(dout, N * C), x_wide, w_wide, mean_wide,
                             rstd_wide, N, C);
    double bound = offset != 0 ? 1e-4 : C < 8 ? 1e-5 : 1e-6; /* few columns may lie close together */
    float *first[6] = {0};
    for (int threads = 1; threads <= 3; threads++) {
        test_threads(threads);
        float *out = test_poisoned(N * C), *again = test_poisoned(N * C);
        float *mean = test_poisoned(N), *rstd = test_poisoned(N);
        float *dx = test_copy(dx0, N * C), *dw = test_copy(dw0, C), *db = test_copy(db0, C);
        layernorm_forward(out, mean, rstd, x, w, b, N, C);
        layernorm_recompute(again, mean, rstd, x, w, b, N, C);
        layernorm_backward(dx, dw, db, dout, x, w, mean, rstd, N, C);
        test_near(isa, "layernorm out", out, out_wide, N * C, bound);
        test_near(isa, "layernorm mean", mean, mean_wide, N, 1e-5);
        test_near(isa, "layernorm rstd", rstd, rstd_wide, N, bound);
        test_near(isa, "layernorm dx", dx, dx_wide, N * C, bound);
        test_near(isa, "layernorm dw", dw, dw_wide, C, bound);
        test_near(isa, "layernorm db", db, db_wide, C, bound);
        TEST_CHECK(!memcmp(out, again, N * C * sizeof *out), "%s: layernorm_recompute differs", isa);
        float *all[6] = {out, mean, rstd, dx, dw, db};
        const size_t sizes[6] = {N * C, N, N, N * C, C, C};
        for (int i = 0; i < 6; i++) {
            if (threads == 1) first[i] = all[i];
            test_same_bits(isa, "layernorm", all[i], first[i], sizes[i], threads);
        }
    }
    test_free_all();
}

static void check_classifier(const char *isa, size_t N, size_t V, size_t Vp, float scale, float dloss) {
    float *logits = test_random(N * Vp, scale);
    int32_t *targets = test_alloc(N * sizeof *targets);
    for (size_t i = 0; i < N; i++)
        targets[i] =
            i % 5 == 3 ? -1 : (int32_t)((double)V * rng_uniform(test_seed, RNG_STREAM(RNG_TEST, 1), i));
    targets[0] = (int32_t)V - 1;
    for (size_t i = 0; i < N; i++) /* padding that would be seen, were it counted */
        for (size_t j = V; j < Vp; j++) logits[i * Vp + j] = j % 2 ? 1e30f : NAN;
    double *logits_wide = test_doubles(logits, N * Vp), *losses_wide = test_doubles(NULL, N);
    naive_classifier(logits_wide, losses_wide, targets, dloss, N, V, Vp);
    float *first = NULL;
    for (int threads = 1; threads <= 3; threads++) {
        test_threads(threads);
        float *got = test_copy(logits, N * Vp), *losses = test_poisoned(N);
        classifier(got, losses, targets, dloss, N, V, Vp);
        test_near(isa, "classifier losses", losses, losses_wide, N, 1e-6);
        if (dloss != 0)
            test_near(isa, "classifier gradient", got, logits_wide, N * Vp, 2e-6);
        else
            TEST_CHECK(!memcmp(got, logits, N * Vp * sizeof *got), "%s: classifier without dloss wrote", isa);
        if (threads == 1) first = got;
        test_same_bits(isa, "classifier", got, first, N * Vp, threads);
    }
    test_free_all();
}

static void check_classifier_nan(const char *isa, size_t V) {
    const size_t places[] = {0, V / 2, V - 1};
    for (size_t i = 0; i < 3; i++)
        for (int bad = 0; bad < 2; bad++) {
            float *logits = test_random(V, 1), *loss = test_random(1, 1);
            int32_t *target = test_alloc(sizeof *target);
            *target = 1 % (int32_t)V;
            logits[places[i]] = bad ? INFINITY : NAN;
            classifier(logits, loss, target, 0.5f, 1, V, V);
            test_sync();
            TEST_CHECK(!isfinite(*loss), "%s V %zu at %zu: loss %g", isa, V, places[i], (double)*loss);
            test_free_all();
        }
}

static void check_adamw(const char *isa, size_t n, AdamWArgs args) {
    float *p0 = test_random(n, 1), *m0 = test_random(n, 0.1f), *v0 = test_random(n, 0.01f),
          *g0 = test_random(n, 2);
    for (size_t i = 0; i < n; i++) v0[i] = fabsf(v0[i]);
    if (n > 2) g0[2] = m0[2] = v0[2] = 0;
    double *p_wide = test_doubles(p0, n), *g_wide = test_doubles(g0, n), *m_wide = test_doubles(m0, n);
    double *v_wide = test_doubles(v0, n);
    naive_adamw(p_wide, g_wide, m_wide, v_wide, n, (double)args.lr, (double)args.beta1, (double)args.beta2,
                (double)args.eps, (double)args.decay, (double)args.grad_scale, args.step);
    float *first = NULL;
    for (int threads = 1; threads <= 3; threads++) {
        test_threads(threads);
        float *p = test_copy(p0, n), *g = test_copy(g0, n), *m = test_copy(m0, n), *v = test_copy(v0, n);
        adamw_kernel(p, NULL, g, m, v, n, &args);
        test_near(isa, "adamw p", p, p_wide, n, 1e-7);
        test_near(isa, "adamw m", m, m_wide, n, n < 100 ? 5e-7 : 2e-7); /* few may nearly cancel */
        test_near(isa, "adamw v", v, v_wide, n, 2e-7);
        test_near(isa, "adamw g", g, g_wide, n, 0);
        for (size_t i = 0; i < n; i++) p_wide[i] -= (double)p0[i], p[i] -= p0[i];
        test_near(isa, "adamw step", p, p_wide, n,
                  n < 100 ? 1e-3 : 3e-4); /* p rounds at 6e-8 of 1; a step is 1e-3 */
        for (size_t i = 0; i < n; i++) p_wide[i] += (double)p0[i];
        if (threads == 1) first = p;
        test_same_bits(isa, "adamw", p, first, n, threads);
    }
    test_free_all();
}

static void check_sum_of_squares(const char *isa, size_t n) {
    float *x = test_random(n, 1e20f); /* squares that float could not hold */
    long double sum = 0;
    double first = 0;
    for (size_t i = 0; i < n; i++) sum += (long double)x[i] * (long double)x[i];
    double want = (double)sum;
    for (int threads = 1; threads <= 3; threads++) {
        test_threads(threads);
        double got = sum_of_squares(x, n);
        if (threads == 1) first = got;
        TEST_CHECK(fabs(got - want) <= 1e-13 * want, "%s n %zu: %.17g, want %.17g", isa, n, got, want);
        TEST_CHECK(!memcmp(&got, &first, sizeof got), "%s n %zu threads %d: other bits", isa, n, threads);
    }
    if (n) {
        x[n - 1] = NAN;
        TEST_CHECK(isnan(sum_of_squares(x, n)), "%s n %zu: a NaN was lost", isa, n);
    }
    test_free_all();
}

/* The error per element, since gelu and the exponential inside it span many magnitudes. */
static void check_gelu(const char *isa, size_t n, float scale) {
    float *x = test_random(n, scale), *out = test_poisoned(n), *in_place = test_copy(x, n);
    gelu_forward(out, x, n);
    gelu_forward(in_place, in_place, n);
    test_sync();
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double want = naive_gelu((double)x[i]), error = fabs((double)out[i] - want);
        double bound = 5e-7 * fabs(want) + 1e-7 * fmin(1, fabs((double)x[i]));
        if (!(error / bound <= worst)) worst = isnan((double)out[i]) ? INFINITY : error / bound;
    }
    TEST_CHECK(worst <= 1, "%s n %zu scale %g: error %.3g of the bound", isa, n, (double)scale, worst);
    TEST_CHECK(!memcmp(out, in_place, n * sizeof *out), "%s n %zu: in place differs", isa, n);
    test_free_all();
}

static void check_isa(const char *isa) {
    check_encoder(isa, 1, 1, 1, 3);
    check_encoder(isa, 3, 5, 7, 11);
    check_encoder(isa, 2, 70, 145, 30);
    check_encoder(isa, 5, 129, 24, 3);
    check_layernorm(isa, 3, 3, 0);
    check_layernorm(isa, 5, 7, 0);
    check_layernorm(isa, 100, 48, 0);
    check_layernorm(isa, 131, 771, 0);
    check_layernorm(isa, 1100, 33, 100);
    for (int gradient = 0; gradient < 2; gradient++) {
        float dloss = gradient ? 0.37f : 0;
        check_classifier(isa, 1, 1, 1, 1, dloss);
        check_classifier(isa, 7, 5, 8, 1, dloss);
        check_classifier(isa, 33, 257, 384, 10, dloss);
        check_classifier(isa, 9, 5003, 5120, 80, dloss);
    }
    check_classifier_nan(isa, 2);
    check_classifier_nan(isa, 77);
    check_classifier_nan(isa, 128);
    const AdamWArgs first = {6e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.7f, 1, 0, 0},
                    late = {3e-4f, 0.9f, 0.999f, 1e-8f, 0, 1, 5000, 0, 0};
    const size_t sizes[] = {0, 1, 3, 17, 1000, 40003};
    for (size_t i = 0; i < 6; i++) {
        check_adamw(isa, sizes[i], first);
        check_adamw(isa, sizes[i], late);
        check_sum_of_squares(isa, sizes[i] * 4 + sizes[i] / 3);
        check_gelu(isa, sizes[i], 12);
        check_gelu(isa, sizes[i] * 2, 1);
    }
    check_gelu(isa, 100, 1e30f);
}

int main(void) {
    test_every_isa(check_isa);
    return test_end("kernels");
}
