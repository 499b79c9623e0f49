/* machine.h: what the operating system says about this machine. */
#ifndef LLMC_MACHINE_H
#define LLMC_MACHINE_H
#include "base/error.h"
#include <stdbool.h>

/* Bytes that can still be allocated without swapping, by the kernel's estimate and the container's limit;
 * 0: unknown. */
double machine_available_bytes(void);

/* Can so many bytes still be allocated, of `available` (0: unknown)? Asked first, for Linux promises memory that it does
 * not have and kills later. what: "the model"; hint: what to do about it. */
bool machine_check_memory(double bytes, double available, const char *what, const char *hint, Error *err);

/* The largest resident size of this process so far, bytes. */
double machine_peak_bytes(void);

/* Threads for one of `processes` processes that share this machine's processors: its part of them, but no more than it
 * may use (affinity); at least 1. */
int machine_threads(int processes);

/* Is this program in a folder of PATH? */
bool machine_has_program(const char *program);

/* Call first in main. If stdin, stdout or stderr is closed, the next file to be opened would take its place, and what
 * is printed would go into it: they are made unusable instead. A write beyond 'ulimit -f' becomes an error like any
 * other, not the end of the process. */
void machine_open_standard_files(void);

/* Call early in main. Where threads wait for each other, the OpenMP runtimes spin for long by default; on a machine
 * with other work to do, that keeps the very thread that is waited for from running. They read how long to spin from
 * the environment before main begins, so this sets it and starts the program again, unless the user has set it. */
void machine_spin_briefly(char **argv);
#endif
