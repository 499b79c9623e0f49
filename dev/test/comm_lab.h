/* comm_lab.h: starts N ranks of the program that runs, with a time limit, and collects how they ended.
 *
 * A test program is its own rank: main() calls lab_is_rank() first and, if so, does what lab_case() names. The parent
 * starts ranks with lab_start, may hurt them, and ends with lab_finish, which kills what is left after the limit: no
 * rank outlives its test. Every rank's stderr goes to a file of its own in the lab's folder. */
#ifndef COMM_LAB_H
#define COMM_LAB_H
#include "base/log.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LAB_RANKS_MAX = 64, LAB_MPIRUN = 1, LAB_LINE_BYTES = 2048 };

typedef struct {
    int size, processes; /* under mpirun there is one process, mpirun, for all ranks */
    bool mpirun;
    double start;
    pid_t pid[LAB_RANKS_MAX];
    int status[LAB_RANKS_MAX];   /* as waitpid says; of those that have ended */
    double ended[LAB_RANKS_MAX]; /* seconds after the start; 0: still running */
    bool timed_out;              /* lab_finish had to kill some */
    char folder[64];
} Lab;

static inline bool lab_is_rank(void) {
    if (!getenv("LAB_CASE")) return false;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* of mpirun, too */
    return true;
}

/* The case that this rank was started for, and its argument ("" if none). */
static inline const char *lab_case(void) {
    return getenv("LAB_CASE");
}

static inline const char *lab_argument(void) {
    return getenv("LAB_ARGUMENT") ? getenv("LAB_ARGUMENT") : "";
}

static inline void lab_sleep(double seconds) {
    struct timespec t = {.tv_sec = (time_t)seconds,
                         .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9)};
    while (nanosleep(&t, &t) != 0 && errno == EINTR) continue;
}

static inline void lab_path(const Lab *lab, int process, char out[128]) {
    snprintf(out, 128, "%s/%d", lab->folder, process);
}

static inline void lab_exec(const Lab *lab, int process, const char *name, const char *argument) {
    char path[128], text[32], self[512];
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that is killed takes its ranks along */
    lab_path(lab, process, path);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600);
    if (fd < 0 || dup2(fd, 2) < 0) _exit(126);
    setenv("LAB_CASE", name, 1);
    setenv("LAB_ARGUMENT", argument, 1);
    setenv("OMP_NUM_THREADS", "1", 1);
    setenv("TOROID_JOB", lab->folder, 1); /* jobs of one parent may run at once */
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0) _exit(126);
    self[n] = 0;
    snprintf(text, sizeof text, "%d", lab->size);
    if (lab->mpirun) {
        unsetenv("TOROID_RANK"), unsetenv("TOROID_SIZE");
        execlp("mpirun", "mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", text,
               self, (char *)NULL);
    } else {
        setenv("TOROID_SIZE", text, 1);
        snprintf(text, sizeof text, "%d", process);
        setenv("TOROID_RANK", text, 1);
        execl(self, self, (char *)NULL);
    }
    _exit(127);
}

/* how: 0, or LAB_MPIRUN. */
static inline void lab_start(Lab *lab, int size, int how, const char *name, const char *argument) {
    *lab = (Lab){.size = size, .mpirun = how == LAB_MPIRUN, .start = log_seconds()};
    lab->processes = lab->mpirun ? 1 : size;
    snprintf(lab->folder, sizeof lab->folder, "/tmp/comm_lab.XXXXXX");
    if (!mkdtemp(lab->folder)) abort();
    fflush(NULL);
    for (int i = 0; i < lab->processes; i++) {
        lab->pid[i] = fork();
        if (lab->pid[i] < 0) abort();
        if (!lab->pid[i]) lab_exec(lab, i, name, argument);
    }
}

/* Notes which ranks have ended; how many still run. */
static inline int lab_poll(Lab *lab) {
    int running = 0;
    for (int i = 0; i < lab->processes; i++) {
        if (lab->ended[i] == 0 && waitpid(lab->pid[i], &lab->status[i], WNOHANG) == lab->pid[i])
            lab->ended[i] = log_seconds() - lab->start;
        running += lab->ended[i] == 0;
    }
    return running;
}

/* Waits until all have ended, at most `seconds` from now; then kills the rest. */
static inline void lab_finish(Lab *lab, double seconds) {
    double until = log_seconds() + seconds;
    while (lab_poll(lab) && log_seconds() < until) lab_sleep(0.002);
    lab->timed_out = lab_poll(lab) > 0;
    for (int i = 0; i < lab->processes; i++) {
        if (lab->ended[i] > 0) continue;
        if (lab->mpirun) { /* it kills its ranks when it is told to end */
            kill(lab->pid[i], SIGTERM);
            for (int k = 0; k < 500 && lab_poll(lab); k++) lab_sleep(0.01);
            if (!lab_poll(lab)) continue;
        }
        kill(lab->pid[i], SIGKILL);
        waitpid(lab->pid[i], &lab->status[i], 0);
        lab->ended[i] = log_seconds() - lab->start;
    }
}

/* The exit code of a process; 128 + signal if one ended it. */
static inline int lab_exit_code(const Lab *lab, int process) {
    int s = lab->status[process];
    return WIFEXITED(s) ? WEXITSTATUS(s) : 128 + (WIFSIGNALED(s) ? WTERMSIG(s) : 0);
}

static inline int lab_failures(const Lab *lab) {
    int n = 0;
    for (int i = 0; i < lab->processes; i++) n += lab_exit_code(lab, i) != 0;
    return n;
}

/* What a process has written to stderr, its first LAB_LINE_BYTES. */
static inline const char *lab_stderr(const Lab *lab, int process, char out[LAB_LINE_BYTES]) {
    char path[128];
    lab_path(lab, process, path);
    FILE *f = fopen(path, "r");
    size_t n = f ? fread(out, 1, LAB_LINE_BYTES - 1, f) : 0;
    out[n] = 0;
    if (f) fclose(f);
    return out;
}

static inline void lab_clean(Lab *lab) {
    char path[128];
    for (int i = 0; i < lab->processes; i++) {
        lab_path(lab, i, path);
        unlink(path);
    }
    rmdir(lab->folder);
}

static inline bool lab_have_mpirun(void) {
    return system("command -v mpirun >/dev/null 2>&1") == 0;
}
#endif
