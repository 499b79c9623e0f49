/* shm_reduce.h: reductions and copies among the buffers of several ranks in one pass over memory. */
#ifndef LLMC_COMM_SHM_REDUCE_H
#define LLMC_COMM_SHM_REDUCE_H
#include "comm/comm.h"

/* Every to[j] (n elements) = from[0] op from[1] op ... (n elements each), always in this order; BF16 is added in fp32
 * and rounded once, to nearest even. A `to` may be one of the `from`, else they must not overlap. num_from >= 1;
 * num_to may be 0. */
void shm_reduce(void *const *to, int num_to, const void *const *from, int num_from, size_t n, CommType type,
                CommOp op);

/* Every to[j] (bytes) = from (bytes). Past the caches: what is written is not read again soon. */
void shm_copy(void *const *to, int num_to, const void *from, size_t bytes);
#endif
