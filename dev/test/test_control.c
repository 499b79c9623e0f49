/* test_control.c: the control plane: ranks meet, exchange, leave; a rank that dies, stops, gives up, is missing, is there
 * twice or was told another size is named on every other rank. Times are printed, never judged. */
#define _DEFAULT_SOURCE
#include "comm/control.h"
#include "comm_lab.h"
#include "test.h"

static const double TIMEOUT = 2, LIMIT = 20;

/* --- what the ranks do --- */

static int fail_rank(const Error *err) {
    fprintf(stderr, "%s\n", err->text);
    return EXIT_FAILED;
}

/* Exchanges of many sizes, each checked. */
static bool exchange(Control *control, int rounds, Error *err) {
    int rank = control_rank(control), size = control_size(control);
    uint32_t mine[1000], *all = malloc(sizeof mine * (size_t)size);
    bool ok = all != NULL;
    for (int round = 0; round < rounds && ok; round++) {
        size_t n = (size_t)(round * 37 % 1000);
        for (size_t i = 0; i < n; i++) mine[i] = (uint32_t)(rank * 1000003 + round * 1009 + (int)i);
        ok = control_all_gather(control, mine, n * sizeof *mine, all, err);
        for (int r = 0; r < size && ok; r++)
            for (size_t i = 0; i < n && ok; i++)
                if (all[(size_t)r * n + i] != (uint32_t)(r * 1000003 + round * 1009 + (int)i))
                    ok = error_set(err, "wrong value %zu of rank %d in round %d", i, r, round);
    }
    free(all);
    return ok;
}

static int rank_meet(void) {
    Control *control;
    Error err;
    if (!control_open(&control, TIMEOUT * 5, &err)) return fail_rank(&err);
    int rank = control_rank(control), size = control_size(control), locals = 0;
    bool ok = exchange(control, 60, &err);
    for (int i = 0; i < size; i++) locals += !strcmp(control_host(control, i), control_host(control, rank));
    if (ok && (control_local_rank(control, rank) >= locals || control_hosts(control) > size))
        ok = error_set(&err, "local rank %d of %d", control_local_rank(control, rank), locals);
    if (ok && control_failed(control, NULL)) control_failed(control, &err), ok = false;
    lab_sleep(0.02 * (rank % 3)); /* they leave one after another */
    control_close(control);
    return ok ? 0 : fail_rank(&err);
}

/* Meets the others, says so, and waits for a failure. */
static int rank_watch(void) {
    Control *control;
    Error err;
    if (!control_open(&control, TIMEOUT, &err) || !exchange(control, 3, &err)) return fail_rank(&err);
    fprintf(stderr, "ready\n");
    if (!strcmp(lab_argument(), "abort") && control_rank(control) == 1) {
        lab_sleep(0.2);
        control_abort(control, "rank 1 gives up: the disk is full");
        _exit(EXIT_FAILED);
    }
    if (!strcmp(lab_argument(), "absent") && control_rank(control) != 1)
        control_all_gather(control, NULL, 0, NULL, &err);
    for (double until = log_seconds() + LIMIT; log_seconds() < until; lab_sleep(0.001))
        if (control_failed(control, &err)) {
            fprintf(stderr, "%.6f %s\n", log_seconds(), err.text);
            control_close(control);
            return EXIT_FAILED;
        }
    return 0;
}

static int rank_join(void) {
    Control *control;
    Error err;
    if (!strcmp(lab_argument(), "missing") && !strcmp(getenv("TOROID_RANK"), "2")) return EXIT_FAILED;
    if (!strcmp(lab_argument(), "missing 0") && !strcmp(getenv("TOROID_RANK"), "0")) return EXIT_FAILED;
    if (!strcmp(lab_argument(), "twice") && !strcmp(getenv("TOROID_RANK"), "2"))
        setenv("TOROID_RANK", "1", 1);
    if (!strcmp(lab_argument(), "sizes") && !strcmp(getenv("TOROID_RANK"), "2"))
        setenv("TOROID_SIZE", "4", 1);
    if (!control_open(&control, 1, &err)) return fail_rank(&err);
    control_close(control);
    return 0;
}

/* --- what the parent does --- */

static void test_meet(int size) {
    Lab lab;
    char line[LAB_LINE_BYTES];
    lab_start(&lab, size, 0, "meet", "");
    lab_finish(&lab, LIMIT);
    for (int i = 0; i < size; i++)
        TEST_CHECK(lab_exit_code(&lab, i) == 0, "rank %d of %d: %d: %s", i, size, lab_exit_code(&lab, i),
                   lab_stderr(&lab, i, line));
    lab_clean(&lab);
}

static void wait_ready(Lab *lab) {
    char line[LAB_LINE_BYTES];
    for (int i = 0; i < lab->size; i++)
        for (double until = log_seconds() + LIMIT;
             !strstr(lab_stderr(lab, i, line), "ready") && lab_poll(lab) && log_seconds() < until;)
            lab_sleep(0.002);
}

/* Every rank but `victim` ends with 1 and says `words`. */
static void check_told(Lab *lab, const char *name, int victim, const char *words, double since) {
    char line[LAB_LINE_BYTES];
    double last = 0;
    TEST_CHECK(!lab->timed_out, "%s: some ranks had to be killed", name);
    for (int i = 0; i < lab->size; i++) {
        if (i == victim) continue;
        lab_stderr(lab, i, line);
        TEST_CHECK(lab_exit_code(lab, i) == EXIT_FAILED, "%s: rank %d: %d: %s", name, i,
                   lab_exit_code(lab, i), line);
        TEST_CHECK(strstr(line, words) != NULL, "%s: rank %d says: %s", name, i, line);
        const char *at = strstr(line, "ready\n");
        double when = at ? atof(at + 6) : 0;
        if (when > last) last = when;
    }
    if (since > 0)
        printf("%s: known on all of %d ranks after %.1f ms\n", name, lab->size, 1e3 * (last - since));
}

/* A job, what happens to it, and what all but one of its ranks must say then. */
typedef struct {
    int size;
    const char *kind, *argument, *words;
    int victim; /* gets the signal, and need not say anything; -1: none */
    int signal; /* 0: none */
} Case;

typedef struct {
    const Case *what;
    Lab lab;
    double since;
} Job;

static bool is_all_stopped(const Case *c) {
    return c->signal == SIGSTOP && c->argument[0];
}

/* Starts the ranks and hurts one, or all; job_end says what became of them: meanwhile others can be hurt. */
static void job_begin(Job *job, const Case *c) {
    job->what = c;
    lab_start(&job->lab, c->size, 0, c->kind, c->argument);
    if (!c->signal) return;
    wait_ready(&job->lab);
    job->since = log_seconds();
    for (int i = 0; i < c->size; i++)
        if (i == c->victim || is_all_stopped(c)) kill(job->lab.pid[i], c->signal);
}

static void job_end(Job *job) {
    char line[LAB_LINE_BYTES];
    Lab *lab = &job->lab;
    const Case *c = job->what;
    const char *name = c->signal == SIGKILL ? "kill -9" : c->signal == SIGSTOP ? "SIGSTOP" : c->argument;
    if (is_all_stopped(c)) {
        lab_sleep(fmax(0, job->since + TIMEOUT * 1.2 - log_seconds()));
        for (int i = c->size - 1; i >= 0; i--) kill(lab->pid[i], SIGCONT);
        job->since = 0;
    } else if (c->signal == SIGSTOP) { /* it learns what the others said of it, and ends too */
        for (double until = log_seconds() + LIMIT; lab_poll(lab) > 1 && log_seconds() < until;)
            lab_sleep(0.002);
        kill(lab->pid[c->victim], SIGCONT);
    }
    lab_finish(lab, LIMIT);
    check_told(lab, name, c->victim, c->words, job->since);
    if (c->signal == SIGSTOP && !is_all_stopped(c)) {
        lab_stderr(lab, c->victim, line);
        TEST_CHECK(lab_exit_code(lab, c->victim) == EXIT_FAILED && strstr(line, c->words) != NULL,
                   "the stopped rank %d says: %s", c->victim, line);
    }
    lab_clean(lab);
}

static void test_hurt(void) {
    static const Case cases[] = {
        {4, "watch", "abort", "the disk is full", 1, SIGSTOP},
        {4, "watch", "", "rank 3 (", 3, SIGSTOP},
        {4, "watch", "", "rank 0 (", 0, SIGSTOP},
        {4, "watch", "", "rank 2 (", 2, SIGKILL},
        {4, "watch", "", "rank 0 (", 0, SIGKILL},
        {16, "watch", "", "rank 15 (", 15, SIGKILL},
        {4, "watch", "abort", "the disk is full", 1, 0},
        {4, "watch", "absent", "rank 1 (", -1, 0},
        {3, "join", "missing", "rank 2 of 3 did not reach rank 0", 2, 0},
        {3, "join", "missing 0", "rank 0 was not found", 0, 0},
        {3, "join", "twice", "there is a second rank 1", -1, 0},
        {3, "join", "sizes", "was told of 4 ranks", -1, 0},
    };
    enum { CASES = sizeof cases / sizeof *cases };
    static Job jobs[CASES];
    for (int i = 0; i < CASES; i++) job_begin(&jobs[i], &cases[i]);
    for (int i = 0; i < CASES; i++) job_end(&jobs[i]);
}

static bool place_is(int rank, int size, int local_rank, const char *launcher) {
    ControlPlace p;
    Error err;
    return control_place(&p, &err) && p.rank == rank && p.size == size && p.local_rank == local_rank &&
           !strcmp(p.launcher, launcher);
}

static void test_place(void) {
    ControlPlace p;
    Error err;
    TEST_CHECK(place_is(0, 1, 0, "none"), "without a launcher");
    setenv("SLURM_PROCID", "5", 1);
    setenv("SLURM_NTASKS", "8", 1);
    TEST_CHECK(place_is(0, 1, 0, "none"), "in a batch script, outside of a step");
    setenv("SLURM_STEP_ID", "0", 1);
    setenv("SLURM_STEP_NUM_TASKS", "8", 1);
    setenv("SLURM_LOCALID", "1", 1);
    TEST_CHECK(place_is(5, 8, 1, "srun"), "srun");
    setenv("OMPI_COMM_WORLD_RANK", "3", 1);
    setenv("OMPI_COMM_WORLD_SIZE", "4", 1);
    setenv("OMPI_COMM_WORLD_LOCAL_RANK", "1", 1);
    TEST_CHECK(place_is(3, 4, 1, "mpirun"), "mpirun");
    setenv("TOROID_RANK", "1", 1);
    TEST_CHECK(!control_place(&p, &err) && strstr(err.text, "TOROID_SIZE"), "%s", err.text);
    setenv("TOROID_SIZE", "1", 1);
    TEST_CHECK(!control_place(&p, &err), "rank 1 of 1");
    setenv("TOROID_SIZE", "2x", 1);
    TEST_CHECK(!control_place(&p, &err), "2x ranks");
    setenv("TOROID_SIZE", "2", 1);
    TEST_CHECK(place_is(1, 2, 1, "TOROID_RANK"), "TOROID_RANK");
    static const char *const names[] = {
        "SLURM_PROCID",  "SLURM_NTASKS",         "SLURM_STEP_ID",        "SLURM_STEP_NUM_TASKS",
        "SLURM_LOCALID", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
        "TOROID_RANK",   "TOROID_SIZE"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unsetenv(names[i]);
}

static void test_alone(void) {
    Control *control;
    Error err;
    uint32_t x = 7, y = 0;
    TEST_CHECK(control_open(&control, 1, &err), "%s", err.text);
    TEST_CHECK(control_all_gather(control, &x, sizeof x, &y, &err) && y == 7, "%u", y);
    control_abort(control, "enough");
    TEST_CHECK(control_failed(control, &err) && !strcmp(err.text, "enough"), "%s", err.text);
    control_close(control);
}

int main(void) {
    if (lab_is_rank()) {
        if (!strcmp(lab_case(), "meet")) return rank_meet();
        if (!strcmp(lab_case(), "watch")) return rank_watch();
        return rank_join();
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    test_place();
    test_alone();
    for (int size = 2; size <= 16; size *= 2) test_meet(size);
    setenv("TOROID_HOST", "elsewhere", 1);
    setenv("TOROID_ROOT", "127.0.0.1:29377", 1);
    test_meet(4);
    unsetenv("TOROID_HOST");
    unsetenv("TOROID_ROOT");
    test_hurt();
    return test_end("control");
}
