/* plot.h: loss curves of one or more runs as one SVG file, made by hand: no library, opens in any browser, follows
 * its light or dark theme. The raw training loss is drawn light, its average bold, validation as points. */
#ifndef LLMC_PLOT_H
#define LLMC_PLOT_H
#include "base/options.h"
#include <stddef.h>

enum { PLOT_RUNS_MAX = 16 };

typedef struct {
    char *const *runs;  /* run folders, or metrics.jsonl files */
    int num_runs;       /* 1 to PLOT_RUNS_MAX */
    const char *output; /* "-": stdout */
    const char *x;      /* "step", "tokens" or "seconds" */
    bool log_x;
    double smooth; /* part of the curve, 0 to 1, that the bold line averages over; 0: no bold line */
} PlotConfig;

/* Reads the runs and writes the plot. Its size is bounded however long the runs are. A run that is missing or holds no
 * finite loss is an error. */
bool plot_write(const PlotConfig *config, Error *err);

/* The command `plot`: as the options say, and says what it wrote. */
bool plot_run(const Options *options, Error *err);
#endif
