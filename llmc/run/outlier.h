/* outlier.h: how unusual is this loss or gradient norm? A z-score against the last OUTLIER_WINDOW values.
 *
 * The struct is plain data: it is saved with the run, so that a resumed run judges as it would have. */
#ifndef LLMC_OUTLIER_H
#define LLMC_OUTLIER_H
#include <stdint.h>

enum { OUTLIER_WINDOW = 128 };

typedef struct {
    double values[OUTLIER_WINDOW]; /* a ring */
    uint64_t seen;
} Outlier;

/* The z-score of value among the values before it (0 until the window is full, or if all were equal; +infinity for a
 * value that is not finite), then takes it into the window unless it is not finite. */
double outlier_score(Outlier *o, double value);
#endif
