/* comm.h: collective operations among ranks, whatever carries them.
 *
 * A Comm is a group of ranks and a backend (a struct of functions with a name: self, mpi, shm, torus, nccl). Operations are
 * asynchronous: they are queued, run in the order they were begun by one thread of the Comm while the caller computes,
 * and waited for. All ranks of a group begin the same operations in the same order; a difference in operation, count,
 * type or reduction is an error on every rank, never a hang. Every wait has a deadline (CommConfig.timeout_seconds).
 * After the first error a Comm is dead: every later call returns that error, which names rank, host, peer, operation
 * and its sequence number.
 *
 * Buffers are host memory of the caller, or memory from comm_alloc, and must stay until the operation is done. comm_alloc's
 * is shared within a host, and then not copied; with CommConfig.memory it is memory of a device, which a backend either
 * works on itself (nccl) or has copied to the host and back. */
#ifndef LLMC_COMM_H
#define LLMC_COMM_H
#include "base/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* BF16 is added in fp32: by shm all ranks at once and rounded once, by mpi and torus rank by rank, each partial sum rounded
 * to travel on. Integers wrap around. */
typedef enum { COMM_FP32, COMM_BF16, COMM_INT32, COMM_UINT8 } CommType;
typedef enum { COMM_SUM, COMM_MAX } CommOp;

size_t comm_type_bytes(CommType type);

typedef struct Comm Comm;

/* The memory of the device that the caller computes on, with the meaning that model/device.h gives these functions. Called
 * from any thread. */
typedef struct {
    void *(*alloc)(size_t bytes);
    void (*free)(void *memory, size_t bytes);
    uint64_t (*mark)(void);
    bool (*is_done)(uint64_t mark);
    void (*read)(void *host, const void *device, size_t bytes);
    void (*write)(void *device, const void *host, size_t bytes);
    bool (*pin)(void *host, size_t bytes);
    void (*unpin)(void *host);
    void *(*stream_open)(void);
    void (*stream_read)(void *stream, void *host, const void *device, size_t bytes);
    void (*stream_write)(void *stream, void *device, const void *host, size_t bytes);
    void (*stream_wait)(void *stream);
    bool (*stream_is_done)(void *stream);
    void (*stream_close)(void *stream);
    const char *(*name)(void);
} CommMemory;

typedef struct {
    const char *backend;      /* self, mpi, shm, torus, nccl or auto */
    const char *topology;     /* topology.h: "" (by the backend), ring:8, torus:4x4x4, flat:64, file:PATH */
    double timeout_seconds;   /* of every wait; 0: 10 */
    int64_t step;             /* named in errors; comm_set_step changes it */
    const CommMemory *memory; /* NULL: the caller computes in host memory. Must stay until comm_close */
} CommConfig;

/* The names that CommConfig.backend may have beside auto: index 0, 1, ...; NULL after the last. */
const char *comm_backend_name(int index);

/* Joins the ranks that were launched together (control.h) into one group; of a single process, the group of one.
 * Says on rank 0 what was chosen and why. */
bool comm_open(Comm **comm, const CommConfig *config, Error *err);
/* Waits for what was begun, then leaves. NULL: nothing. */
void comm_close(Comm *comm);

int comm_rank(const Comm *comm);
int comm_size(const Comm *comm);
/* The host that a rank runs on, and the rank's number among those of its host. */
const char *comm_host(const Comm *comm, int rank);
int comm_local_rank(const Comm *comm, int rank);
/* For people: backend, algorithm, hosts, topology. Lives as long as the Comm. */
const char *comm_describe(const Comm *comm);
/* How the last operation of this group was done, in a word or two ("6 colours", "direct"); "none" before the first.
 * While nothing is on the way. */
const char *comm_last_algorithm(const Comm *comm);
/* The step that errors name. */
void comm_set_step(Comm *comm, int64_t step);

/* The ranks with the same colour become a group of their own, ranked by (key, rank); they share the parent's backend and
 * its thread: operations of all groups of a process run one after another, so ranks in several groups must begin them in
 * compatible orders. All ranks of the parent call it; a negative colour joins none (*comm is NULL). Close the parts
 * before the world. */
bool comm_split(Comm *parent, int colour, int key, Comm **comm, Error *err);

/* Memory that other ranks of the host can read where the backend can use that; zeroed, 2 MiB aligned; with
 * CommConfig.memory the device's, zeroed. What the caller launched on the device before an operation begins is waited for
 * by the operation. All ranks call
 * it with the same bytes, in the same order. NULL with err if there is none. comm_close frees it. */
void *comm_alloc(Comm *comm, size_t bytes, Error *err);

/* --- operations: begin and wait --- */

/* 0: nothing to wait for. Numbers grow in the order of beginning, over all groups of a process. */
typedef uint64_t CommRequest;

/* data (count) of every rank becomes the reduction over all ranks, in place. */
CommRequest comm_all_reduce(Comm *comm, void *data, size_t count, CommType type, CommOp op);
/* offsets (size + 1, ascending, elements): rank r ends with the reduction of data[offsets[r] .. offsets[r+1]); the rest
 * of data is scratch afterwards. Shares may be empty and uneven. offsets must stay until done. */
CommRequest comm_reduce_scatter(Comm *comm, void *data, const size_t *offsets, CommType type, CommOp op);
/* The reverse: rank r's own range reaches every rank. */
CommRequest comm_all_gather(Comm *comm, void *data, const size_t *offsets, CommType type);
CommRequest comm_broadcast(Comm *comm, void *data, size_t bytes, int root);
/* May wait for the peer's comm_recv: two ranks that exchange begin them in opposite orders (the lower sends first). */
CommRequest comm_send(Comm *comm, const void *data, size_t bytes, int to);
CommRequest comm_recv(Comm *comm, void *data, size_t bytes, int from);

/* Has it finished? True also if it failed, which comm_wait then says. */
bool comm_test(Comm *comm, CommRequest request);
/* Waits for it and all before it. */
bool comm_wait(Comm *comm, CommRequest request, Error *err);
bool comm_barrier(Comm *comm, Error *err);

/* If a failure is known and neither comm_abort nor comm_close has been called grace_seconds later, since the caller is busy
 * elsewhere, `end` is called with the line to say, from another thread; it must end the process. For main. */
void comm_watch(Comm *comm, double grace_seconds, void (*end)(const char *line));
/* While on, `end` waits: a file is being written that should be whole. */
void comm_hold(Comm *comm, bool on);

/* Tells every rank that this one gives up, and why: they fail with that reason, at once. */
void comm_abort(Comm *comm, const char *reason);
#endif
