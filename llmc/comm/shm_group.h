/* shm_group.h: what the ranks of a shared-memory group share, and how they meet in it. Internal to comm_shm.c and
 * shm_*.c.
 *
 *   head | slots (size, 2) | boxes (size) | stages (size, 2) | pairs (size, size)
 *
 * Every collective operation begins with a round: each rank puts its header, where its buffer lies and up to
 * SHM_SMALL_BYTES of data into its slot, and waits until all others have. Slots alternate between even and odd rounds:
 * a rank that writes its slot of round r + 2 has passed round r + 1, which everyone entered after reading round r. The
 * same holds for the two halves of a rank's stage. */
#ifndef LLMC_COMM_SHM_GROUP_H
#define LLMC_COMM_SHM_GROUP_H
#include "comm/shm_memory.h"
#include "comm/shm_wait.h"

enum {
    SHM_LINES_BYTES = 128, /* two cache lines, which processors fetch together */
    SHM_SMALL_BYTES = 4096,
    SHM_STAGE_BYTES = 256 << 10,
    SHM_PAIR_CHUNKS = 4,
    SHM_PAIR_BYTES = 64 << 10
};

typedef struct {
    _Alignas(SHM_LINES_BYTES) ShmWord entered; /* the round */
    CommHeader header;
    ShmPlace place;
    _Alignas(SHM_LINES_BYTES) char data[SHM_SMALL_BYTES];
} ShmSlot;

/* Work on large buffers is cut into chunks, and whoever is free takes the next one: which rank adds a chunk does not
 * change the order of the sum, and nobody waits for a rank that the system does not let run. */
typedef struct {
    _Alignas(SHM_LINES_BYTES) _Atomic uint32_t next;
    _Alignas(SHM_LINES_BYTES) ShmWord done;
} ShmWork;

typedef struct {
    uint64_t key;    /* of the group; proves that the file was the right one */
    ShmWork work[2]; /* by turns */
} ShmHead;

/* Of one rank. */
typedef struct {
    _Alignas(SHM_LINES_BYTES) _Atomic uint32_t working; /* is it in the middle of a chunk? */
    /* Where the first rank of a new, smaller group says how to find the memory of that group. */
    _Atomic uint64_t key; /* 0: nothing there */
    ShmFile file;
} ShmBox;

/* A queue of chunks from one rank to another. A message is a ShmMessage, then the data, cut into chunks. */
typedef struct {
    _Alignas(SHM_LINES_BYTES) ShmWord written; /* chunks so far */
    _Alignas(SHM_LINES_BYTES) ShmWord read;
    _Alignas(SHM_LINES_BYTES) char data[SHM_PAIR_CHUNKS][SHM_PAIR_BYTES];
} ShmPair;

typedef struct {
    ShmHead *head;
    ShmSlot *slots;
    ShmBox *boxes;
    char *stages;
    ShmPair *pairs;
    void *memory; /* all of these */
    size_t memory_bytes;
    bool crowded;
    uint32_t round, turn, regions;
    const void **from; /* (size) scratch */
    void **to;
    size_t *offsets; /* (size + 1) scratch */
} Shm;

bool shm_group_open(CommGroup *group, Error *err);
void shm_group_close(CommGroup *group);

/* Enters the next round without a header, and waits until all have. */
bool shm_step(CommGroup *group, Error *err);
/* Enters the next round, waits until all have, and compares headers. data (bytes) may be read by all others in
 * shm_slot(shm, rank)->data until this rank's next round. */
bool shm_meet(CommGroup *group, const CommHeader *header, const ShmPlace *place, const void *data,
              size_t bytes, Error *err);

/* What a rank put into the current round. */
static inline ShmSlot *shm_slot(const Shm *shm, int rank) {
    return &shm->slots[2 * (size_t)rank + shm->round % 2];
}

/* The half of a rank's stage that goes with a round: its owner writes it before it enters that round. */
static inline char *shm_stage(const Shm *shm, int rank, uint32_t round) {
    return shm->stages + (2 * (size_t)rank + round % 2) * SHM_STAGE_BYTES;
}

void *shm_group_alloc(CommGroup *group, size_t bytes, Error *err);

/* shm_pair.c */
bool shm_send(CommGroup *group, const void *data, size_t bytes, int to, Error *err);
bool shm_recv(CommGroup *group, void *data, size_t bytes, int from, Error *err);
/* Says that `peer` has kept this rank waiting for too long; false. */
bool shm_late(CommGroup *group, int peer, Error *err);
#endif
