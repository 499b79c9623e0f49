/* outlier.c: see outlier.h. The sums are made anew each time: 128 additions are nothing, and cannot drift. */
#include "run/outlier.h"
#include <math.h>

double outlier_score(Outlier *o, double value) {
    if (!isfinite(value)) return INFINITY;
    double score = 0;
    if (o->seen >= OUTLIER_WINDOW) {
        double mean = 0, variance = 0;
        for (int i = 0; i < OUTLIER_WINDOW; i++) mean += o->values[i] / OUTLIER_WINDOW;
        for (int i = 0; i < OUTLIER_WINDOW; i++)
            variance += (o->values[i] - mean) * (o->values[i] - mean) / OUTLIER_WINDOW;
        if (variance > 0) score = (value - mean) / sqrt(variance);
    }
    o->values[o->seen++ % OUTLIER_WINDOW] = value;
    return score;
}
