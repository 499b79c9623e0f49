/* staging.c: see staging.h. */
#define _POSIX_C_SOURCE 200809L
#include "comm/staging.h"
#include "base/check.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct StagedBlock {
    StagedBlock *next;
    const Comm *owner;
    char *device, *mirror; /* mirror NULL: the backend works on the device's */
    size_t bytes;
    bool pinned;
};

/* --- blocks --- */

void *staging_alloc(Comm *comm, size_t bytes, Error *err) {
    World *w = comm->world;
    CommGroup *g = &comm->group;
    StagedBlock *block = calloc(1, sizeof *block);
    CHECK(block);
    *block = (StagedBlock){.owner = comm, .bytes = bytes, .device = w->memory->alloc(bytes)};
    bool ok = block->device ||
              error_set(err, "no device memory for %.3f GB (lower --batch-size)", 1e-9 * (double)bytes);
    if (ok && !g->backend->on_device) {
        block->mirror = comm_alloc_host(comm, bytes, err);
        ok = block->mirror != NULL;
        block->pinned = ok && bytes && w->memory->pin(block->mirror, bytes);
    }
    if (!ok) {
        if (block->device) w->memory->free(block->device, bytes);
        free(block);
        return NULL;
    }
    block->next = w->staged;
    w->staged = block;
    return block->device;
}

void staging_free(Comm *comm) {
    World *w = comm->world;
    for (StagedBlock **at = &w->staged; *at;) {
        StagedBlock *block = *at;
        if (block->owner != comm) {
            at = &block->next;
            continue;
        }
        *at = block->next;
        if (block->pinned) w->memory->unpin(block->mirror);
        w->memory->free(block->device, block->bytes);
        free(block);
    }
    if (comm->group.id) return;
    if (w->scratch) w->memory->free(w->scratch, w->scratch_bytes);
    w->scratch = NULL;
    w->scratch_bytes = 0;
    for (int i = 0; i < 2; i++) {
        if (w->copies[i]) w->memory->stream_close(w->copies[i]);
        w->copies[i] = NULL;
    }
    free(w->piece_offsets);
    w->piece_offsets = NULL;
    w->pieces_max = 0;
}

static const StagedBlock *find(const World *w, const void *data) {
    const StagedBlock *block = w->staged;
    uintptr_t at = (uintptr_t)data;
    while (block && (at < (uintptr_t)block->device || at - (uintptr_t)block->device >= block->bytes))
        block = block->next;
    return block;
}

void staging_note(const World *w, WorldOperation *o) {
    if (!w->memory) return;
    o->on_device = find(w, o->data) != NULL;
    if (o->on_device) o->mark = w->memory->mark();
}

/* --- operations --- */

/* A large operation is done in pieces of about so many bytes, so that the copies of one are under way while the backend
 * works on another. */
enum { PIECE_BYTES = 2 << 20, PIECE_ALIGN = 64 /* elements */ };

/* The ranks' shares of the data that an operation reads or writes on this rank; without offsets all is one share. */
typedef enum { NOTHING, OWN, OTHERS, EVERYTHING } Shares;
typedef struct {
    Shares reads, writes;
} Traffic;

static Traffic traffic_of(const WorldOperation *o) {
    bool root = o->comm->group.rank == o->peer;
    switch ((CommOperation)o->header.operation) {
    case OPERATION_ALL_REDUCE: return (Traffic){EVERYTHING, EVERYTHING};
    case OPERATION_REDUCE_SCATTER: return (Traffic){EVERYTHING, OWN};
    case OPERATION_ALL_GATHER: return (Traffic){OWN, OTHERS};
    case OPERATION_BROADCAST: return root ? (Traffic){EVERYTHING, NOTHING} : (Traffic){NOTHING, EVERYTHING};
    case OPERATION_SEND: return (Traffic){EVERYTHING, NOTHING};
    case OPERATION_RECV: return (Traffic){NOTHING, EVERYTHING};
    case OPERATION_BARRIER: break;
    }
    return (Traffic){NOTHING, NOTHING};
}

/* An operation on its way through a mirror, in which the pieces lie one after the other, each with a part of every
 * share. */
typedef struct {
    const WorldOperation *o;
    char *mirror;
    size_t pieces, each; /* bytes of an element */
    int shares;
    bool to_device; /* to the mirror is to the device */
} Staged;

/* Where a piece begins in a share of n elements. */
static size_t cut(const Staged *s, size_t n, size_t piece) {
    return piece == s->pieces ? n : n * piece / s->pieces / PIECE_ALIGN * PIECE_ALIGN;
}

static size_t share_begin(const Staged *s, int share) {
    return s->o->offsets ? s->o->offsets[share] : 0;
}

static size_t share_elements(const Staged *s, int share) {
    return s->o->offsets ? s->o->offsets[share + 1] - s->o->offsets[share] : s->o->count;
}

/* Elements of the mirror before a piece. */
static size_t piece_begin(const Staged *s, size_t piece) {
    size_t sum = 0;
    for (int r = 0; r < s->shares; r++) sum += cut(s, share_elements(s, r), piece);
    return sum;
}

/* Begins to copy n elements, of the data at `data` and of the mirror at `mirror`. */
static void copy(const Staged *s, bool to_mirror, size_t data, size_t mirror, size_t n) {
    const World *w = s->o->comm->world;
    char *there = s->mirror + mirror * s->each, *here = (char *)s->o->data + data * s->each;
    char *to = to_mirror ? there : here, *from = to_mirror ? here : there;
    if (!n) return;
    if (to_mirror == s->to_device)
        w->memory->stream_write(w->copies[to_mirror], to, from, n * s->each);
    else
        w->memory->stream_read(w->copies[to_mirror], to, from, n * s->each);
}

/* Begins to copy those shares of a piece; what lies together in both places, together. */
static void copy_piece(const Staged *s, bool to_mirror, Shares which, size_t piece) {
    size_t mirror = piece_begin(s, piece), data = 0, n = 0; /* n elements up to here are still to be copied */
    for (int r = 0; r < s->shares; r++) {
        size_t all = share_elements(s, r), from = cut(s, all, piece), part = cut(s, all, piece + 1) - from;
        bool own = s->o->offsets && r == s->o->comm->group.rank;
        bool wanted = which == EVERYTHING || (which == OWN && own) || (which == OTHERS && !own);
        if (n && (!wanted || data + n != share_begin(s, r) + from)) {
            copy(s, to_mirror, data, mirror - n, n);
            n = 0;
        }
        if (wanted && !n) data = share_begin(s, r) + from;
        if (wanted) n += part;
        mirror += part;
    }
    copy(s, to_mirror, data, mirror - n, n);
}

/* The operation on one piece. */
static WorldOperation piece_of(const Staged *s, size_t piece) {
    WorldOperation there = *s->o;
    size_t *offsets = s->o->comm->world->piece_offsets;
    there.data = s->mirror + piece_begin(s, piece) * s->each;
    offsets[0] = 0;
    for (int r = 0; r < s->shares; r++) {
        size_t all = share_elements(s, r);
        offsets[r + 1] = offsets[r] + cut(s, all, piece + 1) - cut(s, all, piece);
    }
    if (there.offsets)
        there.offsets = offsets;
    else
        there.count = offsets[1];
    return there;
}

/* Piece k + 1 goes to the mirror and piece k - 1 comes back while the backend works on piece k. */
static bool run_pieces(const Staged *s, bool (*run)(const WorldOperation *o, Error *err), Error *err) {
    const World *w = s->o->comm->world;
    const Traffic traffic = traffic_of(s->o);
    bool ok = true;
    copy_piece(s, true, traffic.reads, 0);
    for (size_t k = 0; k < s->pieces && ok; k++) {
        w->memory->stream_wait(w->copies[true]);
        if (k + 1 < s->pieces) copy_piece(s, true, traffic.reads, k + 1);
        WorldOperation there = piece_of(s, k);
        ok = run(&there, err);
        if (ok) copy_piece(s, false, traffic.writes, k);
    }
    w->memory->stream_wait(w->copies[true]);
    w->memory->stream_wait(w->copies[false]);
    return ok;
}

/* Until the caller's kernels have made the data. */
static bool wait_launched(const WorldOperation *o, Error *err) {
    const CommMemory *memory = o->comm->world->memory;
    for (int turns = 0; !memory->is_done(o->mark); turns++) {
        if (comm_group_failed(&o->comm->group, err)) return false;
        if (turns > 100) nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
    return true;
}

/* Host data for a backend that works on devices. */
static char *scratch(World *w, size_t bytes, Error *err) {
    if (w->scratch_bytes >= bytes && w->scratch) return w->scratch;
    if (w->scratch) w->memory->free(w->scratch, w->scratch_bytes);
    w->scratch_bytes = bytes < 1 << 20 ? 1 << 20 : bytes;
    w->scratch = w->memory->alloc(w->scratch_bytes);
    if (!w->scratch) error_set(err, "no device memory to communicate %zu bytes (lower --batch-size)", bytes);
    return w->scratch;
}

/* Made at the first operation that is staged. */
static void open_copies(World *w, int shares) {
    for (int i = 0; i < 2; i++)
        if (!w->copies[i]) w->copies[i] = w->memory->stream_open();
    if (shares < w->pieces_max) return;
    w->pieces_max = shares + 1;
    w->piece_offsets = realloc(w->piece_offsets, (size_t)w->pieces_max * sizeof *w->piece_offsets);
    CHECK(w->piece_offsets);
}

bool staging_run(const WorldOperation *o, bool (*run)(const WorldOperation *o, Error *err), Error *err) {
    World *w = o->comm->world;
    size_t bytes = (size_t)o->header.bytes;
    bool device_wanted = o->comm->group.backend->on_device;
    bool message = o->header.operation == OPERATION_SEND || o->header.operation == OPERATION_RECV;
    if (!w->memory || !bytes || o->comm->group.size == 1) return run(o, err);
    if (o->on_device && !wait_launched(o, err)) return false;
    if (o->on_device == device_wanted) return run(o, err);
    Staged s = {.o = o,
                .pieces = message ? 1 : (bytes + PIECE_BYTES - 1) / PIECE_BYTES,
                .each = comm_type_bytes((CommType)o->header.type),
                .shares = o->offsets ? o->comm->group.size : 1,
                .to_device = device_wanted};
    if (o->on_device) {
        const StagedBlock *block = find(w, o->data);
        if (!block->mirror)
            return error_set(err, "memory of comm_alloc was given to another group's backend");
        s.mirror = block->mirror + ((char *)o->data - block->device);
    } else {
        s.mirror = scratch(w, bytes, err);
        if (!s.mirror) return false;
    }
    open_copies(w, s.shares);
    return run_pieces(&s, run, err);
}
