/* machine.c: see machine.h. */
#define _GNU_SOURCE /* sched_getaffinity */
#include "base/machine.h"
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* The number behind `label` at the start of a line ("": of the first line); -1: none. */
static double number_in_file(const char *path, const char *label) {
    FILE *f = fopen(path, "r");
    char line[128];
    double value = -1;
    if (!f) return -1;
    while (value < 0 && fgets(line, sizeof line, f))
        if (!strncmp(line, label, strlen(label)) && sscanf(line + strlen(label), "%lf", &value) != 1)
            value = -1;
    fclose(f);
    return value;
}

double machine_available_bytes(void) {
    double kilobytes = number_in_file("/proc/meminfo", "MemAvailable:");
    double bytes = kilobytes > 0 ? 1024 * kilobytes : 0;
    double limit = number_in_file("/sys/fs/cgroup/memory.max", ""); /* "max": no limit, so no number */
    double used = number_in_file("/sys/fs/cgroup/memory.current", "");
    if (limit > 0 && used >= 0 && limit - used < bytes) bytes = limit - used;
    return bytes;
}

bool machine_check_memory(double bytes, double available, const char *what, const char *hint, Error *err) {
    if (available <= 0 || bytes < available) return true;
    return error_set(err, "%s needs %.2f GB of memory, %.2f GB is free (%s)", what, 1e-9 * bytes,
                     1e-9 * available, hint);
}

double machine_peak_bytes(void) {
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage)) return 0;
    return 1024 * (double)usage.ru_maxrss;
}

int machine_threads(int processes) {
    long online = sysconf(_SC_NPROCESSORS_ONLN), part = online / (processes > 0 ? processes : 1);
    cpu_set_t usable;
    if (sched_getaffinity(0, sizeof usable, &usable) == 0 && CPU_COUNT(&usable) < part)
        part = CPU_COUNT(&usable);
    return part > 1 ? (int)part : 1;
}

bool machine_has_program(const char *program) {
    const char *path = getenv("PATH");
    while (path && *path) {
        size_t length = strcspn(path, ":");
        char full[4096];
        int size = snprintf(full, sizeof full, "%.*s/%s", (int)length, path, program);
        if (size < (int)sizeof full && access(full, X_OK) == 0) return true;
        path += length + (path[length] == ':');
    }
    return false;
}

void machine_open_standard_files(void) {
    signal(SIGXFSZ, SIG_IGN);
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd ? O_RDONLY : O_WRONLY) < 0) return;
}

void machine_spin_briefly(char **argv) {
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT") || getenv("KMP_BLOCKTIME")) return;
    setenv("GOMP_SPINCOUNT", "1000", 1); /* gcc's runtime: rounds, some microseconds */
    setenv("KMP_BLOCKTIME", "0", 1);     /* clang's: milliseconds */
    execv("/proc/self/exe", argv);       /* where there is no /proc, all goes on as it was */
}
