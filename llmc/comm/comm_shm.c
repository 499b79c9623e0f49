/* comm_shm.c: the backend of ranks that share a host: they work on each other's buffers.
 *
 * Three ways, chosen alike on all ranks:
 *   small (SHM_SMALL_BYTES): the data travels in the round that begins the operation, and every rank reduces it itself;
 *   direct: all buffers are memory of comm_alloc. In one pass over memory, a chunk is read from all buffers, reduced,
 *     and written to all that want it. Chunks are taken by whoever is free;
 *   staged: other buffers are copied, chunk by chunk, to stages that all can read.
 * In each of them an element is added in the order of ranks, so the bits are the same whichever way was taken. */
#include "comm/shm_group.h"
#include "comm/shm_reduce.h"
#include <stdio.h>
#include <string.h>

enum { CHUNK_BYTES_MIN = 8 << 10, CHUNK_BYTES_MAX = 256 << 10, CHUNKS_PER_RANK = 8 };

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

/* --- direct: chunks of work on the buffers of all ranks --- */

/* Where the current operation has its data on every rank, into shm->to; false if some rank's is not in comm_alloc. */
static bool locate(const CommGroup *group) {
    const Shm *shm = group->state;
    for (int r = 0; r < group->size; r++)
        if (!shm_slot(shm, r)->place.key.number) return false;
    for (int r = 0; r < group->size; r++)
        shm->to[r] = shm_region_at(&shm_slot(shm, r)->place, group->world[r]);
    return true;
}

typedef struct {
    size_t count;
    const size_t *offsets; /* (size + 1) shares of the ranks; NULL: everyone gets everything */
    CommType type;
    CommOp op;
    bool gather;       /* copy from the owner to all, do not reduce */
    char *const *data; /* (size) */
} Direct;

/* Elements first .. first + n, which lie in the share of one rank. */
static void work_on(const CommGroup *group, const Direct *direct, int owner, size_t first, size_t n) {
    const size_t at = first * comm_type_bytes(direct->type);
    const int size = group->size;
    const void *from[size];
    void *to[size];
    int num_to = 0;
    for (int r = 0; r < size; r++) {
        from[r] = direct->data[r] + at;
        if (!direct->offsets || (r == owner) != direct->gather) to[num_to++] = direct->data[r] + at;
    }
    if (direct->gather)
        shm_copy(to, num_to, from[owner], n * comm_type_bytes(direct->type));
    else
        shm_reduce(to, num_to, from, size, n, direct->type, direct->op);
}

static void work_on_chunk(const CommGroup *group, const Direct *direct, size_t first, size_t end) {
    if (!direct->offsets) {
        work_on(group, direct, 0, first, end - first);
        return;
    }
    for (int r = 0; r < group->size; r++) {
        size_t begin = direct->offsets[r] > first ? direct->offsets[r] : first;
        size_t stop = smaller(direct->offsets[r + 1], end);
        if (begin < stop) work_on(group, direct, r, begin, stop - begin);
    }
}

static size_t chunk_elements(const CommGroup *group, const Direct *direct) {
    size_t element = comm_type_bytes(direct->type);
    size_t bytes = direct->count * element / ((size_t)group->size * CHUNKS_PER_RANK) / 4096 * 4096;
    if (bytes < CHUNK_BYTES_MIN) bytes = CHUNK_BYTES_MIN;
    return smaller(bytes, CHUNK_BYTES_MAX) / element;
}

static bool work(CommGroup *group, const Direct *direct, Error *err) {
    Shm *shm = group->state;
    group->algorithm = "direct";
    const size_t chunk = chunk_elements(group, direct), chunks = (direct->count + chunk - 1) / chunk;
    ShmWork *now = &shm->head->work[shm->turn % 2], *next = &shm->head->work[(shm->turn + 1) % 2];
    ShmBox *mine = &shm->boxes[group->rank];
    shm->turn++;
    if (group->rank ==
        0) { /* all have left the operation that used it; all will see this in the next round */
        atomic_store_explicit(&next->next, 0, memory_order_relaxed);
        atomic_store_explicit(&next->done.value, 0, memory_order_relaxed);
    }
    atomic_store(&mine->working, 1);
    for (;;) {
        size_t i = atomic_fetch_add_explicit(&now->next, 1, memory_order_relaxed);
        if (i >= chunks) break;
        work_on_chunk(group, direct, i * chunk, smaller((i + 1) * chunk, direct->count));
        shm_word_add(&now->done, 1);
    }
    atomic_store(&mine->working, 0);
    ShmWaited waited = shm_wait(group, shm->crowded, &now->done, (uint32_t)chunks, err);
    if (waited != SHM_LATE) return waited == SHM_READY;
    int peer = 0;
    while (peer < group->size - 1 && !atomic_load(&shm->boxes[peer].working)) peer++;
    return shm_late(group, peer, err);
}

/* --- staged: chunks through memory that all can read --- */

static bool stage_all_reduce(CommGroup *group, char *data, size_t count, CommType type, CommOp op,
                             Error *err) {
    Shm *shm = group->state;
    group->algorithm = "staged";
    const size_t element = comm_type_bytes(type), chunk = SHM_STAGE_BYTES / element;
    for (size_t at = 0; at < count; at += chunk) {
        size_t n = smaller(chunk, count - at);
        void *mine = data + at * element;
        memcpy(shm_stage(shm, group->rank, shm->round + 1), mine, n * element);
        if (!shm_step(group, err)) return false;
        for (int r = 0; r < group->size; r++)
            shm->from[r] = r == group->rank ? mine : shm_stage(shm, r, shm->round);
        shm_reduce(&mine, 1, shm->from, group->size, n, type, op);
    }
    return true;
}

static size_t share_of(const size_t *offsets, int rank) {
    return offsets[rank + 1] - offsets[rank];
}

static size_t share_max(const CommGroup *group, const size_t *offsets) {
    size_t most = 0;
    for (int r = 0; r < group->size; r++)
        if (share_of(offsets, r) > most) most = share_of(offsets, r);
    return most;
}

/* How many elements of a rank's share are in [at, at + piece) of it? */
static size_t in_piece(const size_t *offsets, int rank, size_t at, size_t piece) {
    size_t share = share_of(offsets, rank);
    return at < share ? smaller(piece, share - at) : 0;
}

/* A chunk holds the next piece of every share; each rank reduces its own. */
static bool stage_reduce_scatter(CommGroup *group, char *data, const size_t *offsets, CommType type,
                                 CommOp op, Error *err) {
    Shm *shm = group->state;
    group->algorithm = "staged";
    const size_t element = comm_type_bytes(type), most = share_max(group, offsets);
    const size_t piece = SHM_STAGE_BYTES / (size_t)group->size / element;
    for (size_t at = 0; at < most; at += piece) {
        char *stage = shm_stage(shm, group->rank, shm->round + 1);
        for (int r = 0; r < group->size; r++) {
            size_t n = r == group->rank ? 0 : in_piece(offsets, r, at, piece);
            if (n)
                memcpy(stage + (size_t)r * piece * element, data + (offsets[r] + at) * element, n * element);
        }
        if (!shm_step(group, err)) return false;
        size_t n = in_piece(offsets, group->rank, at, piece);
        void *mine = data + (offsets[group->rank] + at) * element;
        for (int r = 0; r < group->size; r++)
            shm->from[r] = r == group->rank
                               ? mine
                               : shm_stage(shm, r, shm->round) + (size_t)group->rank * piece * element;
        if (n) shm_reduce(&mine, 1, shm->from, group->size, n, type, op);
    }
    return true;
}

static bool stage_all_gather(CommGroup *group, char *data, const size_t *offsets, CommType type, Error *err) {
    Shm *shm = group->state;
    group->algorithm = "staged";
    const size_t element = comm_type_bytes(type), most = share_max(group, offsets);
    const size_t piece = SHM_STAGE_BYTES / element;
    for (size_t at = 0; at < most; at += piece) {
        size_t mine = in_piece(offsets, group->rank, at, piece);
        const char *own = data + (offsets[group->rank] + at) * element;
        if (mine) memcpy(shm_stage(shm, group->rank, shm->round + 1), own, mine * element);
        if (!shm_step(group, err)) return false;
        for (int r = 0; r < group->size; r++) {
            size_t n = r == group->rank ? 0 : in_piece(offsets, r, at, piece);
            if (n) memcpy(data + (offsets[r] + at) * element, shm_stage(shm, r, shm->round), n * element);
        }
    }
    return true;
}

/* --- the operations --- */

static bool meet(CommGroup *group, const void *data, size_t bytes, Error *err) {
    const ShmPlace none = {.offset = 0};
    group->algorithm = "small";
    return shm_meet(group, &group->header, &none, data, bytes, err);
}

static bool meet_with_place(CommGroup *group, const void *data, size_t bytes, Error *err) {
    const ShmPlace place = shm_region_find(group, data, bytes);
    return shm_meet(group, &group->header, &place, NULL, 0, err);
}

/* mine = the reduction of n elements that the slots of all ranks hold from `at`. */
static void reduce_slots(CommGroup *group, void *mine, size_t at, size_t n, CommType type, CommOp op) {
    const Shm *shm = group->state;
    for (int r = 0; r < group->size; r++) shm->from[r] = shm_slot(shm, r)->data + at * comm_type_bytes(type);
    shm_reduce(&mine, 1, shm->from, group->size, n, type, op);
}

static bool all_reduce(CommGroup *group, void *data, size_t count, CommType type, CommOp op, Error *err) {
    Shm *shm = group->state;
    const size_t bytes = count * comm_type_bytes(type);
    if (bytes <= SHM_SMALL_BYTES) {
        if (!meet(group, data, bytes, err)) return false;
        if (count) reduce_slots(group, data, 0, count, type, op);
        return true;
    }
    if (!meet_with_place(group, data, bytes, err)) return false;
    if (locate(group)) {
        const Direct direct = {.count = count, .type = type, .op = op, .data = (char **)shm->to};
        return work(group, &direct, err);
    }
    if (group->size <= 2 || bytes <= SHM_STAGE_BYTES)
        return stage_all_reduce(group, data, count, type, op, err);
    comm_share_evenly(count, group->size, shm->offsets);
    return stage_reduce_scatter(group, data, shm->offsets, type, op, err) &&
           stage_all_gather(group, data, shm->offsets, type, err);
}

static bool reduce_scatter(CommGroup *group, void *data, const size_t *offsets, CommType type, CommOp op,
                           Error *err) {
    const Shm *shm = group->state;
    const size_t element = comm_type_bytes(type), count = offsets[group->size], bytes = count * element;
    if (bytes <= SHM_SMALL_BYTES) {
        size_t at = offsets[group->rank], n = share_of(offsets, group->rank);
        if (!meet(group, data, bytes, err)) return false;
        if (n) reduce_slots(group, (char *)data + at * element, at, n, type, op);
        return true;
    }
    if (!meet_with_place(group, data, bytes, err)) return false;
    if (!locate(group)) return stage_reduce_scatter(group, data, offsets, type, op, err);
    const Direct direct = {
        .count = count, .offsets = offsets, .type = type, .op = op, .data = (char **)shm->to};
    return work(group, &direct, err);
}

static bool gather(CommGroup *group, char *data, const size_t *offsets, CommType type, Error *err) {
    const Shm *shm = group->state;
    const size_t element = comm_type_bytes(type), count = offsets[group->size];
    if (share_max(group, offsets) * element <= SHM_SMALL_BYTES) {
        const char *own = data ? data + offsets[group->rank] * element : NULL;
        if (!meet(group, own, share_of(offsets, group->rank) * element, err)) return false;
        for (int r = 0; r < group->size; r++) {
            size_t n = r == group->rank ? 0 : share_of(offsets, r) * element;
            if (n) memcpy(data + offsets[r] * element, shm_slot(shm, r)->data, n);
        }
        return true;
    }
    if (!meet_with_place(group, data, count * element, err)) return false;
    if (!locate(group)) return stage_all_gather(group, data, offsets, type, err);
    const Direct direct = {
        .count = count, .offsets = offsets, .type = type, .gather = true, .data = (char **)shm->to};
    return work(group, &direct, err);
}

static bool all_gather(CommGroup *group, void *data, const size_t *offsets, CommType type, Error *err) {
    return gather(group, data, offsets, type, err);
}

/* As if the root's share were everything. */
static bool broadcast(CommGroup *group, void *data, size_t bytes, int root, Error *err) {
    Shm *shm = group->state;
    for (int r = 0; r <= group->size; r++) shm->offsets[r] = r <= root ? 0 : bytes;
    return gather(group, data, shm->offsets, COMM_UINT8, err);
}

static bool barrier(CommGroup *group, Error *err) {
    return meet(group, NULL, 0, err);
}

static bool usable(const CommGroup *group, Error *err) {
    const char *host = control_host(group->control, group->world[0]);
    for (int r = 1; r < group->size; r++) {
        const char *other = control_host(group->control, group->world[r]);
        if (strcmp(host, other))
            return error_set(err, "the ranks are not all on one host: rank %d is on %s, rank %d on %s",
                             group->world[0], host, group->world[r], other);
    }
    return true;
}

static void describe(const CommGroup *group, char *out, size_t size) {
    const Shm *shm = group->state;
    snprintf(out, size, "zero-copy between buffers of comm_alloc%s",
             shm->crowded ? ", more ranks than processors" : "");
}

const CommBackend comm_backend_shm = {.name = "shm",
                                      .usable = usable,
                                      .open = shm_group_open,
                                      .close = shm_group_close,
                                      .all_reduce = all_reduce,
                                      .reduce_scatter = reduce_scatter,
                                      .all_gather = all_gather,
                                      .broadcast = broadcast,
                                      .send = shm_send,
                                      .recv = shm_recv,
                                      .barrier = barrier,
                                      .alloc = shm_group_alloc,
                                      .describe = describe};
