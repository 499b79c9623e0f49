/* checkpoint.c: when a run saves, and what. See checkpoint.h; how it goes on is in checkpoint_restore.c. */
#define _DEFAULT_SOURCE
#include "base/file.h"
#include "base/log.h"
#include "run/checkpoint_internal.h"
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

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

/* --- opening --- */

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
    if (checkpoint_look(c, err)) return true;
    checkpoint_close(c);
    return false;
}

void checkpoint_close(Checkpoint *c) {
    checkpoint_look_away(c);
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
bool checkpoint_start_drain(Checkpoint *c, Error *err) {
    if (!*c->config.remote || c->drain) return true;
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

/* *full: another rank's disk, or this one's, has no room, and there is a remote store. */
static bool open_store(Checkpoint *c, CkptConfig *config, bool *full, Error *err) {
    bool no_room = false;
    config->no_room = &no_room;
    *full = false;
    bool ok = ckpt_open(&c->ckpt, config, err);
    if (!*c->config.remote || (!ok && !no_room)) return ok;
    double ranks = no_room;
    if (!checkpoint_sum(c, &ranks, 1, err)) return false;
    *full = ranks > 0.5;
    return ok;
}

bool checkpoint_start(Checkpoint *c, Error *err) {
    checkpoint_look_away(c);
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
    bool full, ok = open_store(c, &config, &full, err);
    if (full) {
        ckpt_close(c->ckpt);
        c->ckpt = NULL;
        ok = checkpoint_make_room(c, config.node_first, err) && open_store(c, &config, &full, err);
    }
    return ok && (!config.node_first || checkpoint_start_drain(c, err));
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
        if (!checkpoint_sum(c, sums, 2, err)) return false;
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
