/* plot_data.h: the loss curves of one run as its metrics.jsonl holds them, and what is made of them for a plot. */
#ifndef LLMC_PLOT_DATA_H
#define LLMC_PLOT_DATA_H
#include "base/error.h"
#include "base/file.h"
#include <stddef.h>

typedef struct {
    size_t count, size;
    double *x, *y; /* x never falls; y NaN: the loss was no number */
} PlotCurve;

typedef struct {
    char name[256]; /* for the legend: last part of the path */
    PlotCurve train, val;
    size_t num_nan;  /* losses of train and val that are no number */
    double best_val; /* NaN: none */
} PlotRun;

/* Reads FOLDER/metrics.jsonl, or path itself if it is a file, taking the number called x_name ("step", "tokens" or
 * "seconds") as x; positive_only: only where it is above 0. Lines that are torn or not of a step are passed over. A
 * run without a single finite loss is an error. */
bool plot_run_read(PlotRun *run, const char *path, const char *x_name, bool positive_only, Error *err);
void plot_run_free(PlotRun *run);

/* Moving average of n values over `radius` of them to each side; fewer to the right at the end, and near the start at
 * most an eighth of those before, since losses fall steeply there. NaN stays NaN and does not count for others. */
void plot_smooth(const double *y, size_t n, size_t radius, double *out);

/* Value at quantile q (0 to 1) of the finite ones among n; NaN if there is none. Uses scratch, of n values. */
double plot_quantile(const double *y, size_t n, double q, double *scratch);

/* A round distance between ticks (1, 2 or 5 times a power of ten) so that at most max_ticks fit into span. */
double plot_tick_step(double span, int max_ticks);

/* The same for seconds: of 1, 2, 5, 10, 15, 30 s, the same in minutes, 1, 2, 3, 6, 12 h, days. */
double plot_time_step(double span, int max_ticks);
#endif
