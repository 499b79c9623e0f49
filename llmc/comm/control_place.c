/* control_place.c: where this process stands among the ranks of its job, as its launcher says in the environment. See
 * control.h; what rendezvous.c needs of it: rendezvous.h. */
#define _DEFAULT_SOURCE
#include "comm/control.h"
#include "comm/rendezvous.h"
#include <ctype.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { RANKS_MAX = 65536 };

/* 1: set, 0: not set, -1: set to something else than a number from 0 on. */
static int read_number(const char *name, int *value) {
    const char *text = getenv(name);
    if (!text) return 0;
    char *end;
    errno = 0;
    long n = strtol(text, &end, 10);
    if (end == text || *end || errno || n < 0 || n > RANKS_MAX) return -1;
    *value = (int)n;
    return 1;
}

static bool read_place(ControlPlace *place, const char *launcher, const char *rank, const char *size,
                       Error *err) {
    place->launcher = launcher;
    if (read_number(rank, &place->rank) != 1 || read_number(size, &place->size) != 1 ||
        place->rank >= place->size)
        return error_set(err, "%s and %s must be numbers, the first below the second, but are %s and %s",
                         rank, size, getenv(rank) ? getenv(rank) : "not set",
                         getenv(size) ? getenv(size) : "not set");
    return true;
}

bool control_place(ControlPlace *place, Error *err) {
    *place = (ControlPlace){.size = 1, .local_size = 1, .launcher = "none"};
    if (getenv("TOROID_RANK") || getenv("TOROID_SIZE")) {
        if (!read_place(place, "TOROID_RANK", "TOROID_RANK", "TOROID_SIZE", err)) return false;
        place->local_size = getenv("TOROID_ROOT") ? 0 : place->size;
        place->local_rank = getenv("TOROID_ROOT") ? 0 : place->rank;
    } else if (getenv("OMPI_COMM_WORLD_SIZE")) {
        if (!read_place(place, "mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", err)) return false;
        place->local_size = 0;
        if (read_number("OMPI_COMM_WORLD_LOCAL_RANK", &place->local_rank) < 0 ||
            read_number("OMPI_COMM_WORLD_LOCAL_SIZE", &place->local_size) < 0)
            return error_set(err, "OMPI_COMM_WORLD_LOCAL_RANK or _SIZE is not a number");
    } else if (getenv("SLURM_STEP_ID") && getenv("SLURM_STEP_NUM_TASKS") && getenv("SLURM_PROCID")) {
        /* a batch script has SLURM_PROCID too, but no step */
        int nodes = 0;
        if (!read_place(place, "srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", err)) return false;
        read_number("SLURM_STEP_NUM_NODES", &nodes);
        place->local_size = nodes == 1 ? place->size : 0;
        if (read_number("SLURM_LOCALID", &place->local_rank) < 0)
            return error_set(err, "SLURM_LOCALID is not a number");
    }
    return true;
}

bool place_slurm_root(char *host, size_t size, int *port) {
    const char *list = getenv("SLURM_STEP_NODELIST"), *job = getenv("SLURM_JOB_ID");
    bool inside = false;
    size_t n = 0;
    int step = 0;
    for (; list && *list && *list != ',' && *list != ']' && n + 1 < size; list++) {
        if (inside && *list == '-') break;
        if (*list == '[')
            inside = true;
        else
            host[n++] = *list;
    }
    host[n] = 0;
    if (!n || read_number("SLURM_STEP_ID", &step) < 0) return false;
    *port = 20000 + ((job ? (int)(strtoul(job, NULL, 10) % 20000) : 0) + step) % 20000;
    return true;
}

void place_job_name(const ControlPlace *place, char *out, size_t size) {
    const char *own = getenv("TOROID_JOB"), *mpi = getenv("PMIX_NAMESPACE");
    const char *job = getenv("SLURM_JOB_ID"), *step = getenv("SLURM_STEP_ID");
    if (own)
        snprintf(out, size, "%s", own);
    else if (!strcmp(place->launcher, "mpirun") && mpi)
        snprintf(out, size, "mpirun-%s", mpi);
    else if (!strcmp(place->launcher, "srun") && job && step)
        snprintf(out, size, "srun-%s-%s", job, step);
    else
        snprintf(out, size, "parent-%ld", (long)getppid());
    for (char *c = out; *c; c++)
        if (!isalnum((unsigned char)*c) && *c != '-' && *c != '.') *c = '_';
}

static void sleep_milliseconds(long milliseconds) {
    nanosleep(&(struct timespec){milliseconds / 1000, milliseconds % 1000 * 1000000}, NULL);
}

/* What is left of a job that has failed mpirun ends by SIGCONT, a second's sleep, SIGTERM, a second's sleep, SIGKILL; but
 * whenever a child ends, the sleep does. So the first ranks to end bring SIGKILL on those that have not said why yet; and
 * if all end before it sleeps, it sleeps on: two seconds for nothing. Hence nobody hurries, and then all wake it as the
 * end of a child would. One after another they stop that: mpirun may not know of the failure before. */
void control_linger(double seconds) {
    enum { NUDGES = 20, NUDGES_MORE = 15, NUDGES_MAX = 50, PAUSE_MILLISECONDS = 10 };
    ControlPlace place;
    Error ignored;
    if (!control_place(&place, &ignored) || place.size == 1 || strcmp(place.launcher, "mpirun") != 0) return;
    sleep_milliseconds((long)(1000 * seconds));
    for (int i = 0; i < NUDGES + NUDGES_MORE * place.local_rank && i < NUDGES_MAX; i++) {
        kill(getppid(), SIGCHLD);
        sleep_milliseconds(PAUSE_MILLISECONDS);
    }
}
