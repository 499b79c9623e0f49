/* test_ckpt_processes.c: writers that are processes of their own are killed at any moment, again and again; what is left is
 * opened, its newest checkpoint has what was saved, and none that all writers had committed is lost. */
#define _GNU_SOURCE
#include "base/log.h"
#include "ckpt/ckpt.h"
#include "ckpt/ckpt_reader.h"
#include "test.h"
#include "test_folder.h"
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

enum { WRITERS = 3, ROUNDS = 6, ELEMENTS = 300007 };

/* What the writers tell one another and the parent: which step each has durable, which each has committed. */
typedef struct {
    _Atomic uint64_t durable[WRITERS], committed[WRITERS];
} Shared;

static Shared *shared;
static char folder[600];

static float element(uint32_t attempt, uint64_t step, uint64_t at) {
    return (float)((at * 31 + step * 7 + attempt) % 16777216);
}

static void wait_for(_Atomic uint64_t *all, uint64_t step) {
    for (int w = 0; w < WRITERS; w++)
        while (atomic_load(&all[w]) < step) sched_yield();
}

/* Saves until it is killed. */
static void writer(int rank, uint32_t attempt, CkptId newest) {
    uint64_t begin = (uint64_t)ELEMENTS * (uint64_t)rank / WRITERS,
             end = (uint64_t)ELEMENTS * (uint64_t)(rank + 1) / WRITERS;
    size_t count = (size_t)(end - begin);
    float *data = calloc(count, sizeof *data);
    Ckpt *ckpt = NULL;
    Error err = {""};
    CkptConfig config = {.directory = folder,
                         .node = "host",
                         .rank = rank,
                         .size = WRITERS,
                         .node_first = rank == 0,
                         .attempt = attempt,
                         .run = {8},
                         .newest = newest,
                         .newest_agreed = true,
                         .payload_bytes = count * sizeof *data,
                         .views_max = 1,
                         .keep = 1};
    CHECK(data && ckpt_open(&ckpt, &config, &err));
    TensorView view = {"x", CKPT_FP32, 1, {ELEMENTS}, begin, end, data, false};
    for (uint64_t step = newest.step + 1;; step++) {
        for (size_t i = 0; i < count; i++) data[i] = element(attempt, step, begin + i);
        CHECK(ckpt_begin(ckpt, step, &view, 1, &err));
        ckpt_fence(ckpt);
        CHECK(ckpt_wait(ckpt, 600));
        atomic_store(&shared->durable[rank], step);
        wait_for(shared->durable, step);
        ckpt_commit(ckpt, step, false);
        CHECK(ckpt_wait(ckpt, 600));
        atomic_store(&shared->committed[rank], step);
        wait_for(shared->committed, step);
    }
}

/* The newest restorable one, after its content was checked. */
static CkptId check(void) {
    CkptReader *reader = NULL;
    const CkptInfo *list;
    Error err = {""};
    CkptId newest = {0, 0};
    TEST_CHECK(ckpt_reader_open(&reader, folder, &err), "%s", err.text);
    if (!reader) return newest;
    float *data = malloc(ELEMENTS * sizeof *data);
    CHECK(data != NULL);
    for (size_t i = 0, n = ckpt_reader_list(reader, &list); i < n; i++) {
        TEST_CHECK(list[i].state != CKPT_CORRUPT, "%s", list[i].why);
        if (list[i].state != CKPT_RESTORABLE) continue;
        if (!newest.attempt) newest = list[i].id;
        test_poison(data, ELEMENTS * sizeof *data);
        bool read = ckpt_reader_read(reader, list[i].id, "x", CKPT_FP32, 0, ELEMENTS, data, &err);
        TEST_CHECK(read, "%s", err.text);
        uint64_t wrong = 0;
        for (uint64_t at = 0; read && at < ELEMENTS; at++)
            wrong += !(data[at] == element(list[i].id.attempt, list[i].id.step, at));
        TEST_CHECK(wrong == 0, "%d elements of step %d", (int)wrong, (int)list[i].id.step);
    }
    free(data);
    ckpt_reader_close(reader);
    return newest;
}

int main(void) {
    log_open(1, true);
    test_folder_open();
    snprintf(folder, sizeof folder, "%s", test_path("staging").path);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    CkptId newest = {0, 0};
    uint64_t saved = 0;
    for (uint32_t attempt = 1; attempt <= ROUNDS; attempt++) {
        pid_t pids[WRITERS];
        uint32_t r[4];
        for (int w = 0; w < WRITERS; w++) {
            atomic_store(&shared->durable[w], 0);
            atomic_store(&shared->committed[w], 0);
        }
        fflush(stdout);
        for (int w = 0; w < WRITERS; w++)
            if ((pids[w] = fork()) == 0) writer(w, attempt, newest);
        uint64_t begun = newest.step + 1 + attempt % 3;
        while (atomic_load(&shared->durable[0]) < begun && waitpid(-1, NULL, WNOHANG) == 0) sched_yield();
        rng_block(attempt, RNG_STREAM(RNG_TEST, 31), 0, r);
        nanosleep(&(struct timespec){0, (long)(r[0] % 40000000)}, NULL);
        for (int w = 0; w < WRITERS; w++) kill(pids[(w + (int)attempt) % WRITERS], SIGKILL);
        for (int w = 0; w < WRITERS; w++) waitpid(pids[w], NULL, 0);
        uint64_t all = UINT64_MAX;
        for (int w = 0; w < WRITERS; w++)
            if (atomic_load(&shared->committed[w]) < all) all = atomic_load(&shared->committed[w]);
        CkptId found = check();
        TEST_CHECK(all == 0 || ckpt_id_compare(found, (CkptId){attempt, all}) >= 0,
                   "step %d was committed, %u.%d is the newest", (int)all, found.attempt, (int)found.step);
        TEST_CHECK(ckpt_id_compare(found, newest) >= 0, "%u.%d is lost", newest.attempt, (int)newest.step);
        saved += found.step - newest.step;
        newest = found;
    }
    TEST_CHECK(saved > 0, "nothing was ever saved");
    test_folder_close();
    return test_end("ckpt_processes");
}
