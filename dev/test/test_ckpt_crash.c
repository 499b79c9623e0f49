/* test_ckpt_crash.c: the checkpoint store on the crash simulator (ckpt_io_sim.h): no crash may lose a checkpoint that was
 * acknowledged, and nothing that differs from what was saved may ever be read.
 *
 *   test_ckpt_crash [--states=N] [--seed=N] [--jobs=N] [--from=N] [--seconds=N]
 *
 * from: the first history; seconds: no history is begun after that.
 *
 * A history is a few runs of several writers on one folder, each started on what a SIGKILL or a crash of the one before
 * left: they save, commit, pin, mark as uploaded, recycle, and meet failing operations. Every operation is logged. At
 * every place in that log, disks that a crash there may leave are made and opened with the reader; some are then gone on
 * with: all writers recover, save and commit once more. What is checked is in `check_disk`. History n depends on the seed
 * and n alone, but for the order in which threads of different writers come to act (in half of the histories). */
#define _POSIX_C_SOURCE 200809L
#include "base/check.h"
#include "base/log.h"
#include "ckpt/ckpt_reader.h"
#include "ckpt_io_sim.h"
#include "test.h"
#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#define FOLDER SIM_ROOT "/staging"
enum { WRITERS_MAX = 3, SAVED_MAX = 64, TENSORS = 4, GO_ON_EVERY = 25, WAIT_SECONDS = 60 };

/* The store runs on the simulator: these two stand in for ckpt_io.c. */
bool ckpt_io_open(CkptIo *io, const char *kind, const char **why, Error *err) {
    (void)kind;
    *why = "";
    return ckpt_io_sim_open(io, err);
}
void ckpt_io_close(CkptIo *io) {
    if (io->body) io->body->close(io);
    io->body = NULL;
}

/* --- what is saved --- */

typedef struct {
    char name[16];
    uint64_t elements; /* divided among the writers; small: by writer 0 alone, copied */
    size_t at;         /* in a checkpoint's bytes */
    bool small;
} Tensor;

/* Positions are places in the present log; NEVER: not (yet). */
#define NEVER ((size_t)-1)
typedef struct {
    CkptId id;
    uint8_t *bytes;
    size_t acknowledged, some;  /* its commit was: by all writers, by one at least */
    size_t best_begun, best;    /* committed as the best: asked for; acknowledged */
    size_t pinned, unpin_begun; /* pin acknowledged; unpin asked for */
    size_t upload_begun;        /* mark asked for */
} Saved;

typedef struct {
    uint64_t rng;
    int writers, keep;
    bool uploads, together, faults, late;
    Tensor tensor[TENSORS];
    size_t bytes;
    Saved saved[SAVED_MAX];
    int saves;
    uint32_t attempt;
    uint64_t step;
    uint8_t *memory; /* what the writers save from */
    uint8_t *back;
} History;

static uint64_t states, gone_on, acknowledged_seen, restorable_seen, faults_met;
static const char *where = "";
static uint64_t history_number;
static size_t position;

#define VERIFY(condition, ...)                                                                               \
    do {                                                                                                     \
        test_checks++;                                                                                       \
        if (!(condition)) {                                                                                  \
            test_failures++;                                                                                 \
            printf("%s:%d: history %llu, %s, after operation %zu, state %llu: %s: ", __FILE__, __LINE__,     \
                   (unsigned long long)history_number, where, position, (unsigned long long)states,          \
                   #condition);                                                                              \
            printf(__VA_ARGS__);                                                                             \
            printf("\n");                                                                                    \
        }                                                                                                    \
    } while (0)

static void fill(uint8_t *bytes, size_t n, CkptId id) {
    uint64_t seed = id.attempt * 1000003u + id.step;
    for (size_t i = 0; i + 8 <= n; i += 8) {
        uint64_t word = sim_random(&seed);
        memcpy(bytes + i, &word, 8);
    }
}

static void history_open(History *h, uint64_t seed) {
    *h = (History){.rng = seed};
    uint64_t r = sim_random(&h->rng);
    h->writers = 1 + (int)(r % WRITERS_MAX);
    h->keep = 1 + (int)((r >> 8) % 3);
    h->uploads = (r >> 16) % 4 == 0;
    h->together = r >> 24 & 1;
    h->faults = (r >> 28) % 3 == 0;
    h->late = (r >> 36) % 3 == 0;
    bool large = (r >> 32) % 8 == 0; /* pieces that go to the disk without a copy */
    static const char *const names[] = {"embed", "layer.0.w", "layer.1.b", "state"};
    for (int i = 0; i < TENSORS; i++) {
        Tensor *t = &h->tensor[i];
        snprintf(t->name, sizeof t->name, "%s", names[i]);
        t->small = i == 3;
        t->elements = i == 0   ? (large ? 20000u * (unsigned)h->writers : 1500)
                      : i == 1 ? 700
                      : i == 2 ? 5
                               : 16;
        t->at = h->bytes;
        h->bytes += (t->elements * 4 + 127) & ~(size_t)63;
    }
    void *p;
    CHECK(posix_memalign(&p, CKPT_IO_ALIGN, h->bytes) == 0);
    h->memory = p;
    h->back = malloc(h->bytes);
    CHECK(h->back != NULL);
}

static void history_close(History *h) {
    for (int i = 0; i < h->saves; i++) free(h->saved[i].bytes);
    free(h->memory);
    free(h->back);
}

static Saved *saved_find(History *h, CkptId id) {
    for (int i = 0; i < h->saves; i++)
        if (ckpt_id_compare(h->saved[i].id, id) == 0) return &h->saved[i];
    return NULL;
}

static Saved *saved_add(History *h, CkptId id) {
    CHECK_OP(h->saves, <, SAVED_MAX);
    Saved *s = &h->saved[h->saves++];
    *s = (Saved){id, malloc(h->bytes), NEVER, NEVER, NEVER, NEVER, NEVER, NEVER, NEVER};
    CHECK(s->bytes != NULL);
    fill(s->bytes, h->bytes, id);
    return s;
}

/* --- a run: all writers of one start --- */

typedef struct {
    Ckpt *ckpt[WRITERS_MAX];
} Run;

static bool run_open(Run *run, History *h, uint32_t attempt, CkptId newest, Error *err) {
    static const char *const nodes[] = {"a", "a", "b"};
    *run = (Run){{NULL}};
    for (int rank = 0; rank < h->writers; rank++) {
        CkptConfig config = {.directory = FOLDER,
                             .node = nodes[rank],
                             .io = "auto",
                             .rank = rank,
                             .size = h->writers,
                             .node_first = rank == 0,
                             .attempt = attempt,
                             .run = {1, 2, 3},
                             .newest = newest,
                             .newest_agreed = true,
                             .payload_bytes = h->bytes,
                             .copied_bytes = 64,
                             .views_max = TENSORS,
                             .keep = h->keep,
                             .keep_until_uploaded = h->uploads,
                             .policy = CKPT_POLICY_LAZY};
        if (!ckpt_open(&run->ckpt[rank], &config, err)) {
            run->ckpt[rank] = NULL;
            return false;
        }
    }
    return true;
}

static void run_close(Run *run, const History *h) {
    for (int rank = 0; rank < h->writers; rank++) ckpt_close(run->ckpt[rank]);
}

static size_t views_of(const History *h, int rank, TensorView views[TENSORS]) {
    size_t n = 0;
    for (int i = 0; i < TENSORS; i++) {
        const Tensor *t = &h->tensor[i];
        uint64_t w = (uint64_t)h->writers, r = (uint64_t)rank;
        uint64_t begin = t->small ? 0 : t->elements * r / w,
                 end = t->small ? t->elements : t->elements * (r + 1) / w;
        if (begin == end || (t->small && rank)) continue;
        TensorView *v = &views[n++];
        *v = (TensorView){.type = CKPT_FP32,
                          .dims = 1,
                          .shape = {t->elements},
                          .begin = begin,
                          .end = end,
                          .data = h->memory + t->at + begin * 4,
                          .copied = t->small};
        memcpy(v->name, t->name, sizeof t->name);
    }
    return n;
}

static void run_wait(Run *run, int rank) {
    if (!ckpt_wait(run->ckpt[rank], WAIT_SECONDS))
        CHECK(ckpt_status(run->ckpt[rank]).failed); /* else nothing ended within a minute */
}

/* As the next step does as soon as it may: the tensors change while the shard may still be on its way. */
static void scribble(Ckpt *ckpt, const TensorView *views, size_t count) {
    ckpt_fence(ckpt);
    for (size_t i = 0; i < count; i++)
        test_poison((void *)(uintptr_t)views[i].data, (size_t)(views[i].end - views[i].begin) * 4);
}

/* Every writer saves its part of a checkpoint; true: durable everywhere. */
static bool run_save(Run *run, History *h, uint64_t step, bool together, Error *err) {
    bool ok = true;
    for (int rank = 0; rank < h->writers; rank++) {
        TensorView views[TENSORS];
        size_t count = views_of(h, rank, views);
        CHECK(ckpt_begin(run->ckpt[rank], step, views, count, err));
        if (together) continue;
        scribble(run->ckpt[rank], views, count);
        run_wait(run, rank);
    }
    for (int rank = 0; rank < h->writers; rank++) {
        TensorView views[TENSORS];
        if (together) scribble(run->ckpt[rank], views, views_of(h, rank, views));
        run_wait(run, rank);
        CkptStatus status = ckpt_status(run->ckpt[rank]);
        if (status.failed) *err = status.error;
        ok = ok && !status.failed && status.newest_durable.step == step;
    }
    return ok;
}

/* All writers commit; how many said that it is done. */
static int run_commit(Run *run, History *h, uint64_t step, bool best, bool together) {
    int done = 0;
    for (int rank = 0; rank < h->writers; rank++) {
        ckpt_commit(run->ckpt[rank], step, best);
        if (!together) run_wait(run, rank);
    }
    for (int rank = 0; rank < h->writers; rank++) {
        run_wait(run, rank);
        CkptId newest = ckpt_status(run->ckpt[rank]).newest_committed;
        done += newest.attempt >= h->attempt && newest.step >= step;
    }
    return done;
}

/* --- what must hold on every disk --- */

/* Is everything of a restorable checkpoint what was saved? */
static void check_content(CkptReader *reader, History *h, const Saved *s) {
    Error err;
    const CkptTensor *tensors;
    size_t count = 0;
    bool there = ckpt_reader_tensors(reader, s->id, &tensors, &count, &err);
    VERIFY(there && count == TENSORS, "%u.%llu: %zu tensors: %s", s->id.attempt,
           (unsigned long long)s->id.step, count, there ? "" : err.text);
    for (int i = 0; i < TENSORS && there; i++) {
        const Tensor *t = &h->tensor[i];
        test_poison(h->back, t->elements * 4);
        bool read = ckpt_reader_read(reader, s->id, t->name, CKPT_FP32, 0, t->elements, h->back, &err);
        VERIFY(read, "%u.%llu: lost: %s", s->id.attempt, (unsigned long long)s->id.step, err.text);
        VERIFY(!read || !memcmp(h->back, s->bytes + t->at, t->elements * 4), "%u.%llu: %s: accepted, but bad",
               s->id.attempt, (unsigned long long)s->id.step, t->name);
    }
}

/* Must it be here? Not if enough newer ones are, and nothing holds it. */
static bool needed(const History *h, const Saved *s, size_t at, int newer) {
    if (s->some != NEVER && s->some <= at && newer == 0) return true;
    if (s->acknowledged == NEVER || s->acknowledged > at) return false;
    /* where a crash finds a COMMIT with some writers only, these count one more than the others: then fewer stay */
    if (newer < (h->faults || h->late ? 1 : h->keep)) return true;
    if (s->pinned <= at && s->unpin_begun > at) return true;
    if (h->uploads && s->upload_begun > at) return true;
    if (s->best > at) return false;
    for (int i = 0; i < h->saves; i++) /* is there, or may there be, a better one? */
        if (h->saved[i].best_begun <= at && ckpt_id_compare(h->saved[i].id, s->id) > 0) return false;
    return true;
}

/* Once, for who looks for the reason. -1: never. */
static void history_print(const History *h, const bool *restorable) {
    printf("writers %d, keep %d, uploads %d, together %d, faults %d, late %d\n", h->writers, h->keep,
           h->uploads, h->together, h->faults, h->late);
    for (int i = 0; i < h->saves; i++) {
        const Saved *s = &h->saved[i];
        printf(
            "  %u.%llu: committed by all at %zd, by one %zd, best %zd, pinned %zd to %zd, uploaded %zd%s\n",
            s->id.attempt, (unsigned long long)s->id.step, (ssize_t)s->acknowledged, (ssize_t)s->some,
            (ssize_t)s->best, (ssize_t)s->pinned, (ssize_t)s->unpin_begun, (ssize_t)s->upload_begun,
            restorable[i] ? ", restorable" : "");
    }
}

/* Opens the reader on the disk in use, as it is after a crash at `at`; the newest restorable one. */
static CkptId check_disk(History *h, size_t at) {
    Error err;
    CkptReader *reader = NULL;
    CkptId newest = {0};
    const CkptInfo *list = NULL;
    bool restorable[SAVED_MAX] = {false};
    bool opened = ckpt_reader_open(&reader, FOLDER, &err);
    VERIFY(opened, "%s", err.text);
    if (!opened) return newest;
    size_t count = ckpt_reader_list(reader, &list);
    for (size_t i = 0; i < count; i++) {
        VERIFY(i == 0 || ckpt_id_compare(list[i - 1].id, list[i].id) > 0, "the list is not sorted");
        VERIFY(list[i].state != CKPT_CORRUPT, "%u.%llu: %s", list[i].id.attempt,
               (unsigned long long)list[i].id.step, list[i].why);
        if (list[i].state != CKPT_RESTORABLE) continue;
        Saved *s = saved_find(h, list[i].id);
        VERIFY(s != NULL, "%u.%llu was never saved", list[i].id.attempt, (unsigned long long)list[i].id.step);
        if (!s) continue;
        if (!newest.attempt) newest = s->id;
        restorable[s - h->saved] = true;
        restorable_seen++;
        check_content(reader, h, s);
    }
    ckpt_reader_close(reader);
    for (int i = h->saves - 1, newer = 0; i >= 0; i--) { /* saved in order of id */
        const Saved *s = &h->saved[i];
        if (s->acknowledged <= at) acknowledged_seen++;
        if (!restorable[i] && needed(h, s, at, newer) && !test_failures) history_print(h, restorable);
        VERIFY(restorable[i] || !needed(h, s, at, newer),
               "%u.%llu: lost (%d newer ones are there, keep is %d)", s->id.attempt,
               (unsigned long long)s->id.step, newer, h->keep);
        newer += restorable[i];
    }
    return newest;
}

/* On a disk after a crash: all writers recover, save, commit; then the same must hold again. */
static void go_on(History *h, CkptId newest, size_t at) {
    Error err = {""};
    Run run;
    CkptId id = {h->attempt + 1, newest.step + 1};
    bool opened = run_open(&run, h, id.attempt, newest, &err);
    VERIFY(opened, "%s", err.text);
    if (opened) {
        Saved *s = saved_add(h, id);
        memcpy(h->memory, s->bytes, h->bytes);
        bool saved = run_save(&run, h, id.step, false, &err);
        VERIFY(saved, "%s", err.text);
        VERIFY(!saved || run_commit(&run, h, id.step, false, false) == h->writers, "no commit");
        s->acknowledged = s->some = at;
        CkptId last = check_disk(h, at);
        VERIFY(ckpt_id_compare(last, id) == 0, "%u.%llu is the newest", last.attempt,
               (unsigned long long)last.step);
        free(s->bytes);
        h->saves--;
    }
    run_close(&run, h);
}

/* --- histories --- */

/* A mark from another process: a drainer or a person. */
static void mark_some(History *h, const Sim *sim) {
    Error err;
    uint64_t r = sim_random(&h->rng);
    if (!h->saves) return;
    Saved *s = &h->saved[h->saves - 1 - (int)(r % (uint64_t)(h->saves < 3 ? h->saves : 3))];
    if (s->acknowledged == NEVER) return;
    if (h->uploads) {
        if (s->upload_begun == NEVER) s->upload_begun = sim_position(sim);
        ckpt_mark(FOLDER, s->id, CKPT_MARK_UPLOADED, &err);
    } else if ((r >> 32) % 4 == 0 && s == &h->saved[h->saves - 1]) { /* the newest is there to be pinned */
        if (ckpt_mark(FOLDER, s->id, CKPT_MARK_PIN, &err)) {
            s->pinned = sim_position(sim);
            s->unpin_begun = NEVER;
        }
    } else if ((r >> 32) % 4 == 1 && s->pinned != NEVER && s->unpin_begun == NEVER) {
        s->unpin_begun = sim_position(sim);
        ckpt_mark(FOLDER, s->id, CKPT_MARK_UNPIN, &err);
    }
}

static void commit_saved(Run *run, History *h, const Sim *sim, Saved *s) {
    bool best = sim_random(&h->rng) % 4 == 0;
    if (best) s->best_begun = sim_position(sim);
    int done = run_commit(run, h, s->id.step, best, h->together);
    if (done) s->some = sim_position(sim);
    if (done == h->writers) s->acknowledged = sim_position(sim);
    if (best) s->best = s->acknowledged;
}

/* One run of the history, on the simulator, logged. */
static void record_run(History *h, Sim *sim, CkptId newest) {
    Run run;
    Error err = {""};
    h->attempt++;
    bool ok = run_open(&run, h, h->attempt, newest, &err);
    VERIFY(ok || sim->fault_to, "%s", err.text);
    int steps = ok ? 2 + (int)(sim_random(&h->rng) % 6) : 0;
    h->step = newest.step;
    Saved *late = NULL;
    for (int i = 0; i < steps && h->saves < SAVED_MAX - 1; i++) {
        uint64_t r = sim_random(&h->rng);
        Saved *s = saved_add(h, (CkptId){h->attempt, ++h->step});
        memcpy(h->memory, s->bytes, h->bytes);
        bool saved = run_save(&run, h, h->step, h->together, &err);
        VERIFY(saved || sim->fault_to, "%s", err.text);
        if (late) commit_saved(&run, h, sim, late); /* votes that took until the next one was durable */
        late = NULL;
        if (saved && h->late && (r >> 20) % 4 == 0)
            late = s;
        else if (saved && r % 8 != 0) /* else the vote failed */
            commit_saved(&run, h, sim, s);
        if ((r >> 16) % 2 == 0) mark_some(h, sim);
    }
    run_close(&run, h);
}

/* What was said before `at` was said before everything in the next log; what was asked for later may have been. */
static void history_rebase(History *h, size_t at) {
    for (int i = 0; i < h->saves; i++) {
        Saved *s = &h->saved[i];
        size_t *said[] = {&s->acknowledged, &s->some, &s->best, &s->pinned};
        size_t *asked[] = {&s->best_begun, &s->unpin_begun, &s->upload_begun};
        for (int k = 0; k < 4; k++) *said[k] = *said[k] <= at ? 0 : NEVER;
        for (int k = 0; k < 3; k++) *asked[k] = *asked[k] <= at ? 0 : NEVER;
    }
}

static void check_state(History *h, const SimWorld *world, bool more) {
    static Sim crashed;
    sim_open(&crashed, world, false, sim_random(&h->rng));
    sim_use(&crashed);
    states++;
    where = "after a crash";
    CkptId newest = check_disk(h, position);
    if (more) {
        gone_on++;
        where = "going on after a crash";
        go_on(h, newest, position);
    }
    sim_close(&crashed);
}

/* Some operations of the next run fail; or all from one on, which is what SIGKILL looks like from below. */
static void inject(History *h, Sim *sim, bool kill) {
    uint64_t r = sim_random(&h->rng);
    sim->killed = kill;
    sim->fault_from = sim->fault_to = 0;
    if (!kill && (!h->faults || r % 4 == 0)) return;
    sim->fault_from = sim->changes + (r >> 8) % (kill ? 100 : 150);
    sim->fault_to = kill ? UINT64_MAX : sim->fault_from + ((r >> 32) % 2 ? 1 : (r >> 40) % 30);
    sim->fault_errno = r >> 4 & 1 ? EIO : ENOSPC;
}

/* Runs on one disk, one after the other, without a crash in between. */
static void record_runs(History *h, Sim *sim) {
    bool kill;
    do {
        where = "while it runs";
        position = sim_position(sim);
        CkptId newest = check_disk(h, position);
        kill = sim_random(&h->rng) % 3 == 0;
        inject(h, sim, kill);
        record_run(h, sim, newest);
        faults_met += sim->changes > sim->fault_from && sim->fault_to;
    } while (kill && h->saves < SAVED_MAX - 12);
    sim->fault_to = 0;
    where = "at the end of a run";
    position = sim_position(sim);
    check_disk(h, position);
}

/* The runs of one history, and at every operation of each `per` crashes. */
static void run_history(uint64_t seed, int per) {
    static History h;
    static Sim sim;
    static SimWorld base, next;
    sim_names_forget();
    history_open(&h, seed);
    bool begun = false;
    for (int runs = 0; runs < 4; runs++) {
        sim_open(&sim, begun ? &base : NULL, true, sim_random(&h.rng));
        sim_use(&sim);
        record_runs(&h, &sim);
        if (begun) sim_world_drop(&base);
        begun = false;
        SimCursor cursor;
        sim_cursor_open(&cursor, &sim, sim_random(&h.rng));
        size_t last = (size_t)(sim_random(&h.rng) % (sim.ops + 1));
        for (position = 0; position <= sim.ops; position++) {
            sim_cursor_advance(&cursor, position);
            for (int i = 0; i < per; i++) {
                sim_cursor_crash(&cursor, &next);
                check_state(&h, &next, sim_random(&h.rng) % GO_ON_EVERY == 0);
                if (position == last && i == 0)
                    base = next, begun = true;
                else
                    sim_world_drop(&next);
                if (test_failures > 20) exit(EXIT_FAILED);
            }
        }
        sim_cursor_close(&cursor);
        history_rebase(&h, last);
        sim_close(&sim);
    }
    if (begun) sim_world_drop(&base);
    history_close(&h);
}

/* --- the program --- */

static void run_states(uint64_t seed, uint64_t from, uint64_t step, uint64_t wanted, double until) {
    for (history_number = from; states < wanted && log_seconds() < until; history_number += step) {
        uint64_t mixed = seed * 0x9E3779B97F4A7C15u + history_number;
        run_history(sim_random(&mixed), 4);
    }
    printf("%llu crash states, %llu of them gone on with; restorable checkpoints read %llu, acknowledged "
           "ones looked for "
           "%llu; runs with failing operations %llu; lost or bad %d\n",
           (unsigned long long)states, (unsigned long long)gone_on, (unsigned long long)restorable_seen,
           (unsigned long long)acknowledged_seen, (unsigned long long)faults_met, test_failures);
}

int main(int argc, char **argv) {
#if defined(__SANITIZE_ADDRESS__)
    uint64_t wanted = 6000;
#else
    uint64_t wanted = 60000;
#endif
    uint64_t seed = 1, from = 0, jobs = 1;
    double seconds = 1e9;
    for (int i = 1; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        uint64_t n = value ? strtoull(value + 1, NULL, 10) : 0;
        if (!strncmp(argv[i], "--states=", 9))
            wanted = n;
        else if (!strncmp(argv[i], "--seed=", 7))
            seed = n;
        else if (!strncmp(argv[i], "--jobs=", 7) && n)
            jobs = n;
        else if (!strncmp(argv[i], "--from=", 7))
            from = n;
        else if (!strncmp(argv[i], "--seconds=", 10))
            seconds = (double)n;
        else
            return printf("usage: %s [--states=N] [--seed=N] [--jobs=N] [--from=N] [--seconds=N]\n", argv[0]),
                   EXIT_USAGE;
    }
    log_open(1, true);
    mallopt(M_MMAP_THRESHOLD, 1 << 30); /* the store's buffers come and go with every state */
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    double began = log_seconds();
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (jobs == 1) {
        run_states(seed, from, 1, wanted, began + seconds);
        printf("%.0f states/s\n", (double)states / (log_seconds() - began));
        return test_end("ckpt_crash");
    }
    for (uint64_t j = 0; j < jobs; j++)
        if (fork() == 0) {
            run_states(seed, from + j, jobs, wanted / jobs, began + seconds);
            return test_end("ckpt_crash");
        }
    int status, bad = 0;
    while (wait(&status) > 0) bad |= status != 0;
    printf("%llu jobs, %.0f s\n", (unsigned long long)jobs, log_seconds() - began);
    return bad ? EXIT_FAILED : EXIT_DONE;
}
