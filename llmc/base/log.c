/* log.c: see log.h. Every line is written with one call, so lines of several ranks do not mix. */
#define _POSIX_C_SOURCE 200809L
#include "base/log.h"
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

static int log_rank;
static bool log_quiet;

void log_open(int rank, bool quiet) {
    log_rank = rank;
    log_quiet = quiet;
}

static void print_line(const char *label, const char *format, va_list args) {
    char line[1024];
    vsnprintf(line, sizeof line, format, args);
    if (log_rank > 0)
        fprintf(stderr, "%s[rank %d] %s\n", label, log_rank, line);
    else
        fprintf(stderr, "%s%s\n", label, line);
}

void log_info(const char *format, ...) {
    if (log_quiet || log_rank > 0) return;
    va_list args;
    va_start(args, format);
    print_line("", format, args);
    va_end(args);
}

void log_warn(const char *format, ...) {
    va_list args;
    va_start(args, format);
    print_line("warning: ", format, args);
    va_end(args);
}

double log_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
