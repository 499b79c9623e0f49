/* evaluate.c: see evaluate.h. */
#include "run/evaluate.h"
#include "base/log.h"
#include "data/loader.h"
#include "run/hellaswag.h"
#include "run/trained.h"
#include <math.h>
#include <stdlib.h>

bool evaluate_batch(GPT2 *m, Loader *loader, int32_t *host, int32_t *device, uint64_t number, double *sum,
                    Error *err) {
    size_t n = m->B * m->T;
    if (!loader_batch(loader, number * m->B, (int)m->B, host, host + n, err)) return false;
    device_write(device, host, 2 * n * sizeof *host);
    gpt2_forward(m, device);
    gpt2_loss(m, device + n, 0);
    *sum += gpt2_loss_sum(m);
    return true;
}

uint64_t evaluate_batches(const Loader *loader, size_t B, int wanted) {
    uint64_t all = loader_samples(loader) / B;
    if (!all) all = 1;
    return wanted && (uint64_t)wanted < all ? (uint64_t)wanted : all;
}

static bool validation(Trained *t, const Options *o, Error *err) {
    GPT2 *m = &t->model;
    size_t bytes = 2 * m->B * m->T * sizeof(int32_t);
    double sum = 0;
    bool ok = false;
    int32_t *host = malloc(bytes), *device = device_alloc(bytes);
    Loader *loader = loader_open(o->val_data, (int)m->T, 0, false, m->config.vocab, err);
    if (!loader) goto out;
    if (!host || !device) {
        error_set(err, "no memory for a batch of %zu bytes", bytes);
        goto out;
    }
    if (loader_fingerprint(loader) && loader_fingerprint(loader) != tokenizer_fingerprint(t->tokenizer)) {
        error_set(err, "%s: was not made by this model's tokenizer (tokenize the text with it)", o->val_data);
        goto out;
    }
    uint64_t batches = evaluate_batches(loader, m->B, o->eval_batches);
    for (uint64_t i = 0; i < batches; i++)
        if (!evaluate_batch(m, loader, host, device, i, &sum, err)) goto out;
    double tokens = (double)batches * (double)(m->B * m->T);
    printf("val loss %.6f  perplexity %.4f  tokens %.0f\n", sum / tokens, exp(sum / tokens), tokens);
    ok = true;
out:
    loader_close(loader);
    device_free(device, bytes);
    free(host);
    return ok;
}

bool evaluate_run(const Options *o, Error *err) {
    enum { HELLASWAG_ROWS = 4 };
    if (!*o->val_data && !*o->hellaswag)
        return error_set(err, "nothing to evaluate on (give --val-data, --hellaswag, or both)");
    size_t T = (size_t)o->sequence, B = o->batch_size ? (size_t)o->batch_size : HELLASWAG_ROWS;
    Trained t;
    if (!trained_open(&t, o, *o->hellaswag && B < HELLASWAG_ROWS ? HELLASWAG_ROWS : B, T, err)) return false;
    t.model.B = B;
    bool ok = !*o->val_data || validation(&t, o, err);
    if (ok && *o->hellaswag) {
        HellaswagResult r;
        t.model.B = HELLASWAG_ROWS;
        ok = hellaswag_run(&t.model, t.tokenizer, o->hellaswag, 0, &r, err);
        if (ok)
            printf("hellaswag acc_norm %.4f  acc %.4f  questions %d\n", (double)r.right_by_mean / r.questions,
                   (double)r.right_by_sum / r.questions, r.questions);
    }
    trained_close(&t);
    return ok;
}
