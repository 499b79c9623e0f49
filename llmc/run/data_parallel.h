/* data_parallel.h: one model, many ranks, each with its own part of every batch.
 *
 * A bucket is one layer's range of the flat arrays (bucket l+1), or that of the MODEL tensors (bucket 0); every rank owns a
 * share of each. As the backward completes a bucket, its gradients are reduce-scattered to the owners while the backward
 * goes on; every owner updates its share (so the optimizer's memory is divided among the ranks: ZeRO stage 1, Rajbhandari
 * et al., arXiv 1910.02054), and the new parameters are gathered while the next forward begins. With one rank nothing
 * is communicated, and the one share is everything.
 *
 * What the sum over ranks is, Reduce says:
 *   fp32   added as they are, in an order that depends on the ranks and the backend;
 *   bf16   every rank's sum is rounded to bf16, half the bytes; shm adds those in fp32 and rounds the sum once, mpi and torus
 *          round every partial sum on its way. With one rank: fp32;
 *   exact  exact_sum.h: the same bits for any number of ranks, any backend and any algorithm, as long as the micro-batches
 *          of a step are the same. Costs 4 bytes a parameter. */
#ifndef LLMC_DATA_PARALLEL_H
#define LLMC_DATA_PARALLEL_H
#include "comm/comm.h"
#include "model/adamw.h"
#include "model/gpt2.h"
#include "run/exact_sum.h"

typedef enum { REDUCE_FP32, REDUCE_BF16, REDUCE_EXACT } Reduce;
enum { DATA_PARALLEL_SUMS_MAX = 8 };

typedef struct {
    Comm *comm;
    GPT2 *model;
    int rank, size, buckets;
    size_t *offsets;       /* (buckets, size + 1): the shares, in elements from the bucket's begin */
    AdamWRange *shares;    /* (buckets): this rank's, in elements of the flat arrays */
    CommRequest *requests; /* (buckets): what is under way on it */
    bool reducing;         /* the backward that runs completes the gradients of the step */
    Reduce reduce;
    void *wire; /* (param_count) what travels instead of the gradients: int32 of exact, bf16 of bf16 */
    int32_t digits[DATA_PARALLEL_SUMS_MAX][EXACT_DIGITS];
    /* exact: */
    int bits;                             /* exact_bits */
    size_t blocks;                        /* EXACT_BLOCK elements, cut anew in every bucket */
    uint8_t *levels;                      /* (blocks) the grids of the step; saved with a run */
    uint8_t *most;                        /* (blocks) what they had to hold */
    double *squares;                      /* (blocks) sums of squares, of this rank's shares */
    uint8_t *device_levels, *device_most; /* (blocks) the same, where kernels have them */
    double *device_squares;
    bool levels_written; /* device_levels are the levels */
    bool fresh;          /* the next backward is the first of the step */
    bool not_finite;     /* some micro-batch of the step had a NaN or an infinity */
    int64_t repeats;     /* steps computed twice so far */
    bool failed;
    Error error; /* of a wait inside the walk, which cannot stop there: said by the next wait outside */
} DataParallel;

/* Bytes that data_parallel_open allocates beside the model's for n parameters. */
size_t data_parallel_bytes(size_t n, Reduce reduce);
/* Divides m's arrays among the ranks of comm, moves them into memory from comm_alloc, and hooks into the walk.
 * micro_batches: of a step, on all ranks; for exact EXACT_TERMS_MAX at most. */
bool data_parallel_open(DataParallel *p, Comm *comm, GPT2 *m, Reduce reduce, int64_t micro_batches,
                        Error *err);
void data_parallel_close(DataParallel *p);

/* Before the backward of a step's last batch: its gradients are summed over ranks as they are completed. */
void data_parallel_reduce_next(DataParallel *p);
/* Waits for the sums; then the gradients of this rank's shares are those of the whole step, unless *again, alike on all
 * ranks, says that the grids of exact were wrong: then all micro-batches have to be computed once more. */
bool data_parallel_finish(DataParallel *p, bool *again, Error *err);
/* Adds the sum of squares of the gradients of this rank's shares to *sum. */
void data_parallel_norm_squared(const DataParallel *p, ExactSum *sum);
/* After an update of the shares: zeroes all gradients and begins to gather the parameters. */
void data_parallel_gather(DataParallel *p);
/* Waits for the parameters: before anything but the walk reads them. */
bool data_parallel_wait(DataParallel *p, Error *err);

/* values (count <= DATA_PARALLEL_SUMS_MAX): the sums over all ranks, the same bits on every rank. */
bool data_parallel_sum(DataParallel *p, const ExactSum *sums, double *values, int count, Error *err);
#endif
