/* progress.h: what one step has to say, and the line on stdout that says it.
 *
 *   step   120/1000  12.0%  loss 2.3456  val 2.4012  norm 0.98  lr 5.9e-04  310 ms  3.3k tok/s  mfu 71.2%  ...
 *
 * On a terminal the line is coloured, and evaluations are followed by a sparkline of the loss so far. */
#ifndef LLMC_PROGRESS_H
#define LLMC_PROGRESS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* One step for all who report it (this line, metrics.jsonl, TensorBoard). A NaN loss is a loss; in the other doubles
 * NaN means unknown. */
typedef struct {
    int64_t step, steps; /* 1 is the first; 0: an evaluation before it */
    int64_t tokens;      /* trained on so far */
    bool has_loss;       /* false at step 0 */
    bool has_val;        /* validation was measured at this step */
    bool skipped;        /* the update was left out as an outlier */
    double loss, val_loss;
    double norm, learning_rate; /* global norm of the gradient before clipping */
    double step_seconds;        /* of this step */
    double seconds;             /* spent training, over all resumes */
    double tokens_per_second;
    double mfu;            /* 0 to 1 */
    uint64_t memory_bytes; /* 0: unknown */
} ProgressStep;

enum { PROGRESS_BUCKETS = 48 };

typedef struct {
    FILE *out;
    bool color;
    bool sparkline_due;      /* steps have come since the last one */
    double smoothed_seconds; /* of a step, for the time left; 0: none yet */
    double last_val;         /* NaN: none yet */
    /* the mean loss of each run of bucket_steps steps; when full, neighbours are merged */
    double bucket[PROGRESS_BUCKETS];
    int num_buckets, in_bucket, bucket_steps;
    double bucket_sum;
} Progress;

/* color: auto, always or never, as of --color; auto: out is a terminal, TERM is not dumb and NO_COLOR is unset. */
void progress_open(Progress *progress, FILE *out, const char *color);

/* Takes every step into account (time left, sparkline), and prints its line if `print`. */
void progress_step(Progress *progress, const ProgressStep *step, bool print);

/* The sparkline of the loss so far, on a line of its own; nothing where there is no colour, or
 * no step since the last one. */
void progress_sparkline(Progress *progress);

/* The line without its newline; seconds_left NaN: not shown; val: the last one known, NaN: none. Returns its length in
 * bytes; cut to fit. */
size_t progress_format(const ProgressStep *step, double val, double seconds_left, bool color, char *out,
                       size_t size);

/* Blocks for n values between their least and largest; NaN and infinities are shown as '!'. */
void progress_spark(const double *values, int n, char *out, size_t size);

/* "4m32s", "2d03h"; "310 ms", "3.3k", "1.2 GB". Each returns out. */
enum { PROGRESS_NUMBER_BYTES = 24 };
char *progress_duration(double seconds, char out[PROGRESS_NUMBER_BYTES]);
char *progress_milliseconds(double seconds, char out[PROGRESS_NUMBER_BYTES]);
char *progress_count(double count, char out[PROGRESS_NUMBER_BYTES]);
char *progress_bytes(uint64_t bytes, char out[PROGRESS_NUMBER_BYTES]);
#endif
