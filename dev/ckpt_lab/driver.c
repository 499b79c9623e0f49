/* driver.c: a process that does nothing but save checkpoints, back to back, to be killed (kill.py) or watched from below
 * (ext4.py); and the check of what it left.
 *
 *   driver write FOLDER [--writers=2] [--bytes=400000] [--keep=2] [--io=auto] [--checkpoints=N] [--acks=FILE]
 *   driver check FOLDER [--writers=2] [--bytes=400000] [--keep=2]
 *
 * write: recovers what is there, then for every checkpoint that all its writers committed says "ack ATTEMPT STEP", in one
 * write(2), on stdout or into FILE. check: says "restorable ATTEMPT STEP" for each, newest first; exit 1 and "bad ..." if
 * anything that it read is not what was saved. */
#define _POSIX_C_SOURCE 200809L
#include "base/log.h"
#include "lab.h"
#include <fcntl.h>
#include <unistd.h>

typedef struct {
    LabShape shape;
    const char *folder, *io;
    uint64_t checkpoints;
    int acks;
} Options;

static int failed(const char *what, const Error *err) {
    fprintf(stderr, "driver: %s: %s\n", what, err->text);
    return EXIT_FAILED;
}

static int check(const Options *o) {
    LabSeen seen;
    lab_check(o->folder, &o->shape, &seen);
    for (int i = 0; i < seen.count; i++)
        printf("restorable %u %llu\n", seen.restorable[i].attempt,
               (unsigned long long)seen.restorable[i].step);
    if (seen.bad) printf("bad %d: %s\n", seen.bad, seen.why);
    return seen.bad ? EXIT_FAILED : EXIT_DONE;
}

/* The newest restorable checkpoint, and the number of this start. */
static bool find_newest(const char *folder, CkptId *newest, uint32_t *attempt, Error *err) {
    CkptReader *reader;
    const CkptInfo *list;
    *newest = (CkptId){0};
    if (!ckpt_reader_open(&reader, folder, err)) return false;
    size_t n = ckpt_reader_list(reader, &list);
    *attempt = ckpt_reader_attempt(reader) + 1;
    for (size_t i = 0; i < n && !newest->attempt; i++)
        if (list[i].state == CKPT_RESTORABLE) *newest = list[i].id;
    ckpt_reader_close(reader);
    return true;
}

typedef struct {
    Ckpt *ckpt[LAB_WRITERS_MAX];
    void *weights[LAB_WRITERS_MAX];
    uint32_t state[LAB_STATE_ELEMENTS];
} Writers;

static bool writers_open(Writers *w, const Options *o, CkptId newest, uint32_t attempt, Error *err) {
    for (int rank = 0; rank < o->shape.writers; rank++) {
        CkptConfig config = {.directory = o->folder,
                             .node = "lab",
                             .io = o->io,
                             .rank = rank,
                             .size = o->shape.writers,
                             .node_first = rank == 0,
                             .attempt = attempt,
                             .run = "the checkpoint",
                             .newest = newest,
                             .newest_agreed = true,
                             .payload_bytes = o->shape.bytes + sizeof w->state,
                             .views_max = 2,
                             .keep = o->shape.keep,
                             .segments_max = o->shape.keep + 3};
        if (!ckpt_open(&w->ckpt[rank], &config, err)) return false;
        if (posix_memalign(&w->weights[rank], CKPT_IO_ALIGN, o->shape.bytes + CKPT_IO_ALIGN))
            return error_set(err, "no memory");
    }
    return true;
}

static bool writer_begin(Writers *w, const Options *o, int rank, CkptId id, Error *err) {
    TensorView views[2] = {
        {.name = "weights", .dims = 1, .shape = {o->shape.bytes / 4}, .data = w->weights[rank]},
        {.name = "state",
         .dims = 1,
         .shape = {LAB_STATE_ELEMENTS},
         .end = LAB_STATE_ELEMENTS,
         .data = w->state,
         .copied = true}};
    lab_range(&o->shape, rank, &views[0].begin, &views[0].end);
    lab_fill(w->weights[rank], views[0].begin, views[0].end, id, 0);
    lab_fill(w->state, 0, LAB_STATE_ELEMENTS, id, 1);
    return ckpt_begin(w->ckpt[rank], id.step, views, rank == 0 ? 2 : 1, err);
}

/* One checkpoint by all writers, until all have committed it. */
static bool save(Writers *w, const Options *o, CkptId id, Error *err) {
    for (int rank = 0; rank < o->shape.writers; rank++)
        if (!writer_begin(w, o, rank, id, err)) return false;
    for (int round = 0; round < 2; round++) /* durable, committed */
        for (int rank = 0; rank < o->shape.writers; rank++) {
            if (round == 1) ckpt_commit(w->ckpt[rank], id.step, false);
            bool done = ckpt_wait(w->ckpt[rank], 60);
            ckpt_fence(w->ckpt[rank]);
            CkptStatus status = ckpt_status(w->ckpt[rank]);
            done = done && (round == 0 || status.newest_committed.step == id.step);
            if (!done || status.failed)
                return error_set(err, "%s",
                                 status.failed ? status.error.text : "no commit, or nothing for a minute");
        }
    return true;
}

static int write_all(const Options *o) {
    Error err;
    CkptId newest;
    uint32_t attempt;
    static Writers w;
    if (!find_newest(o->folder, &newest, &attempt, &err)) return failed("recovery", &err);
    if (!writers_open(&w, o, newest, attempt, &err)) return failed("recovery", &err);
    for (uint64_t i = 0; i < o->checkpoints; i++) {
        char line[64];
        CkptId id = {attempt, newest.step + 1 + i};
        if (!save(&w, o, id, &err)) return failed("saving", &err);
        int n = snprintf(line, sizeof line, "ack %u %llu\n", id.attempt, (unsigned long long)id.step);
        if (write(o->acks, line, (size_t)n) != n) return EXIT_FAILED;
    }
    for (int rank = 0; rank < o->shape.writers; rank++) {
        ckpt_close(w.ckpt[rank]);
        free(w.weights[rank]);
    }
    return EXIT_DONE;
}

int main(int argc, char **argv) {
    Options o = {{2, 2, 400000}, NULL, "auto", UINT64_MAX, STDOUT_FILENO};
    bool ok = argc > 2;
    for (int i = 3; ok && i < argc; i++) {
        const char *value = strchr(argv[i], '=');
        unsigned long long n = value ? strtoull(++value, NULL, 10) : 0;
        if (!strncmp(argv[i], "--writers=", 10) && n && n <= LAB_WRITERS_MAX)
            o.shape.writers = (int)n;
        else if (!strncmp(argv[i], "--bytes=", 8) && n)
            o.shape.bytes = n;
        else if (!strncmp(argv[i], "--keep=", 7) && n)
            o.shape.keep = (int)n;
        else if (!strncmp(argv[i], "--checkpoints=", 14))
            o.checkpoints = n;
        else if (!strncmp(argv[i], "--io=", 5))
            o.io = value;
        else if (!strncmp(argv[i], "--acks=", 7))
            ok = (o.acks = open(value, O_WRONLY)) >= 0;
        else
            ok = false;
    }
    log_open(1, true);
    o.folder = argc > 2 ? argv[2] : NULL;
    if (ok && !strcmp(argv[1], "check")) return check(&o);
    if (ok && !strcmp(argv[1], "write")) return write_all(&o);
    fprintf(
        stderr,
        "usage: driver write|check FOLDER [--writers=N] [--bytes=N] [--keep=N] [--io=KIND] [--checkpoints=N] "
        "[--acks=FILE]\n");
    return EXIT_USAGE;
}
