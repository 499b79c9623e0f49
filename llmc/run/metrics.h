/* metrics.h: the record of a run in its folder: metrics.jsonl, one JSON object a line, and a TensorBoard event file.
 *
 * metrics.jsonl is the truth: no step stands in it twice, however often the run was stopped and resumed, and only its
 * last line can be torn (by a crash). `tensorboard --logdir FOLDER` shows the same values.
 *
 *   {"step": 120, "tokens": 122880, "loss": 2.34, "val_loss": 2.4, "norm": 0.98, "lr": 0.00059, "ms": 310.2,
 *    "tokens_per_second": 3301, "mfu": 0.712, "memory_bytes": 1200000000, "seconds": 37.1}
 *
 * val_loss stands only where it was measured, "skipped": true only where an update was left out. null: not a number
 * (loss, norm) or unknown (mfu). */
#ifndef LLMC_METRICS_H
#define LLMC_METRICS_H
#include "base/error.h"
#include "base/file.h"
#include "run/progress.h"

typedef struct {
    char path[FILE_PATH_BYTES], events_path[FILE_PATH_BYTES];
    int fd, events_fd; /* -1: closed */
    int64_t last_step; /* -1: none */
    uint64_t bytes, events_bytes;
} Metrics;

/* Opens the files in a folder that exists, to go on after resumed_step (0: from the start). Lines of later steps, and
 * a torn one, are taken out of metrics.jsonl first; TensorBoard, whose files are only ever added, is told to forget
 * them. From the start: what an earlier run left becomes metrics.jsonl.old. */
bool metrics_open(Metrics *metrics, const char *folder, int64_t resumed_step, Error *err);

/* Appends one step, which must be larger than the last; step 0 may hold only a validation loss. Allocates nothing. A
 * line that the disk did not take whole is taken back. */
bool metrics_step(Metrics *metrics, const ProgressStep *step, Error *err);

/* Makes all so far durable: before a save says that the run got this far. */
bool metrics_sync(Metrics *metrics, Error *err);

/* Closes; a zeroed or closed Metrics may be closed. */
void metrics_close(Metrics *metrics);

/* The line of a step with its newline; returns its length, 0 if it does not fit. */
size_t metrics_format(const ProgressStep *step, char *out, size_t size);
#endif
