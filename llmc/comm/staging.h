/* staging.h: operations on memory that the backend does not take: copied to where it does, and back. Internal to llmc/comm.
 *
 * A block of device memory from comm_alloc has a mirror in memory of the backend's own (for shm: shared, and then not
 * copied once more), of the same size, pinned where the system allows that; host memory, for a backend that works on
 * devices, goes through one block of device memory, which grows at first use. Only what an operation reads is copied
 * there and only what it writes is copied back, a large operation in pieces: while the backend works on one, the next is
 * copied there and the one before it back. Copies wait for what the caller had launched when it began the
 * operation, and for nothing else. With CommConfig.memory NULL all of this is idle. */
#ifndef LLMC_COMM_STAGING_H
#define LLMC_COMM_STAGING_H
#include "comm/comm.h"
#include "comm/world.h"

/* Device memory for comm_alloc, and its mirror if the backend needs one. NULL with err. Between world_take and _release. */
void *staging_alloc(Comm *comm, size_t bytes, Error *err);
/* Of those blocks that comm's backend gave the mirrors of; before it is closed. */
void staging_free(Comm *comm);
/* Notes in o whether its data is device memory, and what was launched before it. */
void staging_note(const World *w, WorldOperation *o);
/* Runs the operation by `run`, on a copy where that is needed. */
bool staging_run(const WorldOperation *o, bool (*run)(const WorldOperation *o, Error *err), Error *err);
#endif
