/* sample.c: see sample.h.
 *
 * top-k and top-p both mean "all weights above a threshold, and as many equal to it as are still wanted"; the
 * threshold is found by bisection, 30 passes over the weights, with no sorting and no memory. */
#include "model/sample.h"
#include "base/rng.h"
#include <math.h>

static int most_likely(const float *logits, int vocab) {
    int best = 0;
    for (int i = 1; i < vocab; i++)
        if (logits[i] > logits[best] || isnan(logits[best])) best = i;
    return best;
}

/* exp((logit - max) / temperature) in place; NaN counts as impossible. Returns the sum. */
static double to_weights(float *logits, int vocab, double temperature) {
    double max = logits[most_likely(logits, vocab)], sum = 0;
    for (int i = 0; i < vocab; i++) {
        double w = exp((logits[i] - max) / temperature);
        logits[i] = isfinite(w) ? (float)w : 0;
        sum += logits[i];
    }
    return sum;
}

/* Makes the weights of all but the most likely tokens, which top_k and top_p keep, zero; returns the new sum. The
 * threshold is found by bisection over the bits of the weight: floats >= 0 sort as their bits do. */
static double keep_likely(float *weights, int vocab, double sum, const SampleConfig *config) {
    double p = config->top_p < 1 ? config->top_p * sum : INFINITY;
    int k = config->top_k > 0 ? config->top_k : vocab;
    union {
        float f;
        uint32_t u;
    } low = {.u = 0}, high = {.f = 1.5f}, middle;
    while (high.u - low.u > 1) { /* keeping all >= high is too few (or just enough), all >= low too many */
        middle.u = low.u + (high.u - low.u) / 2;
        int count = 0;
        double mass = 0;
        for (int i = 0; i < vocab; i++)
            if (weights[i] >= middle.f) {
                count++;
                mass += weights[i];
            }
        if (count >= k || mass >= p)
            low = middle;
        else
            high = middle;
    }
    double kept = 0;
    int count = 0;
    for (int i = 0; i < vocab; i++)
        if (weights[i] >= high.f) {
            kept += weights[i];
            count++;
        }
    for (int i = 0; i < vocab; i++) { /* ties at the threshold, lower ids first, until enough are in */
        if (weights[i] >= high.f) continue;
        if (weights[i] == low.f && count < k && kept < p) {
            kept += weights[i];
            count++;
        } else {
            weights[i] = 0;
        }
    }
    return kept;
}

int sample_token(float *logits, int vocab, const SampleConfig *config, uint64_t index) {
    if (config->temperature <= 0) return most_likely(logits, vocab);
    double sum = to_weights(logits, vocab, config->temperature);
    if (config->top_k > 0 || config->top_p < 1) sum = keep_likely(logits, vocab, sum, config);
    double left = sum * rng_uniform(config->seed, RNG_STREAM(RNG_SAMPLE, 0), index);
    int last = 0;
    for (int i = 0; i < vocab; i++) {
        if (logits[i] <= 0) continue;
        last = i;
        left -= logits[i];
        if (left < 0) break;
    }
    return last;
}
