/* data_parallel.h: one model, many ranks, each with its own part of every batch.
 *
 * A bucket is one layer's range of the flat arrays (bucket l+1), or that of the MODEL tensors (bucket 0); every rank owns a
 * share of each. As the backward completes a bucket, its gradients are reduce-scattered to the owners while the backward
 * goes on; every owner updates its share (so the optimizer's memory is divided among the ranks: ZeRO stage 1, Rajbhandari
 * et al., arXiv 1910.02054), and the new parameters are gathered while the next forward begins. With one rank nothing
 * is communicated, and the one share is everything. */
#ifndef LLMC_DATA_PARALLEL_H
#define LLMC_DATA_PARALLEL_H
#include "comm/comm.h"
#include "model/adamw.h"
#include "model/gpt2.h"

typedef struct {
    Comm *comm;
    GPT2 *model;
    int rank, size, buckets;
    size_t *offsets;       /* (buckets, size + 1): the shares, in elements from the bucket's begin */
    AdamWRange *shares;    /* (buckets): this rank's, in elements of the flat arrays */
    CommRequest *requests; /* (buckets): what is under way on it */
    bool reducing;         /* the backward that runs completes the gradients of the step */
    bool failed;
    Error error; /* of a wait inside the walk, which cannot stop there: said by the next wait outside */
} DataParallel;

/* Divides m's arrays among the ranks of comm, moves them into memory from comm_alloc, and hooks into the walk. */
bool data_parallel_open(DataParallel *p, Comm *comm, GPT2 *m, Error *err);
void data_parallel_close(DataParallel *p);

/* Before the backward of a step's last batch: its gradients are summed over ranks as they are completed. */
void data_parallel_reduce_next(DataParallel *p);
/* Waits for the sums; then the gradients of this rank's shares are those of the whole step. */
bool data_parallel_finish(DataParallel *p, Error *err);
/* The sum of squares of the gradients of this rank's shares. */
double data_parallel_norm_squared(const DataParallel *p);
/* After an update of the shares: zeroes all gradients and begins to gather the parameters. */
void data_parallel_gather(DataParallel *p);
/* Waits for the parameters: before anything but the walk reads them. */
bool data_parallel_wait(DataParallel *p, Error *err);

/* values (count <= 8) become their sums over all ranks, added in the order of ranks: the same bits on every rank. */
bool data_parallel_sum(DataParallel *p, double *values, int count, Error *err);
#endif
