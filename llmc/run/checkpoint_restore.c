/* checkpoint_restore.c: how a run goes on: what is there, which run and which checkpoint all ranks agree on, and reading it.
 * See checkpoint.h. */
#define _DEFAULT_SOURCE
#include "base/check.h"
#include "base/log.h"
#include "run/checkpoint_internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

static const CkptId NO_ID = {0, 0};

/* --- what all ranks must agree on --- */

/* Everyone's `bytes` bytes, in the order of ranks, into all (size * bytes). */
static bool gather_all(Checkpoint *c, const void *mine, size_t bytes, void *all, Error *err) {
    size_t *offsets = calloc((size_t)c->size + 1, sizeof *offsets);
    if (!offsets) return error_set(err, "no memory to ask %d ranks", c->size);
    for (int r = 0; r <= c->size; r++) offsets[r] = (size_t)r * bytes;
    memcpy((char *)all + offsets[c->rank], mine, bytes);
    bool ok = comm_wait(c->comm, comm_all_gather(c->comm, all, offsets, COMM_UINT8), err);
    free(offsets);
    return ok;
}

/* values become their sums over all ranks. */
bool checkpoint_sum(Checkpoint *c, double *values, int count, Error *err) {
    ExactSum sums[2] = {{{0}}};
    CHECK_OP(count, <=, 2);
    for (int i = 0; i < count; i++) exact_sum_add(&sums[i], values[i]);
    return data_parallel_sum(c->parts.parallel, sums, values, count, err);
}

/* Did it go well on every rank? */
static bool all_ok(Checkpoint *c, bool ok, bool *all, Error *err) {
    double failed = !ok;
    if (!checkpoint_sum(c, &failed, 1, err)) return false;
    *all = failed < 0.5;
    return true;
}

/* The smallest of all ranks' ids; *equal: all are the same. */
static bool smallest_id(Checkpoint *c, CkptId mine, CkptId *smallest, bool *equal, Error *err) {
    CkptId *all = calloc((size_t)c->size, sizeof *all), packed = {0};
    if (!all) return error_set(err, "no memory to ask %d ranks", c->size);
    packed.attempt = mine.attempt;
    packed.step = mine.step;
    bool ok = gather_all(c, &packed, sizeof packed, all, err);
    *smallest = mine;
    *equal = true;
    for (int r = 0; ok && r < c->size; r++) {
        int order = ckpt_id_compare(all[r], *smallest);
        if (order < 0) *smallest = all[r];
        *equal &= ckpt_id_compare(all[r], mine) == 0;
    }
    free(all);
    return ok;
}

/* --- what is there --- */

/* What a rank knows of the run from what it sees. */
typedef struct {
    uint8_t run[16], new_run[16];
    uint32_t attempt; /* the newest seen; 0: none */
    uint32_t known;   /* run is that of what lies here */
    uint32_t unasked; /* the remote store could not be */
} Seen;

static bool look(const Checkpoint *c, Seen *seen, Error *err) {
    memset(seen, 0, sizeof *seen);
    seen->unasked = *c->config.remote && !c->readers[1];
    if (getrandom(seen->new_run, sizeof seen->new_run, 0) != (ssize_t)sizeof seen->new_run)
        return error_set_errno(err, "no random numbers from the system");
    for (int i = 0; i < 2; i++) {
        uint32_t attempt = c->readers[i] ? ckpt_reader_attempt(c->readers[i]) : 0;
        if (attempt > seen->attempt) seen->attempt = attempt;
        uint8_t run[16];
        if (!c->readers[i] || !ckpt_reader_run(c->readers[i], run)) continue;
        if (seen->known && memcmp(run, seen->run, sizeof run) != 0)
            return error_set(err, "%s holds checkpoints of another run than %s (give another --remote)",
                             c->config.remote, c->config.staging);
        memcpy(seen->run, run, sizeof run);
        seen->known = 1;
    }
    return true;
}

static bool agree_on_run(Checkpoint *c, Error *err) {
    enum { UNASKED_ATTEMPTS = 1000 }; /* so many starts may be in a store that could not be asked */
    Seen mine, *all = calloc((size_t)c->size, sizeof *all);
    bool ok = all && look(c, &mine, err) && gather_all(c, &mine, sizeof mine, all, err);
    if (!all) error_set(err, "no memory to ask %d ranks", c->size);
    const Seen *first = NULL;
    bool unasked = false;
    for (int r = 0; ok && r < c->size; r++) {
        if (all[r].attempt > c->attempt) c->attempt = all[r].attempt;
        unasked |= all[r].unasked;
        if (!all[r].known) continue;
        if (!first) first = &all[r];
        if (memcmp(first->run, all[r].run, sizeof mine.run) != 0)
            ok =
                error_set(err,
                          "rank %d: its staging folder holds checkpoints of another run than rank %d's (give "
                          "each run its own --staging)",
                          r, (int)(first - all));
    }
    if (ok) memcpy(c->run, first ? first->run : all[0].new_run, sizeof c->run);
    c->attempt += unasked ? UNASKED_ATTEMPTS : 1;
    free(all);
    if (!ok || !unasked || first || c->config.anew) return ok;
    return error_set(err,
                     "%s cannot be read, and there are no checkpoints in %s to go on from (try again when it "
                     "can be; --resume=never starts anew)",
                     c->config.remote, c->config.staging);
}

/* A store that cannot be reached now is no reason not to go on from what is here; one that never can be, is. */
static bool open_remote_reader(Checkpoint *c, Error *err) {
    enum { ATTEMPTS = 4 }; /* a few seconds */
    Store *store;
    Error why;
    if (!store_open(&store, c->config.remote, &(StoreConfig){.attempts_max = ATTEMPTS}, err)) return false;
    bool there = store_check(store, &why) && ckpt_reader_open(&c->readers[1], c->config.remote, &why);
    store_close(store);
    if (!there) {
        c->readers[1] = NULL;
        log_warn("%s; only what is in %s is gone on from", why.text, c->config.staging);
    }
    return true;
}

bool checkpoint_look(Checkpoint *c, Error *err) {
    if (!ckpt_reader_open(&c->readers[0], c->config.staging, err)) return false;
    if (*c->config.remote && !open_remote_reader(c, err)) return false;
    return agree_on_run(c, err);
}

void checkpoint_look_away(Checkpoint *c) {
    for (int i = 0; i < 2; i++) {
        ckpt_reader_close(c->readers[i]);
        c->readers[i] = NULL;
    }
}

/* --- reading --- */

/* Does this rank find all that it needs in this checkpoint? */
static bool has_needed(const Checkpoint *c, CkptReader *reader, CkptId id) {
    for (size_t i = 0; i < c->num_needed; i++) {
        const TensorView *v = &c->views[i];
        if (!ckpt_reader_has(reader, id, v->name, v->begin, v->end)) return false;
    }
    return true;
}

/* The newest checkpoint up to limit that this rank can read; attempt 0: none. */
static CkptId newest_readable(const Checkpoint *c, CkptId limit) {
    CkptId newest = NO_ID;
    for (int i = 0; i < 2; i++) {
        const CkptInfo *list = NULL;
        size_t count = c->readers[i] ? ckpt_reader_list(c->readers[i], &list) : 0;
        for (size_t k = 0; k < count && ckpt_id_compare(list[k].id, newest) > 0; k++)
            if (ckpt_id_compare(list[k].id, limit) <= 0 && list[k].state != CKPT_CORRUPT &&
                has_needed(c, c->readers[i], list[k].id))
                newest = list[k].id;
    }
    return newest;
}

/* The newest checkpoint up to limit that every rank can read. */
static bool agree_on(Checkpoint *c, CkptId limit, CkptId *id, Error *err) {
    for (bool equal = false; !equal;) {
        *id = newest_readable(c, limit);
        if (!smallest_id(c, *id, &limit, &equal, err)) return false;
    }
    return true;
}

static CkptId id_before(CkptId id) {
    if (id.step > 0) return (CkptId){id.attempt, id.step - 1};
    return (CkptId){id.attempt - 1, UINT64_MAX};
}

/* To device memory that the host cannot touch: a tensor at a time. */
static bool read_to_device(CkptReader *reader, CkptId id, const TensorView *v, Error *err) {
    size_t bytes = (size_t)(v->end - v->begin) * ckpt_type_bytes(v->type);
    void *host = malloc(bytes ? bytes : 1);
    bool ok = host ? ckpt_reader_read(reader, id, v->name, v->type, v->begin, v->end, host, err)
                   : error_set(err, "%s: no memory to read it", v->name);
    if (ok) device_write((void *)(uintptr_t)v->data, host, bytes);
    free(host);
    return ok;
}

/* This rank's tensors and states, to where their views are. */
static bool read_views_from(const Checkpoint *c, CkptReader *reader, CkptId id, Error *err) {
    CkptWanted *wanted = calloc(c->num_views, sizeof *wanted);
    size_t count = 0;
    bool ok = wanted || error_set(err, "no memory to list %zu tensors", c->num_views);
    for (size_t i = 0; i < c->num_views && ok; i++) {
        const TensorView *v = &c->views[i];
        if (i >= c->num_needed && !ckpt_reader_has(reader, id, v->name, v->begin, v->end)) continue;
        if (v->copied || device_memory_is_host())
            wanted[count++] = (CkptWanted){v->name, v->type, v->begin, v->end, (void *)(uintptr_t)v->data};
        else
            ok = read_to_device(reader, id, v, err);
    }
    ok = ok && ckpt_reader_read_all(reader, id, wanted, count, 0, err);
    free(wanted);
    return ok;
}

/* From the first place that has all of it whole; the staging store comes before the remote one. */
static bool read_views(const Checkpoint *c, CkptId id, Error *err) {
    bool tried = false;
    for (int i = 0; i < 2; i++) {
        if (!c->readers[i] || !has_needed(c, c->readers[i], id)) continue;
        if (tried) log_warn("%s; reading the checkpoint from %s", err->text, c->config.remote);
        tried = true;
        if (read_views_from(c, c->readers[i], id, err)) return true;
    }
    return tried ? false : error_set(err, "not everything that this rank needs is there");
}

static bool broadcast_states(Checkpoint *c, Error *err) {
    for (int i = 0; i < c->parts.num_states; i++) {
        CheckpointState *s = &c->parts.states[i];
        if (!comm_wait(c->comm, comm_broadcast(c->comm, s->data, s->bytes, 0), err)) return false;
    }
    return true;
}

static bool any_listed(const Checkpoint *c, CkptState state) {
    for (int i = 0; i < 2; i++) {
        const CkptInfo *list = NULL;
        size_t count = c->readers[i] ? ckpt_reader_list(c->readers[i], &list) : 0;
        for (size_t k = 0; k < count; k++)
            if (list[k].state == state) return true;
    }
    return false;
}

/* Nothing can be read: were there checkpoints that were whole once? */
static bool nothing_found(Checkpoint *c, bool damaged, Error *err) {
    bool whole = damaged || any_listed(c, CKPT_CORRUPT) || any_listed(c, CKPT_RESTORABLE), none;
    if (!all_ok(c, !whole, &none, err)) return false;
    if (none) return true;
    return error_set(
        err,
        "%s: holds checkpoints, but none that all %d ranks can read ('train_gpt2 ckpt ls %s' tells what "
        "is wrong; --resume=never starts anew)",
        c->config.staging, c->size, c->config.staging);
}

bool checkpoint_restore(Checkpoint *c, bool *found, Error *err) {
    CkptId limit = {UINT32_MAX, UINT64_MAX}, id;
    *found = false;
    for (bool damaged = false;; damaged = true, limit = id_before(id)) {
        Error why;
        bool whole;
        if (!agree_on(c, limit, &id, err)) return false;
        if (id.attempt == 0) return nothing_found(c, damaged, err);
        bool mine = read_views(c, id, &why);
        if (!all_ok(c, mine, &whole, err)) return false;
        if (whole) break;
        if (!mine) log_warn("step %llu: %s", (unsigned long long)id.step, why.text);
        log_info("checkpoint  step %llu cannot be restored; trying the one before it",
                 (unsigned long long)id.step);
    }
    if (!broadcast_states(c, err)) return false;
    c->restored = id;
    *found = true;
    data_parallel_gather(c->parts.parallel);
    return data_parallel_wait(c->parts.parallel, err);
}

bool checkpoint_peek(Checkpoint *c, const char *name, void *data, size_t bytes, bool *found, Error *err) {
    char state[CKPT_NAME_BYTES];
    Error ignored; /* an older one may have it whole */
    double held = 0;
    snprintf(state, sizeof state, "state/%s", name);
    for (int i = 0; c->rank == 0 && i < 2; i++) {
        const CkptInfo *list = NULL;
        size_t count = c->readers[i] ? ckpt_reader_list(c->readers[i], &list) : 0;
        for (size_t k = 0; k < count && held < 0.5; k++)
            held = list[k].state != CKPT_CORRUPT &&
                   ckpt_reader_has(c->readers[i], list[k].id, state, 0, bytes) &&
                   ckpt_reader_read(c->readers[i], list[k].id, state, CKPT_UINT8, 0, bytes, data, &ignored);
    }
    if (!checkpoint_sum(c, &held, 1, err)) return false;
    *found = held > 0.5;
    return comm_wait(c->comm, comm_broadcast(c->comm, data, bytes, 0), err);
}
