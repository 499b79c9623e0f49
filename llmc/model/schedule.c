/* schedule.c: see schedule.h. */
#include "model/schedule.h"
#include <math.h>

/* 0 at step `first`, 1 at the last step. */
static double progress(const Schedule *s, double first, int step) {
    double last = s->steps - 1;
    if (step >= last) return 1;
    return step <= first ? 0 : (step - first) / (last - first);
}

double schedule_learning_rate(const Schedule *s, int step) {
    if (step < s->warmup) return s->peak * (step + 1) / s->warmup;
    double remaining = 1;
    switch (s->kind) {
    case SCHEDULE_COSINE:
        remaining = 0.5 * (1 + cos(3.141592653589793 * progress(s, s->warmup, step)));
        break;
    case SCHEDULE_LINEAR: remaining = 1 - progress(s, s->warmup, step); break;
    case SCHEDULE_CONSTANT: break;
    case SCHEDULE_WSD:
        remaining = 1 - progress(s, fmax(s->warmup, s->steps * (1 - s->decay_fraction)), step);
        break;
    }
    return s->peak * (s->final_fraction + (1 - s->final_fraction) * remaining);
}
