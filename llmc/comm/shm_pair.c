/* shm_pair.c: messages from one rank of a host to another: through a queue of chunks in shared memory; or, if they are
 * large and lie in memory of comm_alloc, copied by the receiver from where they are. A message of less than the queue
 * does not wait for its receiver. */
#include "comm/shm_group.h"
#include <string.h>

/* What comes before the data. */
typedef struct {
    CommHeader header;
    ShmPlace place; /* key.number not 0: the data is there, not in the queue */
} ShmMessage;

static ShmPair *pair_of(const CommGroup *group, int from, int to) {
    const Shm *shm = group->state;
    return &shm->pairs[(size_t)from * (size_t)group->size + (size_t)to];
}

static uint32_t value_of(ShmWord *word) {
    return atomic_load_explicit(&word->value, memory_order_relaxed);
}

static bool wait_peer(CommGroup *group, int peer, ShmWord *word, uint32_t value, Error *err) {
    const Shm *shm = group->state;
    ShmWaited waited = shm_wait(group, shm->crowded, word, value, err);
    return waited == SHM_READY || (waited == SHM_LATE && shm_late(group, peer, err));
}

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

bool shm_send(CommGroup *group, const void *data, size_t bytes, int to, Error *err) {
    ShmPair *pair = pair_of(group, group->rank, to);
    ShmMessage message = {.header = group->header};
    if (bytes > SHM_PAIR_BYTES) message.place = shm_region_find(group, data, bytes);
    bool queued = !message.place.key.number;
    group->algorithm = queued ? "queue" : "direct";
    size_t used = sizeof message; /* of the current chunk */
    for (size_t at = 0, first = 1; first || (queued && at < bytes); first = 0, used = 0) {
        uint32_t written = value_of(&pair->written);
        if (!wait_peer(group, to, &pair->read, written + 1 - SHM_PAIR_CHUNKS, err)) return false;
        char *chunk = pair->data[written % SHM_PAIR_CHUNKS];
        if (first) memcpy(chunk, &message, sizeof message);
        size_t n = queued ? smaller(bytes - at, SHM_PAIR_BYTES - used) : 0;
        if (n) memcpy(chunk + used, (const char *)data + at, n);
        at += n;
        shm_word_set(&pair->written, written + 1);
    }
    return queued || wait_peer(group, to, &pair->read, value_of(&pair->written), err);
}

bool shm_recv(CommGroup *group, void *data, size_t bytes, int from, Error *err) {
    ShmPair *pair = pair_of(group, from, group->rank);
    ShmMessage message;
    size_t used = sizeof message;
    for (size_t at = 0, first = 1; first || at < bytes; first = 0, used = 0) {
        uint32_t read = value_of(&pair->read);
        if (!wait_peer(group, from, &pair->written, read + 1, err)) return false;
        const char *chunk = pair->data[read % SHM_PAIR_CHUNKS];
        if (first) {
            memcpy(&message, chunk, sizeof message);
            if (message.header.operation != OPERATION_SEND || message.header.group != group->id ||
                message.header.bytes != bytes)
                return comm_group_mismatch(group, from, &message.header, err);
        }
        bool queued = !message.place.key.number;
        group->algorithm = queued ? "queue" : "direct";
        const char *source = queued ? chunk + used : shm_region_at(&message.place, group->world[from]);
        size_t n = queued ? smaller(bytes - at, SHM_PAIR_BYTES - used) : bytes;
        if (n) memcpy((char *)data + at, source, n);
        at += n;
        shm_word_set(&pair->read, read + 1);
    }
    return true;
}
