/* checkpoint.c: see checkpoint.h. */
#define _DEFAULT_SOURCE
#include "run/checkpoint.h"
#include "base/check.h"
#include "base/file.h"
#include "base/log.h"
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

static const CkptId NO_ID = {0, 0};

/* --- when --- */

bool checkpoint_every_parse(const char *text, CheckpointEvery *every, Error *err) {
    static const struct {
        const char *unit;
        double seconds;
    } units[] = {{"s", 1}, {"m", 60}, {"h", 3600}};
    *every = (CheckpointEvery){CHECKPOINT_AT_END, 0, 0};
    if (!strcmp(text, "auto")) {
        every->kind = CHECKPOINT_AUTO;
        return true;
    }
    char *unit;
    double number = isdigit((unsigned char)*text) ? strtod(text, &unit) : NAN;
    if (number <= 1e9 && !*unit && number == floor(number)) {
        every->kind = number > 0 ? CHECKPOINT_STEPS : CHECKPOINT_AT_END;
        every->steps = (int64_t)number;
        return true;
    }
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (number > 0 && number <= 1e9 && !strcmp(unit, units[i].unit)) {
            every->kind = CHECKPOINT_SECONDS;
            every->seconds = number * units[i].seconds;
            return true;
        }
    return error_set(
        err, "--checkpoint-every '%s': not steps (100), a time (30s, 10m, 1h), auto, or 0 for the end only",
        text);
}

double checkpoint_auto_seconds(double cost_seconds, double failure_seconds, double restart_seconds,
                               double bytes, double tb_per_day) {
    double cost = cost_seconds;
    double best = cost + sqrt(2 * (failure_seconds + restart_seconds) * cost + cost * cost);
    double wear = tb_per_day > 0 ? bytes / (tb_per_day * 1e12 / 86400) : 0;
    return fmax(best, wear);
}

static double interval_seconds(const Checkpoint *c) {
    enum { RESTART_SECONDS = 60 }; /* to load the program, the data and a checkpoint */
    if (c->config.every.kind == CHECKPOINT_SECONDS) return c->config.every.seconds;
    CkptStatus s = ckpt_status(c->ckpt);
    double cost = s.stall_seconds + s.cpu_seconds, bytes = (double)s.bytes * c->size;
    double best = checkpoint_auto_seconds(cost, c->config.failure_seconds, RESTART_SECONDS, bytes,
                                          c->config.tb_per_day);
    return fmax(best, s.write_seconds);
}

static bool clock_due(const Checkpoint *c) {
    bool timed = c->config.every.kind == CHECKPOINT_SECONDS || c->config.every.kind == CHECKPOINT_AUTO;
    return timed && c->rank == 0 && log_seconds() - c->last_begun >= interval_seconds(c);
}

/* --- what: views of this rank's tensors --- */

/* One tensor's part of [begin, end) of the flat arrays, if it has one. */
static bool overlap(const GPT2Config *config, int tensor, int layer, size_t *begin, size_t *end,
                    size_t *first) {
    TensorInfo info = gpt2_tensor(config, tensor);
    *first = gpt2_tensor_offset(config, tensor, layer);
    size_t last = *first + info.rows * info.cols;
    if (*begin < *first) *begin = *first;
    if (*end > last) *end = last;
    return *begin < *end;
}

void checkpoint_tensor_name(char name[CKPT_NAME_BYTES], const char *kind, const TensorInfo *info, int layer) {
    if (info->scope == MODEL)
        snprintf(name, CKPT_NAME_BYTES, "%s/%s", kind, info->name);
    else
        snprintf(name, CKPT_NAME_BYTES, "%s/h.%d.%s", kind, layer, info->name);
}

/* base: the element that is element 0 of the flat arrays, if the memory held all of them. */
static void add_view(Checkpoint *c, const char *kind, CkptType type, int tensor, int layer, size_t begin,
                     size_t end, const void *data) {
    TensorInfo info = gpt2_tensor(&c->parts.model->config, tensor);
    size_t first = gpt2_tensor_offset(&c->parts.model->config, tensor, layer);
    TensorView *v = &c->views[c->num_views++];
    *v = (TensorView){.type = type,
                      .dims = info.cols > 1 ? 2 : 1,
                      .shape = {info.rows, info.cols},
                      .begin = begin - first,
                      .end = end - first,
                      .data = data};
    if (info.cols == 1) v->shape[1] = 0;
    checkpoint_tensor_name(v->name, kind, &info, layer);
}

/* The three kinds one behind the other, each in memory order, so that neighbours in memory are neighbours here. */
static void list_kind(Checkpoint *c, const char *kind, CkptType type, const float *moments) {
    const CheckpointParts *p = &c->parts;
    for (int b = 0; b < p->parallel->buckets; b++) {
        AdamWRange share = p->parallel->shares[b];
        for (int t = 0; t < NUM_PARAM_TENSORS; t++) {
            size_t begin = share.begin, end = share.end, first;
            if ((gpt2_tensor(&p->model->config, t).scope == MODEL) != (b == 0)) continue;
            if (!overlap(&p->model->config, t, b - 1, &begin, &end, &first)) continue;
            const void *data = moments ? (const void *)(moments + (begin - share.begin))
                                       : (const void *)(p->model->params + begin);
            add_view(c, kind, type, t, b - 1, begin, end, data);
        }
        if (moments) moments += share.end - share.begin;
    }
}

static void list_views(Checkpoint *c) {
    list_kind(c, "params", sizeof(floatX) == 2 ? CKPT_BF16 : CKPT_FP32, NULL);
    list_kind(c, "adamw_m", CKPT_FP32, c->parts.optimizer->m);
    list_kind(c, "adamw_v", CKPT_FP32, c->parts.optimizer->v);
    if (c->parts.optimizer->master) list_kind(c, "master", CKPT_FP32, c->parts.optimizer->master);
    c->num_needed = c->num_views;
    for (int i = 0; c->rank == 0 && i < c->parts.num_states; i++) {
        CheckpointState *s = &c->parts.states[i];
        if (s->bytes == 0) continue;
        TensorView *v = &c->views[c->num_views++];
        *v = (TensorView){.type = CKPT_UINT8,
                          .dims = 1,
                          .shape = {s->bytes},
                          .end = s->bytes,
                          .data = s->data,
                          .copied = true};
        snprintf(v->name, sizeof v->name, "state/%s", s->name);
        if (!s->optional) c->num_needed = c->num_views;
    }
}

static uint64_t payload_bytes(const Checkpoint *c, bool only_copied) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < c->num_views; i++)
        if (!only_copied || c->views[i].copied)
            bytes += (c->views[i].end - c->views[i].begin) * ckpt_type_bytes(c->views[i].type);
    return bytes;
}

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
static bool sum_all(Checkpoint *c, double *values, int count, Error *err) {
    ExactSum sums[2] = {{{0}}};
    CHECK_OP(count, <=, 2);
    for (int i = 0; i < count; i++) exact_sum_add(&sums[i], values[i]);
    return data_parallel_sum(c->parts.parallel, sums, values, count, err);
}

/* Did it go well on every rank? */
static bool all_ok(Checkpoint *c, bool ok, bool *all, Error *err) {
    double failed = !ok;
    if (!sum_all(c, &failed, 1, err)) return false;
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

/* --- reading --- */

/* Does this rank find all that it needs in this checkpoint? */
static bool readable(const Checkpoint *c, CkptReader *reader, const CkptInfo *info) {
    if (info->state == CKPT_CORRUPT) return false;
    for (size_t i = 0; i < c->num_needed; i++) {
        const TensorView *v = &c->views[i];
        if (!ckpt_reader_has(reader, info->id, v->name, v->begin, v->end)) return false;
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
            if (ckpt_id_compare(list[k].id, limit) <= 0 && readable(c, c->readers[i], &list[k]))
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

/* From whichever place has it whole; the staging store first. */
static bool read_view(const Checkpoint *c, CkptId id, const TensorView *v, void *data, Error *err) {
    bool tried = false;
    for (int i = 0; i < 2; i++) {
        if (!c->readers[i] || !ckpt_reader_has(c->readers[i], id, v->name, v->begin, v->end)) continue;
        if (tried) log_warn("%s; reading it from %s", err->text, c->config.remote);
        tried = true;
        if (ckpt_reader_read(c->readers[i], id, v->name, v->type, v->begin, v->end, data, err)) return true;
    }
    return tried ? false : error_set(err, "%s: is not in the checkpoint", v->name);
}

/* To where the view is: state is the host's, tensors are the device's. */
static bool read_to_device(const Checkpoint *c, CkptId id, const TensorView *v, Error *err) {
    void *to = (void *)(uintptr_t)v->data;
    if (v->copied || device_memory_is_host()) return read_view(c, id, v, to, err);
    size_t bytes = (size_t)(v->end - v->begin) * ckpt_type_bytes(v->type);
    void *host = malloc(bytes ? bytes : 1);
    bool ok = host ? read_view(c, id, v, host, err) : error_set(err, "%s: no memory to read it", v->name);
    if (ok) device_write(to, host, bytes);
    free(host);
    return ok;
}

/* This rank's tensors, by several threads: checking sums is work. */
static bool read_views(Checkpoint *c, CkptId id, Error *err) {
    bool ok = true;
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < c->num_views; i++) {
        const TensorView *v = &c->views[i];
        Error why;
        if (read_to_device(c, id, v, &why) || i >= c->num_needed) continue;
#pragma omp critical
        {
            if (ok) *err = why;
            ok = false;
        }
    }
    return ok;
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
    TensorView v = {.type = CKPT_UINT8, .end = bytes};
    Error ignored;
    double held = 0;
    snprintf(v.name, sizeof v.name, "state/%s", name);
    for (int i = 0; c->rank == 0 && i < 2; i++) {
        const CkptInfo *list = NULL;
        size_t count = c->readers[i] ? ckpt_reader_list(c->readers[i], &list) : 0;
        for (size_t k = 0; k < count && held < 0.5; k++)
            held = list[k].state != CKPT_CORRUPT && read_view(c, list[k].id, &v, data, &ignored);
    }
    if (!sum_all(c, &held, 1, err)) return false;
    *found = held > 0.5;
    return comm_wait(c->comm, comm_broadcast(c->comm, data, bytes, 0), err);
}

/* --- opening --- */

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

static bool open_readers(Checkpoint *c, Error *err) {
    if (!ckpt_reader_open(&c->readers[0], c->config.staging, err)) return false;
    return !*c->config.remote || open_remote_reader(c, err);
}

static void close_readers(Checkpoint *c) {
    for (int i = 0; i < 2; i++) {
        ckpt_reader_close(c->readers[i]);
        c->readers[i] = NULL;
    }
}

bool checkpoint_open(Checkpoint *c, const CheckpointConfig *config, const CheckpointParts *parts,
                     Error *err) {
    const DataParallel *p = parts->parallel;
    *c = (Checkpoint){.config = *config, .parts = *parts, .pending = -1};
    c->comm = p->comm;
    c->rank = p->rank;
    c->size = p->size;
    size_t most = 4 * (size_t)p->buckets * NUM_PARAM_TENSORS + CHECKPOINT_STATES_MAX;
    c->views = calloc(most, sizeof *c->views);
    if (!c->views) return error_set(err, "no memory for the list of tensors to save");
    list_views(c);
    if (open_readers(c, err) && agree_on_run(c, err)) return true;
    checkpoint_close(c);
    return false;
}

void checkpoint_close(Checkpoint *c) {
    close_readers(c);
    ckpt_close(c->ckpt);
    if (!drain_close(c->drain, c->config.drain_seconds))
        log_warn("%s: not everything is there yet ('train_gpt2 ckpt drain %s --remote %s' goes on with it)",
                 c->config.remote, c->config.staging, c->config.remote);
    free(c->views);
    *c = (Checkpoint){.pending = -1};
}

static CkptPolicy policy_of(const char *name) {
    if (!strcmp(name, "lazy")) return CKPT_POLICY_LAZY;
    return strcmp(name, "snapshot") ? CKPT_POLICY_AUTO : CKPT_POLICY_SNAPSHOT;
}

/* One for each host: the first of its ranks. */
static bool start_drain(Checkpoint *c, Error *err) {
    if (!*c->config.remote) return true;
    const DrainConfig config = {.directory = c->config.staging,
                                .place = c->config.remote,
                                .node = comm_host(c->comm, c->rank),
                                .store = {.bytes_per_second_max = c->config.upload_bytes_per_second},
                                .keep_remote = c->config.keep_remote};
    return drain_open(&c->drain, &config, err);
}

/* For ckpt_begin: tensors, as the kernels that were launched before it leave them. */
static void fetch_tensor(void *ctx, void *host, const void *memory, size_t bytes) {
    const Checkpoint *c = ctx;
    while (!device_is_done(c->mark)) nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    device_fetch(host, memory, bytes);
}

bool checkpoint_start(Checkpoint *c, Error *err) {
    close_readers(c);
    if (!file_make_directory(c->config.staging, err)) return false;
    CkptConfig config = {.directory = c->config.staging,
                         .node = comm_host(c->comm, c->rank),
                         .io = c->config.io,
                         .rank = c->rank,
                         .size = c->size,
                         .node_first = comm_local_rank(c->comm, c->rank) == 0,
                         .attempt = c->attempt,
                         .newest = c->restored,
                         .newest_agreed = true,
                         .payload_bytes = payload_bytes(c, false),
                         .copied_bytes = payload_bytes(c, true),
                         .views_max = (int)c->num_views,
                         .keep = c->config.keep,
                         .keep_until_uploaded = *c->config.remote != 0,
                         .policy = policy_of(c->config.policy),
                         .fetch = device_memory_is_host() ? NULL : fetch_tensor,
                         .fetch_ctx = c};
    memcpy(config.run, c->run, sizeof config.run);
    c->last_begun = log_seconds();
    return ckpt_open(&c->ckpt, &config, err) && (!config.node_first || start_drain(c, err));
}

/* --- every step --- */

CheckpointVote checkpoint_vote(const Checkpoint *c) {
    if (!c->ckpt) return (CheckpointVote){0};
    CkptStatus s = ckpt_status(c->ckpt);
    return (CheckpointVote){s.writing, s.failed, clock_due(c)};
}

void checkpoint_fence(Checkpoint *c) {
    if (c->ckpt) ckpt_fence(c->ckpt);
}

/* What was begun is durable on all ranks, or failed on some. */
static void settle(Checkpoint *c, const CheckpointVote *sums) {
    if (c->pending < 0 || sums->writing > 0.5) return;
    if (sums->failed < 0.5) { /* else the store has said so, where it was */
        ckpt_commit(c->ckpt, (uint64_t)c->pending, c->pending_best);
        c->saved++;
    }
    CkptStatus s = ckpt_status(c->ckpt);
    c->stall_seconds += s.stall_seconds;
    if (s.stall_seconds > c->stall_seconds_max) c->stall_seconds_max = s.stall_seconds;
    c->write_seconds += s.write_seconds;
    c->pending = -1;
}

static bool begin(Checkpoint *c, int64_t step, bool best, Error *err) {
    if (!ckpt_status(c->ckpt).writing) c->mark = device_mark();
    if (!ckpt_begin(c->ckpt, (uint64_t)step, c->views, c->num_views, err)) return false;
    c->pending = step;
    c->pending_best = best;
    c->asked = false;
    c->last_begun = log_seconds();
    return true;
}

bool checkpoint_step(Checkpoint *c, int64_t step, bool asked, bool best, const CheckpointVote *sums,
                     Error *err) {
    if (!c->ckpt) return true;
    settle(c, sums);
    bool by_steps = c->config.every.kind == CHECKPOINT_STEPS && step % c->config.every.steps == 0;
    c->asked |= asked;
    if (!by_steps && !c->asked && sums->due < 0.5) return true;
    if (c->pending < 0) return begin(c, step, best, err);
    c->left_out += by_steps;
    if (by_steps && !c->said_behind)
        log_info("checkpoint  step %lld is left out: step %lld is still being written (steps come faster "
                 "than they "
                 "can be saved; said once)",
                 (long long)step, (long long)c->pending);
    c->said_behind = true;
    return true;
}

/* Waits for the shards of all ranks, then for the commit. */
static bool finish_pending(Checkpoint *c, Error *err) {
    enum { WAIT_SECONDS = 3600 };
    while (c->pending >= 0) {
        ckpt_fence(c->ckpt);
        ckpt_wait(c->ckpt, WAIT_SECONDS);
        CheckpointVote vote = checkpoint_vote(c);
        double sums[] = {vote.writing, vote.failed};
        if (!sum_all(c, sums, 2, err)) return false;
        int64_t step = c->pending;
        settle(c, &(CheckpointVote){sums[0], sums[1], 0});
        if (sums[0] < 0.5 && sums[1] > 0.5) {
            CkptStatus s = ckpt_status(c->ckpt);
            return error_set(err, "step %lld could not be saved: %s", (long long)step,
                             s.failed ? s.error.text : "another rank could not write its part");
        }
    }
    ckpt_wait(c->ckpt, WAIT_SECONDS);
    return true;
}

bool checkpoint_finish(Checkpoint *c, int64_t step, bool best, Error *err) {
    if (!c->ckpt) return true;
    bool begun = c->pending == step;
    Error earlier; /* the last one counts */
    if (!finish_pending(c, begun ? err : &earlier) && begun) return false;
    return begun || (begin(c, step, best, err) && finish_pending(c, err));
}

void checkpoint_report(const Checkpoint *c) {
    if (!c->ckpt || !c->saved) return;
    double n = (double)c->saved;
    log_info("checkpoints %lld saved, %lld left out; %.1f MB each on this rank in %.1f ms, of which training "
             "waited "
             "%.2f ms on average, %.2f ms at most",
             (long long)c->saved, (long long)c->left_out, 1e-6 * (double)ckpt_status(c->ckpt).bytes,
             1e3 * c->write_seconds / n, 1e3 * c->stall_seconds / n, 1e3 * c->stall_seconds_max);
}
